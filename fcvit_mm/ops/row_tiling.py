"""Run layers on some rows of a map at a time, so that what is between them stays in the cache.

On a CPU the hidden channels of a mixer do not fit into the cache: writing and reading them takes
longer than computing them. The backward pass computes each tile anew from the chain's input, the
only tensor that is kept for it.
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.func import functional_call

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


class _State(threading.local):
    # whether a chain is at work whose maps nobody else sees
    unseen = False


_state = _State()


def gelu(x: Tensor) -> Tensor:
    """Compute GELU; in place in a chain's prediction where nobody sees x, which saves memory."""
    if torch.is_grad_enabled() or not (runs_on_cpu(x) and _state.unseen):
        return F.gelu(x)
    return torch.ops.aten.gelu_(x)


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


class _Layers(nn.Module):
    """A chain as a module, so that it can be run with the parameters that the forward pass had.

    Those of its module are others by then under torch.func.functional_call.
    """

    def __init__(self, chain: Chain, module: nn.Module) -> None:
        super().__init__()
        self.chain, self.module = chain, module

    def forward(self, rows: Tensor, halo: Halo) -> Tensor:
        return self.chain(rows, halo)

    def run(self, parameters: Sequence[Tensor], rows: Tensor, halo: Halo = (0, 0)) -> Tensor:
        names = (name for name, _ in self.named_parameters())
        with torch.enable_grad():
            return functional_call(self, dict(zip(names, parameters, strict=True)), (rows, halo))


class _RowTiles(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layers: _Layers, cut: tuple[int, int, int], x: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.layers, ctx.cut = layers, cut
        ctx.save_for_backward(x, *parameters)
        out = torch.empty_like(x)
        for tile in _tiles(x, *cut):
            out[tile.own] = layers.chain(x[tile.with_halo], tile.halo)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, *parameters = ctx.saved_tensors
        needs_x, *needs = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():  # create_graph: PyTorch's gradients, which have their own
            # of views, as x may come from the same parameters
            inputs = [each.view_as(each) for each in (x, *parameters)]
            wanted = [each for each, need in zip(inputs, (needs_x, *needs), strict=True) if need]
            out = ctx.layers.run(inputs[1:], inputs[0])
            found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
            return None, None, *(next(found) if need else None for need in (needs_x, *needs))
        leaves = [
            each.detach().requires_grad_(need) for each, need in zip(parameters, needs, strict=True)
        ]
        totals = {each: torch.zeros_like(each) for each in leaves if each.requires_grad}
        grad_x = torch.zeros_like(x)
        for tile in _tiles(x, *ctx.cut):
            part = x[tile.with_halo].detach().requires_grad_()
            out = ctx.layers.run(leaves, part, tile.halo)
            grad_part, *grads = torch.autograd.grad(out, (part, *totals), grad[tile.own])
            grad_x[tile.with_halo] += grad_part
            for total, of_tile in zip(totals.values(), grads, strict=True):
                total += of_tile
        return None, None, grad_x, *map(totals.get, leaves)


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
    module: nn.Module,
    hidden_channels: int,
    halo_rows: int = 0,
    repeatable: bool = True,
) -> Tensor:
    """Apply a chain of layers to x, some rows at a time where that is faster.

    Args:
        chain: maps rows with their halo to the same rows without it, see `Chain`. Tiles call it
            anew in the backward pass.
        x: (B, d, H, W).
        module: holds the chain's layers, and with them all parameters that it uses.
        hidden_channels: the most channels between two layers of the chain.
        halo_rows: how many rows above and below a row its result depends on.
        repeatable: False where the chain draws random numbers: it is applied to x as a whole.

    Returns:
        (B, d, H, W).
    """
    # hooks want whole maps
    if not runs_on_cpu(x) or any(has_hook(each) for each in module.modules() if each is not module):
        return chain(x, (0, 0))
    _state.unseen = True
    try:
        if not (repeatable and should_tile(x, hidden_channels)):
            return chain(x, (0, 0))
        cut = hidden_channels, halo_rows, _tile_bytes()
        return _RowTiles.apply(_Layers(chain, module), cut, x, *module.parameters())
    finally:
        _state.unseen = False


def has_hook(module: nn.Module) -> bool:
    """Tell whether a hook sees what a module is called with, or gives."""
    kinds = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
    return nn.modules.module._has_any_global_hook() or any(getattr(module, kind) for kind in kinds)


def should_tile(x: Tensor, hidden_channels: int) -> bool:
    """Tell whether tiles are faster: on a CPU, in channels_last, for more than one tile."""
    return (
        runs_on_cpu(x)
        and x.is_contiguous(memory_format=torch.channels_last)
        and x[:, 0].numel() * hidden_channels * x.element_size() > _tile_bytes()
    )
