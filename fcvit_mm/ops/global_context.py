"""The products of a global context: heads of a map with one token per image, and back.

Each is one matrix product for all heads, so that nothing of the map's size is written but the
output.
"""

from contextlib import nullcontext

import torch
from torch import Tensor

from .cpu import is_transformed


def mean_over_positions(x: Tensor) -> Tensor:
    """Average a map: (B, d, H, W) -> (B, d), summed in float32 at least."""
    # a sum's gradient, other than a mean's, is not written out over all positions
    total = x.sum((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))
    return (total / (x.shape[2] * x.shape[3])).to(x.dtype)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """Split tokens by head, as rows of a matrix: (B, d) -> (B, h, d), zero outside of a head."""
    own = torch.eye(heads, dtype=tokens.dtype, device=tokens.device)
    return tokens[:, None] * own.repeat_interleave(tokens.shape[1] // heads, dim=1)


def inner_products(x: Tensor, token: Tensor, *, heads: int, scale: float = 1.0) -> Tensor:
    """Multiply each position of x with its image's token, head by head, and with `scale`.

    x (B, d, H, W), token (B, d) -> (B, h, H, W), float32 at least; h divides d.
    """
    # NOTE: half precision overflows here, and loses the digits in which positions differ.
    dtype = torch.promote_types(x.dtype, torch.float32)
    on_meta = x.device.type == "meta"  # which autocast refuses
    with nullcontext() if on_meta else torch.autocast(x.device.type, enabled=False):
        tokens = split_heads(token.to(dtype) * scale, heads)  # (B, h, d)
        products = tokens @ x.to(dtype).flatten(2)  # (B, h, N)
    return products.unflatten(2, x.shape[2:])


def add_weighted(x: Tensor, *, weights: Tensor, token: Tensor) -> Tensor:
    """Add its image's token to each position of x, head by head with a weight of its own.

        out[b, c, y, z] = x[b, c, y, z] + weights[b, head of c, y, z] * token[b, c]

    x (B, d, H, W), weights (B, h, H, W), token (B, d) -> (B, d, H, W).
    """
    factors = weights.to(x.dtype).flatten(2)  # (B, h, N)
    tokens = split_heads(token.to(x.dtype), weights.shape[1])  # (B, h, d)
    maps = x.flatten(2)  # (B, d, N)
    # a product keeps no memory format: it is written in the order that the next layer reads
    if not is_transformed() and x.is_contiguous(memory_format=torch.channels_last):
        out = torch.baddbmm(maps.mT, factors.mT, tokens)  # (B, N, d)
        return out.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
    return torch.baddbmm(maps, tokens.mT, factors).unflatten(2, x.shape[2:])
