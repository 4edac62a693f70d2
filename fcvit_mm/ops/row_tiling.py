"""Run layers on some rows of a map at a time, so that what is between them stays in the cache.

On a CPU the hidden channels of a mixer, up to eight times those of its input, do not fit into the
cache: writing and reading them takes longer than computing them. `apply_in_row_tiles` runs a chain
of layers tile by tile. Its backward pass computes each tile anew from the chain's input, the only
tensor that is kept for it.
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
# halo rows, which are computed twice, larger ones fall out of the cache.
PREDICTION_BYTES = 6 * 2**20
# In training each tile is computed twice, which is as fast only where hidden channels are far
# larger than the cache.
TRAINING_BYTES = 24 * 2**20

# How many rows above and below a tile are there only because the tile's own rows depend on them.
Halo = tuple[int, int]
# (rows of maps with their halo (n, d, above + rows + below, W), halo) -> (n, d, rows, W)
Chain = Callable[[Tensor, Halo], Tensor]


class _Tile(NamedTuple):
    """Which images and rows to compute, and the same rows with their halo."""

    images: slice
    rows: slice
    rows_with_halo: slice

    def of(self, x: Tensor) -> Tensor:
        return x[self.images, :, self.rows]

    def with_halo_of(self, x: Tensor) -> Tensor:
        return x[self.images, :, self.rows_with_halo]

    @property
    def halo(self) -> Halo:
        return (
            self.rows.start - self.rows_with_halo.start,
            self.rows_with_halo.stop - self.rows.stop,
        )


def _tile_bytes() -> int:
    return TRAINING_BYTES if torch.is_grad_enabled() else PREDICTION_BYTES


def _tiles(x: Tensor, hidden_channels: int, halo_rows: int, tile_bytes: int) -> Iterator[_Tile]:
    images, _, height, width = x.shape
    row_bytes = width * hidden_channels * x.element_size()
    images_per_tile = max(1, tile_bytes // (row_bytes * height))
    rows_per_tile = math.ceil(height / math.ceil(height * row_bytes / tile_bytes))
    for first in range(0, images, images_per_tile):
        for top in range(0, height, rows_per_tile):
            bottom = min(top + rows_per_tile, height)
            yield _Tile(
                slice(first, first + images_per_tile),
                slice(top, bottom),
                slice(max(top - halo_rows, 0), min(bottom + halo_rows, height)),
            )


class _RowTiles(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, chain: Chain, cut: tuple[int, int, int], x: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.chain, ctx.cut = chain, cut
        ctx.save_for_backward(x, *parameters)
        out = torch.empty_like(x)
        for tile in _tiles(x, *cut):
            tile.of(out).copy_(chain(tile.with_halo_of(x), tile.halo))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, *parameters = ctx.saved_tensors
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        totals = [torch.zeros_like(parameter) for parameter in trained]
        grad_x = torch.zeros_like(x)
        for tile in _tiles(x, *ctx.cut):
            part = tile.with_halo_of(x).detach().requires_grad_()
            with torch.enable_grad():
                out = ctx.chain(part, tile.halo)
            grad_part, *grads = torch.autograd.grad(out, (part, *trained), tile.of(grad))
            tile.with_halo_of(grad_x).add_(grad_part)
            for total, of_tile in zip(totals, grads, strict=True):
                total += of_tile
        found = iter(totals)
        of_parameters = (next(found) if p.requires_grad else None for p in parameters)
        return None, None, grad_x, *of_parameters


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
    """Tell whether tiles are faster: on a CPU, in channels_last, for more than one tile.

    Args:
        x: (B, d, H, W).
        hidden_channels: as in `apply_in_row_tiles`.
    """
    return (
        runs_on_cpu(x)
        and x.is_contiguous(memory_format=torch.channels_last)
        and x[:, 0].numel() * hidden_channels * x.element_size() > _tile_bytes()
    )
