"""The products of a global context: heads of a map with one token per image, and back.

The inner products of all heads are one product of the map with a matrix (d, h), and the weighted
sum is one with a matrix (h, d), of which the addition is a part. So nothing of the map's size is
written but the output.
"""

from typing import Any

import torch
from torch import Tensor

from .cpu import runs_on_cpu


def mean_over_positions(x: Tensor) -> Tensor:
    """Average a map: (B, d, H, W) -> (B, d), summed in float32 at least."""
    # a sum's gradient, other than a mean's, is not written out over all positions
    total = x.sum((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))
    return (total / (x.shape[2] * x.shape[3])).to(x.dtype)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """Split tokens by head, as rows of a matrix: (B, d) -> (B, h, d), zero outside of a head."""
    own = torch.eye(heads, dtype=tokens.dtype, device=tokens.device)
    return tokens[:, None] * own.repeat_interleave(tokens.shape[1] // heads, dim=1)


class _InnerProducts(torch.autograd.Function):
    """(x (B, d, H, W), tokens (B, h, d)) -> x, and its inner products (B, h, N)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, tokens)
        return x.view_as(x), tokens @ x.flatten(2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_products: Tensor) -> tuple[Tensor, Tensor]:
        x, tokens = ctx.saved_tensors
        grad_x = torch.baddbmm(grad.flatten(2).mT, grad_products.mT, tokens)  # (B, N, d)
        return grad_x.mT.unflatten(2, x.shape[2:]), grad_products @ x.flatten(2).mT


def inner_products(
    x: Tensor, token: Tensor, *, heads: int, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Multiply each position of x with its image's token, head by head.

    Args:
        x: (B, d, H, W).
        token: (B, d).
        heads: h, a divisor of d.
        scale: factor of the products.

    Returns:
        x, to be used from here on: its whole gradient then arrives at once and is written once;
        the products (B, h, H, W), float32 at least.
    """
    # NOTE: half precision overflows here, and loses the digits in which positions differ.
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        tokens = split_heads(token.to(dtype) * scale, heads)
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        if torch.is_grad_enabled() and channels_last and runs_on_cpu(x):
            x, products = _InnerProducts.apply(x, tokens)
        else:
            products = tokens @ x.to(dtype).flatten(2)
    return x, products.unflatten(2, x.shape[2:])


def add_weighted(x: Tensor, *, weights: Tensor, token: Tensor) -> Tensor:
    """Add its image's token to each position of x, head by head with a weight of its own.

    Args:
        x: (B, d, H, W).
        weights: (B, h, H, W).
        token: (B, d).

    Returns:
        x[b, c, y, z] + weights[b, head of c, y, z] * token[b, c], (B, d, H, W).
    """
    factors = weights.to(x.dtype).flatten(2)  # (B, h, N)
    tokens = split_heads(token.to(x.dtype), weights.shape[1])  # (B, h, d)
    maps = x.flatten(2)  # (B, d, N)
    # a product keeps no memory format: it is written in the order that the next layer reads
    if x.is_contiguous(memory_format=torch.channels_last):
        out = torch.baddbmm(maps.mT, factors.mT, tokens)  # (B, N, d)
        return out.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
    return torch.baddbmm(maps, tokens.mT, factors).unflatten(2, x.shape[2:])
