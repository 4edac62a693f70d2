"""The architectures of FCViT (paper: arXiv 2212.12552, table 1) and how a user names one."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

NUM_STAGES = 4
# of the global contexts; the released weights have one alpha and beta per head
NUM_HEADS = 8


class Arch(NamedTuple):
    """Blocks, channels and channel-mixer ratio of each of the four stages."""

    layers: tuple[int, ...]
    dims: tuple[int, ...]
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)


ARCHS = {
    "tiny": Arch((3, 3, 5, 2), (32, 64, 160, 320)),
    "s12": Arch((2, 2, 6, 2), (64, 128, 320, 512)),
    "s24": Arch((4, 4, 12, 4), (64, 128, 320, 512)),
    "s48": Arch((8, 8, 24, 8), (64, 128, 320, 512)),
}
# The paper says S12 in one place and B12 in others, the released files say b12: one model.
ALIASES = {"b12": "s12", "b24": "s24", "b48": "s48"}


def is_int(value: Any) -> bool:
    """Tell whether a value is an integer, which True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def get_arch(arch: str | dict) -> Arch:
    """Look up a name of ARCHS or ALIASES, or check a dict of layers, dims and mlp_ratios.

    Raises:
        TypeError: arch is neither a name nor a dict.
        ValueError: unknown name, wrong keys, not four positive integers per key, or channels that
            are not a multiple of the number of heads.
    """
    if isinstance(arch, str):
        name = ALIASES.get(arch, arch)
        if name not in ARCHS:
            names = [*ARCHS, *ALIASES]
            nearest = "".join(
                f". The nearest name is {near!r}" for near in get_close_matches(arch, names, n=1)
            )
            raise ValueError(
                f"arch={arch!r} is unknown; allowed are {', '.join(names)} or a dict of layers, "
                f"dims and mlp_ratios{nearest}."
            )
        return ARCHS[name]
    if not isinstance(arch, dict):
        raise TypeError(f"arch must be a name or a dict, not {arch!r}")
    if set(arch) != set(Arch._fields):
        raise ValueError(f"arch needs exactly the keys {list(Arch._fields)}, not {sorted(arch)}")
    for key, values in arch.items():
        is_four = isinstance(values, Sequence) and len(values) == NUM_STAGES
        if not (is_four and all(is_int(v) and v > 0 for v in values)):
            raise ValueError(f"arch[{key!r}] must be four positive integers, not {values!r}")
    if any(dim % NUM_HEADS for dim in arch["dims"]):
        raise ValueError(f"arch['dims'] must be multiples of {NUM_HEADS}, not {arch['dims']!r}")
    return Arch(**{key: tuple(values) for key, values in arch.items()})
