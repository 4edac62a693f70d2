"""MMEngine's checkpoint loading and file writing, made safe and atomic."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.fileio import LocalBackend
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_external_models, get_torchvision_models

from ..utils.errors import CheckpointError
from ..utils.files import atomic_write
from .reader import find_weights, listing, read_checkpoint

# Schemes of names that MMEngine finds a URL for.
ZOOS = ("torchvision://", "modelzoo://", "open-mmlab://", "openmmlab://")
# Checkpoints that MMEngine is about to ask for and that were read before, by their names.
_READ: dict[str, dict[str, Any]] = {}


@contextmanager
def already_read(filename: str | None, content: dict[str, Any] | None) -> Iterator[None]:
    """Have MMEngine take the content of a checkpoint that was read before, not read it again."""
    if filename and content is not None:
        _READ[filename] = content
    # the caller's frame lasts as long as the training, and would keep what has been loaded
    del content
    try:
        yield
    finally:
        _READ.pop(filename or "", None)


def load_from_file(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load a checkpoint for MMEngine from a path, an http(s) URL, or one of its tables of URLs.

    The weights are where MMEngine looks for them, averaged ones if the file has them.

    Raises:
        CheckpointError: see `read_checkpoint`; or the table has no such model.
    """
    if filename in _READ:
        return _READ.pop(filename)
    scheme, _, name = filename.partition("://")
    if f"{scheme}://" in ZOOS:
        is_torchvision = scheme in ("torchvision", "modelzoo")
        urls = get_torchvision_models() if is_torchvision else get_external_models()
        if name not in urls:
            raise CheckpointError(f"{filename}: no such model; there are {listing(urls)}")
        filename = urls[name]
    content = read_checkpoint(filename, map_location)
    container, weights = find_weights(content)
    if container:
        content["state_dict"] = weights
    return content


def refuse(filename: str, map_location: Any = None) -> None:
    """Refuse the schemes whose MMEngine loaders unpickle without restriction."""
    raise CheckpointError(
        f"{filename}: download the file and give its path; only paths and http(s) "
        "URLs are read safely"
    )


def register_safe_loaders() -> None:
    """Put `read_checkpoint` under everything in MMEngine that reads a checkpoint."""
    schemes = ["", "http://", "https://", *ZOOS]
    CheckpointLoader.register_scheme(schemes, load_from_file, force=True)
    unsafe = ["pavi://", r"(\S+\:)?s3://", r"(\S+\:)?petrel://", "mmcls://"]
    CheckpointLoader.register_scheme(unsafe, refuse, force=True)


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
