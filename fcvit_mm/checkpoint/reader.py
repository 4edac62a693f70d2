"""Read checkpoints safely, and find the weights in them.

A checkpoint is a pickle, and unpickling runs whatever the file says. Everything here is read by
`unpickler`, which knows only what weights need.
"""

import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import safetensors.torch
import torch
from mmengine.dist import barrier, get_local_rank
from torch import Tensor

from ..utils.errors import CheckpointError, RefusedError, UnknownGlobalError, first_line
from ..utils.files import SHA256_KEY, matches_sha256, sha256
from . import downloads, torch_file
from .unpickler import NAME_LENGTH

# Where a file keeps its weights, averaged ones first; the whole file if none is there.
CONTAINERS = ("state_dict_ema", "state_dict", "model")
# A config in Python whose text stands for the one that was in a file.
NO_CONFIG = (
    "raise ValueError('the config text in the checkpoint is not run, as it may be any program; "
    "give the config that the model was trained with')"
)
MOST_CLASSES, CLASS_LENGTH = 100_000, 200


def is_url(filename: str) -> bool:
    """Tell whether a checkpoint is named by a URL or by a scheme of MMEngine's, not by a path."""
    return "://" in filename


def fetch(filename: str, again: bool = False) -> Path:
    """Resolve a path, or what `downloads` knows, to a local file.

    A file that torch has put into its directory is taken where its content has the hash that its
    name ends in.

    Args:
        filename: a path, the name of a released model, `hf://ORG/REPO/FILE@REVISION`, or a URL:
            http(s), `s3://`, or of another backend of MMEngine's.
        again: ask the Hub and storages for a newer version; compare all but what storages have with
            its first use.

    Raises:
        CheckpointError: the file is absent, can't be downloaded, is refused, or has changed.
    """
    path = Path(filename).expanduser()
    if os.path.isfile(path):  # False, too, for a name that is too long
        return path
    if not is_url(filename) and not downloads.is_released(filename):
        raise CheckpointError(
            f"{filename}: there is no such checkpoint file; training writes some to its work "
            "directory, and docs/weights.md says where the authors' are"
        )
    name = Path(urlparse(filename).path).name
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    named = re.search(r"-([0-9a-f]{8,64})\.", name)
    if named and cached.is_file() and sha256(cached).startswith(named[1]):
        return cached
    is_old = again and (filename.startswith("hf://") or downloads.is_storage(filename))
    try:
        if get_local_rank() == 0 and (is_old or not downloads.find(filename)):
            downloads.download(filename, lambda partial: _accept(partial, filename))
    finally:  # the other processes must not wait for one that failed
        barrier()
    found = downloads.find(filename)
    if found is None:
        raise CheckpointError(f"{filename} was not downloaded by this machine's first process")
    if again and not downloads.is_storage(filename):
        downloads.compare_with_lock(filename, found)
    return found


def _accept(partial: Path, filename: str) -> None:
    """Refuse a download that can't be read, by its address."""
    try:
        read_checkpoint(partial)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(partial), filename)) from error


def read_checkpoint(filename: str | os.PathLike, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running anything that it says.

    Args:
        filename: path, URL or name (see `fetch`) of a `.safetensors` file, or of a PyTorch file.
        map_location: as in `torch.load`; a safetensors file always comes to the CPU.

    Returns:
        What the file holds; the tensors of a safetensors file as `dict(state_dict=...)`.

    Raises:
        CheckpointError: no such file, an empty or damaged one, or one that asks for anything
            but tensors, plain containers, and what timm and MMEngine write.
    """
    filename = str(filename)
    path = fetch(filename, again=True)
    if path.stat().st_size == 0:
        raise CheckpointError(f"{filename} is empty; it was not written or copied to its end")
    try:
        if path.suffix == ".safetensors":
            return {"state_dict": _read_safetensors(path)}
        content = torch_file.read(path, map_location)
    except OSError as error:
        raise CheckpointError(f"{filename} can't be read: {error}") from error
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        raise CheckpointError(_explain(filename, error)) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{filename} holds a {type(content).__name__}, not a checkpoint")
    _clean_meta(content)
    return content


def _clean_meta(content: dict[str, Any]) -> None:
    """Take out of a checkpoint's texts what others would run, print or draw unseen.

    MMEngine runs the config texts of old files on resume, and those of new ones where an inferencer
    gets weights and no model.
    """
    meta, hub = content.get("meta"), content.get("message_hub")
    info = hub.get("runtime_info") if isinstance(hub, dict) else None
    has_text = [one.pop("cfg", None) for one in (meta, info) if isinstance(one, dict)]
    if any(has_text):
        meta = content["meta"] = {**(meta if isinstance(meta, dict) else {}), "cfg": NO_CONFIG}
    if not isinstance(meta, dict):
        return
    meta.pop("config", None)
    valid = {"classes": are_class_names, "palette": is_palette}
    for node in (meta, meta.get("dataset_meta")):
        if isinstance(node, dict):
            # OpenMMLab 1 writes the names in capitals
            known = [(key, valid[name]) for key in node if (name := str(key).lower()) in valid]
            for key, is_valid in known:
                if not is_valid(node[key]):
                    del node[key]


def are_class_names(names: Any) -> bool:
    """Tell whether a value is a list of names that can be printed."""
    if not isinstance(names, list | tuple) or not 0 < len(names) <= MOST_CLASSES:
        return False
    return all(
        isinstance(name, str) and 0 < len(name) <= CLASS_LENGTH and name.isprintable()
        for name in names
    )


def is_palette(colors: Any) -> bool:
    """Tell whether a value is a list of colors, RGB, 0 to 255."""
    return isinstance(colors, list | tuple) and len(colors) <= MOST_CLASSES and all(
        isinstance(color, list | tuple) and len(color) == 3
        and all(type(value) in (int, float) and 0 <= value <= 255 for value in color)
        for color in colors
    )  # fmt: skip


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, and compare its checksum where we wrote it."""
    with safetensors.safe_open(path, framework="pt") as file:
        noted = (file.metadata() or {}).get(SHA256_KEY)
    if noted and not matches_sha256(path.read_bytes(), noted):
        raise ValueError("its SHA-256 is another one than it notes")
    weights = safetensors.torch.load_file(path)
    if not all(key.isprintable() and len(key) <= NAME_LENGTH for key in weights):
        raise ValueError("a tensor's name is too long or can't be printed")
    return weights


def _explain(filename: str, error: Exception) -> str:
    """Say in one sentence why a file could not be read."""
    # what is in a file may be anything, and the reader's terminal would obey it
    said = "".join(c if c.isprintable() else "?" for c in first_line(error)[:200])
    if filename.endswith(".safetensors"):
        return f"{filename} is not a whole safetensors file: {said}"
    if type(error) is RefusedError:
        return f"{filename} is refused: it asks for {said}"
    if isinstance(error, UnknownGlobalError):
        return (
            f"{filename} is refused: besides weights it asks for {said}, and a pickle that may "
            "ask for anything can run any code. Nothing of it was run. Get the weights as "
            ".safetensors, or, if you wrote the file yourself, allow the class with "
            "torch.serialization.add_safe_globals."
        )
    with open(fetch(filename), "rb") as file:
        if file.read(256).lstrip()[:1] == b"<":
            return (
                f"{filename} is a web page and no checkpoint; download the file itself, not the "
                "page that shows it"
            )
    reason = f"{type(error).__name__} {said}"
    return f"{filename} is damaged or not a PyTorch checkpoint ({reason}); fetch or copy it again"


def find_weights(
    checkpoint: Mapping[str, Any], ema: bool = True
) -> tuple[str | None, dict[str, Tensor]]:
    """Find the weights in what `read_checkpoint` returned, by default averaged ones if it has them.

    Returns:
        The name of the container they were in (None for a bare state dict); the tensors that have
        a name, without DDP's `module.` prefix, with the versions of the modules that wrote them.
    """
    names = CONTAINERS if ema else CONTAINERS[1:]
    container = next((name for name in names if isinstance(checkpoint.get(name), Mapping)), None)
    given: Mapping[Any, Any] = checkpoint[container] if container else checkpoint
    weights = OrderedDict(
        (key.removeprefix("module."), value)
        for key, value in given.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    )
    if hasattr(given, "_metadata"):
        weights._metadata = given._metadata  # type: ignore[attr-defined]
    return container, weights


def read_weights(
    filename: str | os.PathLike, ema: bool = True, map_location: Any = "cpu"
) -> tuple[str, dict[str, Tensor]]:
    """Read a checkpoint and find its weights; a CheckpointError if it has none.

    Returns:
        Where in the file they were, in words, and the weights.
    """
    content = read_checkpoint(filename, map_location)
    container, weights = find_weights(content, ema)
    if not weights:
        raise CheckpointError(f"{filename} holds no weights; its keys are {listing(content)}")
    return container or "the file itself", weights


def listing(keys: Iterable[str], most: int = 8) -> str:
    """List keys in a sentence, sorted, and count those beyond the first ones."""
    keys = sorted(str(key)[:100] for key in keys)
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more
