"""The products of a global context: heads of a map with one token per image, and back.

Each is one matrix product, so that nothing of the map's size is written but the output: for all
heads at once, or on a GPU head by head, where building the matrix takes longer than it saves.
"""

from contextlib import nullcontext

import torch
from torch import Tensor

from .cpu import is_transformed


def mean_over_positions(x: Tensor) -> Tensor:
    """Average a map: (B, d, H, W) -> (B, d), float32 at least."""
    # a sum's gradient, other than a mean's, is not written out over all positions
    total = x.sum((2, 3), dtype=sum_dtype(x))
    return total / (x.shape[2] * x.shape[3])


def sum_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which sums over maps are taken: float32 at least."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _is_channels_last(x: Tensor) -> bool:
    return not is_transformed() and x.is_contiguous(memory_format=torch.channels_last)


def is_by_head(x: Tensor) -> bool:
    """Tell whether heads are taken one by one: on a GPU, where their channels lie side by side."""
    return x.is_cuda and not _is_channels_last(x)


def _is_autocast(x: Tensor) -> bool:
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """Split tokens by head, as rows of a matrix: (B, d) -> (B, h, d), zero outside of a head."""
    own = torch.eye(heads, dtype=tokens.dtype, device=tokens.device)
    return tokens[:, None] * own.repeat_interleave(tokens.shape[1] // heads, dim=1)


def inner_products(x: Tensor, token: Tensor, *, heads: int, scale: float = 1.0) -> Tensor:
    """Multiply each position of x with its image's token, head by head, and with `scale`.

    x (B, d, H, W), token (B, d) -> (B, h, H, W), float32 at least; h divides d.
    """
    # NOTE: half precision overflows here, and loses the digits in which positions differ.
    dtype = sum_dtype(x)
    with torch.autocast(x.device.type, enabled=False) if _is_autocast(x) else nullcontext():
        token, maps = token.to(dtype) * scale, x.to(dtype).flatten(2)  # (B, d), (B, d, N)
        if is_by_head(x):
            by_head = x.shape[0] * heads, x.shape[1] // heads
            products = token.reshape(*by_head, 1).mT @ maps.reshape(*by_head, maps.shape[2])
            return products.reshape(x.shape[0], heads, *x.shape[2:])
        products = split_heads(token, heads) @ maps  # (B, h, N)
    return products.unflatten(2, x.shape[2:])


def add_weighted(x: Tensor, *, weights: Tensor, token: Tensor) -> Tensor:
    """Add its image's token to each position of x, head by head with a weight of its own.

        out[b, c, y, z] = x[b, c, y, z] + weights[b, head of c, y, z] * token[b, c]

    x (B, d, H, W), weights (B, h, H, W), token (B, d) -> (B, d, H, W).
    """
    maps, factors, heads = x.flatten(2), weights.flatten(2), weights.shape[1]  # (B, d or h, N)
    if not _is_autocast(x):  # which rounds all three to its dtype
        token, factors = token.to(x.dtype), factors.to(x.dtype)
    if is_by_head(x):
        by_head = x.shape[0] * heads, x.shape[1] // heads
        out = torch.baddbmm(
            maps.reshape(*by_head, maps.shape[2]),
            token.reshape(*by_head, 1),
            factors.reshape(by_head[0], 1, maps.shape[2]),
        )
        return out.reshape(x.shape)
    tokens = split_heads(token, heads)  # (B, h, d)
    # a product keeps no memory format: it is written in the order that the next layer reads
    if _is_channels_last(x):
        out = torch.baddbmm(maps.mT, factors.mT, tokens)  # (B, N, d)
        return out.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
    return torch.baddbmm(maps, tokens.mT, factors).unflatten(2, x.shape[2:])
