"""How a layer is run fast; nothing here knows FCViT's architecture.

What layers call on any device is named here; `triton` is what runs on a GPU where it is asked for.
"""

from .cpu import gelu
from .depthwise_conv import depthwise_conv2d
from .global_context import add_weighted, inner_products, mean_over_positions, split_heads
from .group_norm import group_norm
from .row_tiling import Halo, apply_in_row_tiles, without_halo

__all__ = [
    "Halo",
    "add_weighted",
    "apply_in_row_tiles",
    "depthwise_conv2d",
    "gelu",
    "group_norm",
    "inner_products",
    "mean_over_positions",
    "split_heads",
    "without_halo",
]
