"""Read checkpoints safely, and find the weights in them.

A checkpoint is a pickle, and unpickling runs whatever the file says. Everything here reads with
PyTorch's restricted unpickler and an allow-list, never without; `pickle_scan` scans before.
"""

import argparse
import hashlib
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import safetensors.torch
import torch
from mmengine.dist import barrier, get_local_rank
from mmengine.fileio import get_file_backend
from mmengine.logging import HistoryBuffer
from torch import Tensor

from ..utils.errors import CheckpointError, RefusedError, UnknownGlobalError
from ..utils.files import SHA256_KEY, atomic_write, matches_sha256
from . import pickle_scan

# Where a file keeps its weights, averaged ones first; the whole file if none is there.
CONTAINERS = ("state_dict_ema", "state_dict", "model")
# How much larger than its file tensors may be together; some share their values.
SHARED = 4


def _history_statistic(owner: type, name: str) -> Callable:
    """Stand in for the `getattr` by which MMEngine's HistoryBuffer pickles its four statistics.

    NOTE: the real one would let a pickle walk from any allowed class to any code.
    """
    if owner is HistoryBuffer and name in ("min", "max", "current", "mean"):
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(f"getattr of {name!r} is not allowed")


def _safe_globals() -> list:
    """Beyond tensors: timm's `args`, and what MMEngine's own checkpoints hold."""
    reconstruct, scalar = (np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0])
    # not those of objects and of values of a size that a pickle may set
    dtypes = {type(np.dtype(code)) for code in "?" + np.typecodes["AllInteger"] + "efd"}
    return [
        argparse.Namespace,
        HistoryBuffer,
        (_history_statistic, "builtins.getattr"),
        np.ndarray,
        np.dtype,
        *dtypes,
        # NumPy 1 and 2 write different module names.
        *((reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    ]


def is_url(filename: str) -> bool:
    """Tell whether a checkpoint is named by a URL or by a scheme of MMEngine's, not by a path."""
    return "://" in filename


def fetch(filename: str, again: bool = False) -> Path:
    """Resolve a path, or a URL that MMEngine has a file backend for, to a local file.

    Downloads stay in torch.hub's directory. A file that torch has put there is taken where its
    content has the hash that its name ends in.

    Args:
        filename: a path, or a URL: http(s), `s3://`, or of another backend.
        again: download, even if there is a file from before, what may have changed since: all but
            http(s).

    Raises:
        CheckpointError: the file is absent, can't be downloaded, or is refused.
    """
    path = Path(filename).expanduser()
    if os.path.isfile(path):  # False, too, for a name that is too long
        return path
    if not is_url(filename):
        raise CheckpointError(f"{filename}: there is no such checkpoint file")
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    name = Path(urlparse(filename).path).name
    # Two URLs may end in the same name.
    digest = hashlib.sha256(filename.encode()).hexdigest()[:8]
    path = cache / f"{digest}-{name}"
    if not filename.startswith(("http://", "https://")):
        if again or not path.exists():
            _download(filename, path)
        return path
    named = re.search(r"-([0-9a-f]{8,64})\.", name)
    if named and (cache / name).is_file() and sha256(cache / name).startswith(named[1]):
        path = cache / name
    try:
        if get_local_rank() == 0 and not path.exists():
            _download(filename, path)
    finally:  # the other processes must not wait for one that failed
        barrier()
    if not path.exists():
        raise CheckpointError(f"{filename} was not downloaded by this machine's first process")
    return path


def _download(filename: str, path: Path) -> None:
    """Download a checkpoint; what the reader refuses does not stay."""
    with atomic_write(path) as partial:
        try:
            if filename.startswith(("http://", "https://")):
                torch.hub.download_url_to_file(filename, str(partial), progress=False)
            else:
                partial.write_bytes(get_file_backend(filename).get(filename))
        except Exception as error:  # each storage's client has its own
            raise CheckpointError(f"{filename} can't be downloaded: {error!r}") from error
        try:
            read_checkpoint(partial)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(partial), filename)) from error


def read_checkpoint(filename: str | os.PathLike, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running anything that it says.

    Args:
        filename: path or URL (see `fetch`) of a `.safetensors` file, or of a PyTorch file.
        map_location: as in `torch.load`; a safetensors file always comes to the CPU.

    Returns:
        What the file holds; the tensors of a safetensors file as `dict(state_dict=...)`.

    Raises:
        CheckpointError: no such file, an empty or damaged one, or one that asks for anything
            but tensors, plain containers, and what timm and MMEngine write.
    """
    filename = str(filename)
    path = fetch(filename, again=True)
    if (size := path.stat().st_size) == 0:
        raise CheckpointError(f"{filename} is empty; it was not written or copied to its end")
    try:
        if path.suffix == ".safetensors":
            return {"state_dict": _read_safetensors(path)}
        with torch.serialization.safe_globals(_safe_globals()):
            pickle_scan.check(path, {*map(_name, torch.serialization.get_safe_globals())})
            content = torch.load(path, map_location=map_location, weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{filename} can't be read: {error}") from error
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        raise CheckpointError(_explain(filename, error)) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{filename} holds a {type(content).__name__}, not a checkpoint")
    _check_tensors(filename, content, size)
    meta = content.get("meta")
    if isinstance(meta, dict):
        # NOTE: on resume MMEngine executes the text that old files keep here as a config.
        meta.pop("config", None)
    return content


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, and compare its checksum where we wrote it."""
    with safetensors.safe_open(path, framework="pt") as file:
        noted = (file.metadata() or {}).get(SHA256_KEY)
    if noted and not matches_sha256(path.read_bytes(), noted):
        raise ValueError("its SHA-256 is another one than it notes")
    return safetensors.torch.load_file(path)


def _name(known: Any) -> str:
    """Return the name by which a pickle asks for a safe global of PyTorch."""
    return known[1] if isinstance(known, tuple) else f"{known.__module__}.{known.__qualname__}"


def _check_tensors(filename: str, content: dict, size: int) -> None:
    """Refuse tensors that would fill the memory when they are copied.

    NOTE: a shape is what a file says; of a single value it makes as many as it likes.
    """
    total, left = 0, [content]
    seen: set[int] = set()  # containers may hold each other
    while left:
        node: Any = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, Tensor):
            total += node.numel() * node.element_size()
        elif isinstance(node, Mapping):
            left += node.values()
        elif isinstance(node, list | tuple | set):
            left += node
    if total > SHARED * size:
        raise CheckpointError(
            f"{filename} is refused: its {size} bytes stand for tensors of {total} bytes"
        )


def _explain(filename: str, error: Exception) -> str:
    """Say in one sentence why a file could not be read."""
    if filename.endswith(".safetensors"):
        return f"{filename} is not a whole safetensors file: {error}"
    # PyTorch wraps its reason into advice to load without restriction, which nobody should follow.
    text = str(error.__context__ or error)
    if type(error) is RefusedError:
        return f"{filename} is refused: it asks for {error}"
    if isinstance(error, UnknownGlobalError):
        text = f"GLOBAL {error}"
    if found := re.search(r"GLOBAL (\S+)|getattr of (\S+)|reduce for unrecognized (.+)", text):
        wanted = next(filter(None, found.groups()))
        return (
            f"{filename} is refused: besides weights it asks for {wanted}, and a pickle that may "
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
    reason = f"{type(error.__context__ or error).__name__} {text}".splitlines()[0][:200]
    return f"{filename} is damaged or not a PyTorch checkpoint ({reason}); fetch or copy it again"


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


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
