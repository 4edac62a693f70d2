"""Find an FCViT's weights in a checkpoint, translate their keys, and load them completely."""

import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..checkpoint.downloads import RELEASED, is_released
from ..checkpoint.mmengine_backends import find_address
from ..checkpoint.reader import fetch, find_weights, is_url, listing, read_weights
from ..utils.errors import CheckpointError
from ..utils.files import SHA256_KEY, SHA256_PLACEHOLDER, atomic_write, embed_sha256, sha256
from .arch import ALIASES, ARCHS, Arch

# The ImageNet weights, by arch.
RELEASED_WEIGHTS = {arch: RELEASED[f"fcvit_{arch}_in1k"] for arch in ARCHS}
# What the backbone may lack in a file, and what a file may hold beyond the backbone: norms of other
# outputs than this backbone has, a classifier's norm and head.
OUTPUT_NORM = re.compile(r"norm[0246]\.")
BEYOND = re.compile(r"(norm[0246]?|head)\.")
# A released classifier's keys in MMPretrain's ImageClassifier: the classifier's norm is the output
# norm of stage 4, all that is in neither row is the backbone's.
CLASSIFIER_KEYS = {"norm.": "backbone.norm6.", "head.": "head.fc."}
# By this tensor an FCViT is found under whatever prefix.
STEM = "patch_embed.proj.weight"


def classifier_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a released classifier's state dict the keys of MMPretrain's ImageClassifier.

    Any other state dict is returned as it is: in a released one the backbone's keys have no prefix.
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
    """Find the weights in a checkpoint, by the names of a whole model with state dict `wanted`."""
    _, given = find_weights(checkpoint)
    # a classifier translates them likewise when it loads them, see `FCViT._checkpoint_filter`
    return classifier_weights(given) if "head.fc.weight" in wanted else given


def backbone_weights(weights: Mapping[str, Tensor], prefix: str | None) -> dict[str, Tensor]:
    """Cut the backbone out of a whole model's weights; without a prefix, by `backbone.` if any."""
    if prefix is None:
        prefix = "backbone." if any(key.startswith("backbone.") for key in weights) else ""
    return {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}


def check_exists(checkpoint: str | os.PathLike, arch: Any = None) -> None:
    """Make sure that a file of pretrained weights is there; download what is to be downloaded.

    Args:
        checkpoint: path, URL or name.
        arch: of the backbone; None: as the name of the file says.

    Raises:
        CheckpointError: it is not; says where to get the released weights.
    """
    name = str(checkpoint)
    if is_url(name) or is_released(name):
        fetch(find_address(name))
        return
    if Path(name).expanduser().is_file():
        return
    if arch is None:
        names = "|".join([*ARCHS, *ALIASES])
        arch = "".join(re.findall(names, Path(checkpoint).name)[:1])
    arch = ALIASES.get(arch, arch) if isinstance(arch, str) else None
    source = (
        f" fcvit download {arch} --out {name} gets FCViT-{arch} from {RELEASED_WEIGHTS[arch]}."
        if arch in RELEASED_WEIGHTS
        else ""
    )
    raise CheckpointError(f"the pretrained weights {checkpoint} do not exist.{source}")


def infer_arguments(weights: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Infer arch (a name of ARCHS, or else a dict), kernel_size, global_context, weighted_context.

    None if the weights are no FCViT's.
    """
    layers, dims, ratios = [], [], []
    for stage in range(0, 8, 2):
        first = weights.get(f"network.{stage}.0.channel_mixer.fc1.weight")
        if first is None or first.ndim != 4 or not first.shape[1]:
            return None
        blocks = {key.split(".")[2] for key in weights if key.startswith(f"network.{stage}.")}
        layers.append(len(blocks))
        dims.append(first.shape[1])
        ratios.append(first.shape[0] // first.shape[1])
    arch = Arch(tuple(layers), tuple(dims), tuple(ratios))
    names = [name for name, known in ARCHS.items() if known == arch]
    mixer = "network.0.0.token_mixer."
    sizes = [weights[key].shape[-1] for i in "12" if (key := f"{mixer}dw{i}.weight") in weights]
    if len(sizes) < 2:
        return None
    has_context = f"{mixer}gc1.fc1.weight" in weights
    return {
        "arch": names[0] if names else arch._asdict(),
        "kernel_size": tuple(sizes),
        "global_context": has_context,
        "weighted_context": not has_context or f"{mixer}gc1.rescale_weight" in weights,
    }


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
    lack them) and then keep their initialization; a classifier's own norm and head are left out.

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
    container, weights = read_weights(filename, ema, map_location)
    found = backbone_weights(weights, prefix)
    wanted = backbone.state_dict()
    given = {key: v for key, v in found.items() if key in wanted or not BEYOND.match(key)}
    kept = sorted(key for key in wanted.keys() - given.keys() if OUTPUT_NORM.match(key))
    source = filename
    if len(found) < len(weights):
        source += " (the backbone of a detector, segmentor or classifier)"
    check_fit(source, given, {key: v for key, v in wanted.items() if key not in kept})
    backbone.load_state_dict(given, strict=False)
    rest = f"; {len(kept)} tensors of the output norms keep their initialization" if kept else ""
    source = f"{container} of {filename}, SHA-256 {sha256(fetch(filename))}"
    print_log(f"FCViT: loaded {len(given)} tensors from {source}{rest}", logger="current")


def _misfits(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Say in one sentence each what is missing, unexpected or misshapen; '' if nothing is."""

    def differing(feature: Callable[[Tensor], Any], text: Callable[[Tensor], Any]) -> list[str]:
        return [
            f"{key} ({text(given[key])} in the file, {text(wanted[key])} in the model)"
            for key in wanted.keys() & given.keys()
            if feature(given[key]) != feature(wanted[key])
        ]

    kinds = {
        "missing": wanted.keys() - given.keys(),
        "unexpected": given.keys() - wanted.keys(),
        "of another shape": differing(lambda x: x.shape, lambda x: tuple(x.shape)),
        "of another type": differing(Tensor.is_floating_point, lambda x: x.dtype),
    }
    return " ".join(
        f"{len(found)} {kind}: {listing(found)}." for kind, found in kinds.items() if found
    )


def check_fit(filename: str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Compare a file's state dict with a model's; each a whole model or an FCViT alone.

    Warns of values that are NaN or infinite.

    Raises:
        CheckpointError: keys or shapes differ; says what the file seems to be, what to set, and
            which tensors are missing, unexpected or of another shape.
    """
    if not (problems := _misfits(given, wanted)):
        if found := [key for key, value in given.items() if not value.isfinite().all()]:
            print_log(
                f"{filename}: NaN or infinite values in {len(found)} tensors: {listing(found)}; "
                "the file is damaged, or its training diverged",
                logger="current",
                level=logging.WARNING,
            )
        return
    theirs, ours = (infer_arguments(backbone_weights(w, None)) for w in (given, wanted))
    parts, wanted_parts = (sorted({key.split(".")[0] for key in w}) for w in (given, wanted))
    if theirs is None or ours is None:
        prefixes = {key.removesuffix(STEM) for key in given if key.endswith(STEM)}
        prefixes -= {"", "backbone."}
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
    elif "backbone" in parts and parts != wanted_parts:
        seems = (
            f"the same FCViT in a model of other parts, {', '.join(parts)}, where this one has "
            f"{', '.join(wanted_parts)} (take the config that it was trained with)"
        )
    else:
        seems = "the same FCViT, but for the tensors that follow; compare the rest of the config"
    raise CheckpointError(f"{filename} does not fit the model: it seems to be {seems}. {problems}")


def convert_checkpoint(
    source: str | os.PathLike, target: str | os.PathLike, ema: bool = True
) -> str:
    """Write the weights of a checkpoint, and nothing else, to a file of their own.

    Args:
        source: see `read_checkpoint`; an FCViT, alone or as backbone of a whole model.
        target: `.pth` or `.safetensors`; written as a whole or not at all.
        ema: take averaged weights where the file has them.

    Returns:
        A line with arch, number of tensors and SHA-256.

    Raises:
        CheckpointError: unreadable source, not an FCViT, or a target that can't be written.
    """
    target = Path(target)
    if target.suffix not in (".pth", ".safetensors"):
        raise CheckpointError(f"{target} must end in .pth or .safetensors")
    _, weights = read_weights(source, ema)
    arguments = infer_arguments(backbone_weights(weights, None))
    if arguments is None:
        raise CheckpointError(f"{source} does not hold an FCViT; its keys are {listing(weights)}")
    write_weights(weights, target)
    return f"{target}: FCViT {arguments['arch']}, {len(weights)} tensors, SHA-256 {sha256(target)}"


def write_weights(weights: Mapping[str, Tensor], target: Path) -> None:
    """Write weights to `.pth`, or to `.safetensors` with a SHA-256 in it, as a whole or not at all.

    Raises:
        CheckpointError: the file can't be written.
    """
    # A tensor may be a view of a larger storage, which would be written whole.
    weights = {key: value.detach().clone().contiguous() for key, value in weights.items()}
    try:
        with atomic_write(target) as partial:
            if target.suffix == ".pth":
                torch.save(weights, partial)
            else:
                # not save_file, whose files only their owner can read
                metadata = {"format": "pt", SHA256_KEY: SHA256_PLACEHOLDER}
                partial.write_bytes(embed_sha256(safetensors.torch.save(weights, metadata)))
    except OSError as error:
        raise CheckpointError(f"{target} can't be written: {error}") from error
