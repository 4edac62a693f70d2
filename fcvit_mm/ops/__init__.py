"""How a layer is run fast; nothing here knows FCViT's architecture.

What layers call on any device is named here; `triton` is what runs on a GPU where it is asked for.
"""

import torch.fx

from .depthwise_conv import depthwise_conv2d
from .global_context import add_weighted, inner_products, mean_over_positions, split_heads
from .group_norm import group_norm
from .memory_format import for_heads, for_layers
from .row_tiling import Halo, apply_in_row_tiles, gelu, has_hook, without_halo

__all__ = [
    "Halo",
    "add_weighted",
    "apply_in_row_tiles",
    "depthwise_conv2d",
    "for_heads",
    "for_layers",
    "gelu",
    "group_norm",
    "has_hook",
    "inner_products",
    "mean_over_positions",
    "split_heads",
    "without_halo",
]

# torch.fx calls these as they are: what they run depends on the tensors that it does not have
for _name in (
    "add_weighted",
    "depthwise_conv2d",
    "for_heads",
    "for_layers",
    "group_norm",
    "inner_products",
    "mean_over_positions",
):
    torch.fx.wrap(_name)
