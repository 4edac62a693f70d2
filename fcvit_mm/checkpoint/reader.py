"""Checkpoints: read them safely, find the weights, load them completely, or say why not.

A checkpoint is a pickle, and unpickling runs whatever the file says. Everything here reads with
PyTorch's restricted unpickler and an allow-list, and there is no way back to the unrestricted
one; `pickles` goes through the file before. `make_mmengine_safe` puts the same reader under
MMEngine's `load_from`, `resume` and test.
"""

import argparse
import hashlib
import logging
import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import safetensors
import safetensors.torch
import torch
from mmengine.dist import barrier, get_local_rank
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_external_models, get_torchvision_models
from torch import Tensor, nn

from ..models.arch import ARCHS, Arch
from ..utils.files import SEAL, UNSEALED, is_sealed, seal, whole_file
from . import pickle_scan

# Where a file keeps its weights; the first that is there is taken, the whole file if none is.
EMA_CONTAINER = "state_dict_ema"
CONTAINERS = (EMA_CONTAINER, "state_dict", "model")

# What the backbone may lack in a file, and what a file may hold beyond the backbone.
OUTPUT_NORM = re.compile(r"norm[0246]\.")
CLASSIFIER = re.compile(r"(norm|head)\.")

# A released classifier's keys in MMPretrain's ImageClassifier: the classifier's norm is the output
# norm of stage 4, all that is in neither row is the backbone's.
CLASSIFIER_KEYS = {"norm.": "backbone.norm6.", "head.": "head.fc."}

# By this tensor an FCViT is found under whatever prefix.
STEM = "patch_embed.proj.weight"

# How much larger than its file tensors may be together; some share their values.
SHARED = 4


class CheckpointError(ValueError):
    """A checkpoint can't be used; the message says which, why, and what to do."""


# ---------------------------------------------------------------------------- reading


def _history_statistic(owner: type, name: str) -> Callable:
    """Stand in for the `getattr` by which MMEngine's HistoryBuffer pickles its four statistics.

    NOTE: the real getattr would let a pickle walk from any allowed class to any code.
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
    """Whether a checkpoint is named by a URL or by a scheme of MMEngine's, not by a path."""
    return "://" in filename


def fetch(filename: str) -> Path:
    """Resolve a local path or an http(s) URL (kept in torch.hub's directory) to a local file.

    Raises:
        CheckpointError: there is no such file, or it can't be downloaded.
    """
    if filename.startswith(("http://", "https://")):
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        # Two URLs may end in the same name.
        digest = hashlib.sha256(filename.encode()).hexdigest()[:8]
        path = cache / f"{digest}-{Path(urlparse(filename).path).name}"
        if get_local_rank() == 0 and not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(filename, str(path), progress=False)
            except OSError as error:
                raise CheckpointError(f"{filename} can't be downloaded: {error}") from error
        barrier()
        return path
    path = Path(filename).expanduser()
    if not path.is_file():
        raise CheckpointError(f"{filename}: there is no such checkpoint file")
    return path


def read_checkpoint(filename: str | os.PathLike, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running anything that it says.

    Args:
        filename: path or http(s) URL of a `.safetensors` file, or of a PyTorch file.
        map_location: as in `torch.load`; a safetensors file always comes to the CPU.

    Returns:
        What the file holds; the tensors of a safetensors file as `dict(state_dict=...)`.

    Raises:
        CheckpointError: no such file, an empty or damaged one, or one that asks for anything
            but tensors, plain containers, and what timm and MMEngine write.
    """
    filename = str(filename)
    path = fetch(filename)
    if (size := path.stat().st_size) == 0:
        raise CheckpointError(f"{filename} is empty; it was not written or copied to its end")
    try:
        if path.suffix == ".safetensors":
            return {"state_dict": _read_safetensors(path)}
        with torch.serialization.safe_globals(_safe_globals()):
            pickle_scan.check(
                path, {_name(known) for known in torch.serialization.get_safe_globals()}
            )
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
    """The tensors of a safetensors file, compared with their checksum where we wrote it."""
    with safetensors.safe_open(path, framework="pt") as file:
        noted = (file.metadata() or {}).get(SEAL)
    if noted and not is_sealed(path.read_bytes(), noted):
        raise ValueError("its SHA-256 is another one than it notes")
    return safetensors.torch.load_file(path)


def _name(known: Any) -> str:
    """By which name a pickle asks for what `torch.serialization.add_safe_globals` was given."""
    return known[1] if isinstance(known, tuple) else f"{known.__module__}.{known.__qualname__}"


def _tensors(content: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers, which may hold each other, once."""
    seen: set[int] = set()
    left = [content]
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, Tensor):
            yield node
        elif isinstance(node, Mapping):
            left += node.values()
        elif isinstance(node, list | tuple | set):
            left += node


def _check_tensors(filename: str, content: dict, size: int) -> None:
    """Refuse tensors that would fill the memory when they are copied.

    NOTE: a shape is what a file says; of a single value it makes as many as it likes.
    """
    total = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(content))
    if total > SHARED * size:
        raise CheckpointError(
            f"{filename} is refused: its {size} bytes stand for tensors of {total} bytes"
        )


def _explain(filename: str, error: Exception) -> str:
    if filename.endswith(".safetensors"):
        return f"{filename} is not a whole safetensors file: {error}"
    # PyTorch wraps its reason into advice to load without restriction, which nobody should follow.
    text = str(error.__context__ or error)
    if type(error) is pickle_scan.RefusedError:
        return f"{filename} is refused: it asks for {error}"
    if isinstance(error, pickle_scan.UnknownGlobalError):
        text = f"GLOBAL {error}"
    if found := re.search(r"GLOBAL (\S+)|getattr of (\S+)|reduce for unrecognized (.+)", text):
        wanted = next(filter(None, found.groups()))
        return (
            f"{filename} is refused: beside weights it asks for {wanted}, and a pickle that may "
            "ask for anything can run any code. Nothing of it was run. Get "
            "the weights as .safetensors, or, if you wrote the file yourself, allow the class with "
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
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# ----------------------------------------------------------- finding the weights in it


def select_weights(
    checkpoint: Mapping[str, Any], filename: str, ema: bool = True
) -> tuple[str, dict[str, Tensor]]:
    """Find the weights in a checkpoint.

    Args:
        checkpoint: what `read_checkpoint` returned.
        filename: for the error message.
        ema: take averaged weights where the file has them.

    Returns:
        The name of the container they were in ('the file itself' for a bare state dict), and the
        state dict without DDP's `module.` prefix.

    Raises:
        CheckpointError: the file holds no weights.
    """
    container = find_container(checkpoint, ema)
    weights = _named(checkpoint[container] if container else checkpoint)
    if not weights:
        raise CheckpointError(f"{filename} holds no weights; its keys are {_listing(checkpoint)}")
    return container or "the file itself", weights


def _named(weights: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors that have a name, without DDP's `module.` prefix."""
    return {
        key.removeprefix("module."): value
        for key, value in weights.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }


def find_container(checkpoint: Mapping[str, Any], ema: bool = True) -> str | None:
    """The name under which a checkpoint keeps its weights; None for a bare state dict."""
    for name in CONTAINERS:
        if isinstance(checkpoint.get(name), Mapping) and (ema or name != EMA_CONTAINER):
            return name
    return None


def classifier_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A released classifier's state dict with the keys of MMPretrain's ImageClassifier.

    Any other state dict is returned as it is: the released form is told by the backbone's keys,
    which have no prefix.
    """
    if STEM not in weights:
        return dict(weights)

    def translate(key: str) -> str:
        for theirs, ours in CLASSIFIER_KEYS.items():
            if key.startswith(theirs):
                return ours + key.removeprefix(theirs)
        return f"backbone.{key}"

    return {translate(key): value for key, value in weights.items()}


def model_weights(checkpoint: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in the content of a file, by the names of a whole model of MMEngine's.

    Args:
        checkpoint: see `load_from_file`.
        wanted: state dict of the model.
    """
    container = find_container(checkpoint)
    given = _named(checkpoint[container] if container else checkpoint)
    # what FCViT has the classifier do when it loads them
    return classifier_weights(given) if "head.fc.weight" in wanted else given


def backbone_weights(weights: Mapping[str, Tensor], prefix: str | None) -> dict[str, Tensor]:
    """Cut the backbone out of a detector, segmentor or classifier; a bare backbone stays.

    Args:
        weights: state dict.
        prefix: of the backbone's keys; None takes `backbone.` where there is one.
    """
    if prefix is None:
        prefix = "backbone." if any(key.startswith("backbone.") for key in weights) else ""
    return {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}


def infer_arguments(weights: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Tell from a backbone's tensors with which arguments of FCViT it was built.

    Returns:
        arch (a name, or a dict if it is none of the table), kernel_size, global_context and
        weighted_context; None where the tensors are not FCViT's.
    """
    layers, dims, ratios = [], [], []
    for stage in range(0, 8, 2):
        blocks = {key.split(".")[2] for key in weights if key.startswith(f"network.{stage}.")}
        first = f"network.{stage}.0.channel_mixer.fc1.weight"
        if first not in weights or weights[first].ndim != 4:
            return None
        hidden, dim = weights[first].shape[:2]
        if not dim:
            return None
        layers.append(len(blocks))
        dims.append(dim)
        ratios.append(hidden // dim)
    arch = Arch(tuple(layers), tuple(dims), tuple(ratios))
    names = [name for name, known in ARCHS.items() if known == arch]
    mixer = "network.0.0.token_mixer."
    if not {f"{mixer}dw1.weight", f"{mixer}dw2.weight"} <= weights.keys():
        return None
    return {
        "arch": names[0] if names else arch._asdict(),
        "kernel_size": tuple(weights[f"{mixer}dw{i}.weight"].shape[-1] for i in (1, 2)),
        "global_context": f"{mixer}gc1.fc1.weight" in weights,
        "weighted_context": f"{mixer}gc1.fc1.weight" not in weights
        or f"{mixer}gc1.rescale_weight" in weights,
    }


# ------------------------------------------------------------------- loading it completely


def load_pretrained(
    backbone: nn.Module,
    checkpoint: str | os.PathLike,
    prefix: str | None = None,
    ema: bool = True,
    map_location: Any = "cpu",
) -> None:
    """Fill every parameter and buffer of an FCViT from a file, or raise and leave it unchanged.

    Takes the released ImageNet files as they are, detectors, segmentors and classifiers that
    contain an FCViT, and bare backbones. Only the output norms may be absent (ImageNet weights
    lack them) and then keep their start values; a classifier's own norm and head are left out.

    Args:
        backbone: an FCViT.
        checkpoint: path or URL, see `read_checkpoint`.
        prefix: of the backbone's keys in the file; None finds `backbone.` by itself.
        ema: take the averaged weights (`state_dict_ema`) where the file has them.
        map_location: as in `torch.load`.

    Raises:
        CheckpointError: the file can't be read, or does not fit; the message lists what is
            missing, unexpected or of another shape, what the file is, and what to set.
    """
    filename = str(checkpoint)
    container, weights = select_weights(read_checkpoint(filename, map_location), filename, ema)
    found = backbone_weights(weights, prefix)
    given = {key: value for key, value in found.items() if not CLASSIFIER.match(key)}
    wanted = backbone.state_dict()
    # A file may have been trained with more or fewer outputs than this backbone has.
    given = {key: v for key, v in given.items() if key in wanted or not OUTPUT_NORM.match(key)}
    kept = sorted(key for key in wanted.keys() - given.keys() if OUTPUT_NORM.match(key))
    whole = (
        " (the backbone of a detector, segmentor or classifier)"
        if len(found) < len(weights)
        else ""
    )
    check_fit(filename + whole, given, {key: v for key, v in wanted.items() if key not in kept})
    backbone.load_state_dict(given, strict=False)
    rest = f"; {len(kept)} tensors of the output norms keep their start values" if kept else ""
    print_log(
        f"FCViT: loaded {len(given)} tensors from {container} of {filename}, SHA-256 "
        f"{sha256(fetch(filename))}{rest}",
        logger="current",
        level=logging.INFO,
    )


def _listing(keys: Iterable[str], most: int = 8) -> str:
    keys = sorted(str(key)[:100] for key in keys)
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


def _misfits(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Say in a sentence each what is missing, unexpected or of another shape; '' if nothing."""
    missing, unexpected = wanted.keys() - given.keys(), given.keys() - wanted.keys()
    both = wanted.keys() & given.keys()
    shapes = [
        f"{key} ({tuple(given[key].shape)} in the file, {tuple(wanted[key].shape)} in the model)"
        for key in both
        if given[key].shape != wanted[key].shape
    ]
    types = [
        f"{key} ({given[key].dtype} in the file, {wanted[key].dtype} in the model)"
        for key in both
        if given[key].is_floating_point() != wanted[key].is_floating_point()
    ]
    return " ".join(
        f"{len(found)} {kind}: {_listing(found)}."
        for kind, found in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
            ("of another type", types),
        )
        if found
    )


def _parts(weights: Mapping[str, Tensor]) -> list[str]:
    """The parts of a whole model, such as backbone, neck and decode_head."""
    return sorted({key.split(".")[0] for key in weights})


def check_fit(filename: str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Compare a file's state dict with a model's; each a whole model or an FCViT alone.

    Raises:
        CheckpointError: keys or shapes differ; says what the file seems to be, what to set, and
            which tensors are missing, unexpected or of another shape.
    """
    if not (problems := _misfits(given, wanted)):
        _warn_of_infinities(filename, given)
        return
    theirs, ours = (infer_arguments(backbone_weights(w, None)) for w in (given, wanted))
    if theirs is None or ours is None:
        prefixes = {key.removesuffix(STEM) for key in given if key.endswith(STEM)} - {
            "",
            "backbone.",
        }
        seems = "not an FCViT" + (
            "".join(f", but to contain one (set prefix={p!r})" for p in prefixes)
            or " (docs/weights.md says where FCViT's weights are)"
        )
    elif differences := [name for name in ours if theirs[name] != ours[name]]:
        seems = " and ".join(
            f"an FCViT with {name}={theirs[name]!r} where the model has {name}={ours[name]!r} "
            f"(set {name}={theirs[name]!r} in the backbone)"
            for name in differences
        )
    elif "backbone" in (parts := _parts(given)) and parts != _parts(wanted):
        seems = (
            f"the same FCViT in a model of other parts, {', '.join(parts)}, where this one has "
            f"{', '.join(_parts(wanted))} (take the config that it was trained with)"
        )
    else:
        seems = "the same FCViT, but for the tensors that follow; compare the rest of the config"
    raise CheckpointError(f"{filename} does not fit the model: it seems to be {seems}. {problems}")


def _warn_of_infinities(filename: str, weights: Mapping[str, Tensor]) -> None:
    found = [key for key, value in weights.items() if not value.isfinite().all()]
    if found:
        print_log(
            f"{filename}: NaN or infinite values in {len(found)} tensors: {_listing(found)}; the "
            "file is damaged, or its training diverged",
            logger="current",
            level=logging.WARNING,
        )


# ------------------------------------------------------------ the same under MMEngine


def load_from_file(filename: str, map_location: Any = None) -> dict[str, Any]:
    """MMEngine's checkpoint loader for paths and http(s) URLs; see `read_checkpoint`.

    The weights lie where MMEngine looks for them, averaged ones if the file has them.
    """
    content = read_checkpoint(filename, map_location)
    if container := find_container(content):
        # the same dict, whose metadata say by which version of a module it was written
        weights = content["state_dict"] = content[container]
        for key in [key for key in weights if not isinstance(key, str)]:
            del weights[key]
    return content


def load_from_zoo(filename: str, map_location: Any = None) -> dict[str, Any]:
    """MMEngine's checkpoint loader for `torchvision://NAME` and `open-mmlab://NAME`."""
    scheme, _, name = filename.partition("://")
    urls = (
        get_torchvision_models() if scheme in ("torchvision", "modelzoo") else get_external_models()
    )
    if name not in urls:
        raise CheckpointError(f"{filename}: no such model; there are {_listing(urls)}")
    return read_checkpoint(urls[name], map_location)


def load_from_elsewhere(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Refuse the schemes whose MMEngine loaders unpickle without restriction."""
    raise CheckpointError(
        f"{filename}: download the file and give its path; only paths and http(s) "
        "URLs are read safely"
    )


def make_mmengine_safe() -> None:
    """Put `read_checkpoint` under everything in MMEngine that reads a checkpoint."""
    register = CheckpointLoader.register_scheme
    register(["", "http://", "https://"], load_from_file, force=True)
    register(
        ["torchvision://", "modelzoo://", "open-mmlab://", "openmmlab://"],
        load_from_zoo,
        force=True,
    )
    register(
        ["pavi://", r"(\S+\:)?s3://", r"(\S+\:)?petrel://", "mmcls://"],
        load_from_elsewhere,
        force=True,
    )


# ----------------------------------------------------------------------- writing a clean one


def convert_checkpoint(
    source: str | os.PathLike, target: str | os.PathLike, ema: bool = True
) -> str:
    """Write the weights of a checkpoint, and nothing else, to a file of their own.

    Args:
        source: see `read_checkpoint`; an FCViT, alone or as backbone of a whole model.
        target: `.pth` or `.safetensors`; written as a whole or not at all.
        ema: see `select_weights`.

    Returns:
        A line with arch, number of tensors and SHA-256.

    Raises:
        CheckpointError: unreadable source, not an FCViT, another ending of the target, or a
            target that can't be written.
    """
    target = Path(target)
    if target.suffix not in (".pth", ".safetensors"):
        raise CheckpointError(f"{target} must end in .pth or .safetensors")
    if not target.parent.is_dir():
        raise CheckpointError(f"{target}: there is no directory {target.parent}; make it first")
    _, weights = select_weights(read_checkpoint(source), str(source), ema)
    arguments = infer_arguments(backbone_weights(weights, None))
    if arguments is None:
        raise CheckpointError(f"{source} does not hold an FCViT; its keys are {_listing(weights)}")
    # A tensor may be a view of a larger storage, which would be written whole.
    weights = {key: value.detach().clone().contiguous() for key, value in weights.items()}
    try:
        with whole_file(target) as partial:
            if target.suffix == ".pth":
                torch.save(weights, partial)
            else:
                # not save_file, whose files only their owner can read
                metadata = {"format": "pt", SEAL: UNSEALED}
                partial.write_bytes(seal(safetensors.torch.save(weights, metadata)))
    except OSError as error:
        raise CheckpointError(f"{target} can't be written: {error}") from error
    return f"{target}: FCViT {arguments['arch']}, {len(weights)} tensors, SHA-256 {sha256(target)}"
