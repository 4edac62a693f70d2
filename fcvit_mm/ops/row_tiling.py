"""Run layers on some rows of a map at a time, so that what is between them stays in the cache.

On a CPU the hidden channels of a mixer do not fit into the cache: writing and reading them takes
longer than computing them. The backward pass computes each tile anew from the chain's input, the
only tensor that is kept for it.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

from .cpu import runs_on_cpu

# Size of the hidden channels in a tile. Measured for FCViT-s12: smaller tiles lose more to their
# halo rows, which are computed twice, larger ones fall out of the cache. In training each tile is
# computed twice, which is as fast only where hidden channels are far larger than the cache.
PREDICTION_BYTES, TRAINING_BYTES = 6 * 2**20, 24 * 2**20
# How many rows above and below a tile are there only because the tile's own rows depend on them.
Halo = tuple[int, int]
# (rows of maps with their halo (n, d, above + rows + below, W), halo) -> (n, d, rows, W)
Chain = Callable[[Tensor, Halo], Tensor]


class _Tile(NamedTuple):
    """Indices into maps (B, d, H, W): of a tile's own rows, and of the same with their halo."""

    own: tuple[slice, ...]
    with_halo: tuple[slice, ...]
    halo: Halo


def _tile_bytes() -> int:
    return TRAINING_BYTES if torch.is_grad_enabled() else PREDICTION_BYTES


def _tiles(x: Tensor, hidden_channels: int, halo_rows: int, tile_bytes: int) -> Iterator[_Tile]:
    images, _, height, width = x.shape
    row_bytes = width * hidden_channels * x.element_size()
    images_per_tile = max(1, tile_bytes // (row_bytes * height))
    rows_per_tile = math.ceil(height / math.ceil(height * row_bytes / tile_bytes))
    for first in range(0, images, images_per_tile):
        some = slice(first, first + images_per_tile), slice(None)
        for top in range(0, height, rows_per_tile):
            bottom = min(top + rows_per_tile, height)
            above, below = min(halo_rows, top), min(halo_rows, height - bottom)
            with_halo = slice(top - above, bottom + below)
            yield _Tile((*some, slice(top, bottom)), (*some, with_halo), (above, below))


class _RowTiles(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, chain: Chain, cut: tuple[int, int, int], x: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.chain, ctx.cut = chain, cut
        ctx.save_for_backward(x, *parameters)
        out = torch.empty_like(x)
        for tile in _tiles(x, *cut):
            out[tile.own] = chain(x[tile.with_halo], tile.halo)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, *parameters = ctx.saved_tensors
        totals = {each: torch.zeros_like(each) for each in parameters if each.requires_grad}
        grad_x = torch.zeros_like(x)
        for tile in _tiles(x, *ctx.cut):
            part = x[tile.with_halo].detach().requires_grad_()
            with torch.enable_grad():
                out = ctx.chain(part, tile.halo)
            grad_part, *grads = torch.autograd.grad(out, (part, *totals), grad[tile.own])
            grad_x[tile.with_halo] += grad_part
            for total, of_tile in zip(totals.values(), grads, strict=True):
                total += of_tile
        return None, None, grad_x, *map(totals.get, parameters)


class _WithoutHalo(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, halo: Halo) -> Tensor:
        ctx.halo = above, below = halo
        return x[:, :, above : x.shape[2] - below]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # a slice's own gradient is contiguous, and is written a second time for it
        return F.pad(grad, (0, 0, *ctx.halo)), None


def without_halo(x: Tensor, halo: Halo) -> Tensor:
    """Cut a tile's halo rows off: (n, d, above + rows + below, W) -> (n, d, rows, W), a view."""
    return _WithoutHalo.apply(x, halo) if any(halo) else x


def apply_in_row_tiles(
    chain: Chain,
    x: Tensor,
    *,
    parameters: Iterable[Tensor],
    hidden_channels: int,
    halo_rows: int = 0,
    repeatable: bool = True,
) -> Tensor:
    """Apply a chain of layers to x, some rows at a time where that is faster.

    Args:
        chain: maps rows with their halo to the same rows without it, see `Chain`. Tiles call it
            anew in the backward pass.
        x: (B, d, H, W).
        parameters: all tensors with gradients that the chain uses, in any order.
        hidden_channels: the most channels between two layers of the chain.
        halo_rows: how many rows above and below a row its result depends on.
        repeatable: False where the chain draws random numbers: it is applied to x as a whole.

    Returns:
        (B, d, H, W).
    """
    if not (repeatable and should_tile(x, hidden_channels)):
        return chain(x, (0, 0))
    return _RowTiles.apply(chain, (hidden_channels, halo_rows, _tile_bytes()), x, *parameters)


def should_tile(x: Tensor, hidden_channels: int) -> bool:
    """Tell whether tiles are faster: on a CPU, in channels_last, for more than one tile."""
    return (
        runs_on_cpu(x)
        and x.is_contiguous(memory_format=torch.channels_last)
        and x[:, 0].numel() * hidden_channels * x.element_size() > _tile_bytes()
    )
