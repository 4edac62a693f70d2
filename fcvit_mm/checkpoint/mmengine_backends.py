"""MMEngine's loading and writing of checkpoints, made safe and atomic."""

import os
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any

from mmengine.fileio import BaseStorageBackend, LocalBackend, get_file_backend
from mmengine.runner import CheckpointLoader, checkpoint
from mmengine.runner.checkpoint import (
    _get_mmengine_home,
    _process_mmcls_checkpoint,
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)

from ..utils.errors import CheckpointError
from ..utils.files import atomic_write
from .reader import find_weights, is_url, listing, read_checkpoint

# Schemes of names that MMEngine finds a URL for, and its tables of them.
TABLES = {
    "torchvision": get_torchvision_models,
    "modelzoo": get_torchvision_models,
    "open-mmlab": get_external_models,
    "openmmlab": get_external_models,
    "mmcls": get_mmcls_models,
}
# What was read of the checkpoint that MMEngine is about to ask for, by its name.
ALREADY_READ: dict[str, dict[str, Any]] = {}


def load_from_file(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load a checkpoint for MMEngine from whatever its own loaders take, but safely.

    The weights are where MMEngine looks for them, averaged ones if the file has them.

    Raises:
        CheckpointError: see `read_checkpoint`; or MMEngine's table has no such model.
    """
    if filename in ALREADY_READ:
        return ALREADY_READ.pop(filename)
    content = read_checkpoint(find_address(filename), map_location)
    container, weights = find_weights(content)
    if container:
        content["state_dict"] = weights
    return _process_mmcls_checkpoint(content) if filename.startswith("mmcls://") else content


def find_address(filename: str) -> str:
    """Return path or URL of a model that is named by one of MMEngine's tables; others as given."""
    scheme, _, name = filename.partition("://")
    if scheme == "pavi":
        raise CheckpointError(f"{filename}: download the file and give its path")
    if scheme not in TABLES:
        return filename
    urls = TABLES[scheme]()
    if TABLES[scheme] is get_external_models:
        name = get_deprecated_model_names().get(name, name)
    if name not in urls:
        raise CheckpointError(f"{filename}: no such model; there are {listing(urls)}")
    return urls[name] if is_url(urls[name]) else os.path.join(_get_mmengine_home(), urls[name])


def register_safe_loaders() -> None:
    """Put `load_from_file` under everything in MMEngine that reads a checkpoint."""
    for scheme, loader in list(CheckpointLoader._schemes.items()):
        if loader.__module__ == checkpoint.__name__:
            # under the name of MMEngine's own, by which its log says where a checkpoint comes from
            named = update_wrapper(partial(load_from_file), loader, assigned=["__name__"])
            CheckpointLoader.register_scheme(scheme, named, force=True)


class AtomicLocalBackend(LocalBackend):
    """MMEngine's access to local files; what it writes is complete or not there."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file; after an OSError it holds what it held before."""
        try:
            with atomic_write(Path(filepath)) as partial:
                partial.write_bytes(obj)
        except OSError as error:
            # of a full disk Python does not say where
            raise OSError(error.errno, error.strerror, str(filepath)) from error


def _checkpoint_backend(uri: Any = None, **options: Any) -> BaseStorageBackend:
    """Return the backend that MMEngine would take, with atomic writing if it is the local one."""
    backend = get_file_backend(uri, **options)
    return AtomicLocalBackend() if type(backend) is LocalBackend else backend


def write_checkpoints_atomically() -> None:
    """Have MMEngine's `save_checkpoint` write complete local files or none; nothing else changes.

    Runner, CheckpointHook and the strategies write by that function, which gets its backend here.
    """
    checkpoint.get_file_backend = _checkpoint_backend
