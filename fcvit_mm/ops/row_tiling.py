"""Layers applied to some rows of an image at a time: what is between them stays in the cache.

On a CPU the hidden channels of a mixer, up to eight times those of its input, do not fit into the
cache: writing and reading them takes longer than computing them. `in_strips` runs a chain of layers
strip by strip. Its backward pass computes each strip anew from the input, the only tensor that is
kept for it.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

# Of hidden channels in a strip; what has less is left whole. Measured for FCViT-s12: smaller strips
# lose more to their neighboring rows, which are computed twice, larger ones fall out of the cache.
PREDICTION_BYTES = 6 * 2**20
# In training each strip is computed twice, which is as fast only where the alternative is to go
# through memory again and again.
TRAINING_BYTES = 24 * 2**20

# (rows of images (n, d, rows, W), how many of them above and below are mere neighbors)
# -> (n, d, rows without neighbors, W)
Chain = Callable[[Tensor, int, int], Tensor]


class _Strip(NamedTuple):
    """Rows of images: those to compute, and those that are needed for it."""

    images: slice
    rows: slice
    wide: slice

    def of(self, x: Tensor) -> Tensor:
        return x[self.images, :, self.rows]

    def wide_of(self, x: Tensor) -> Tensor:
        return x[self.images, :, self.wide]

    @property
    def neighbors(self) -> tuple[int, int]:
        return self.rows.start - self.wide.start, self.wide.stop - self.rows.stop


def _strip_bytes() -> int:
    return TRAINING_BYTES if torch.is_grad_enabled() else PREDICTION_BYTES


def _strips(x: Tensor, hidden: int, halo: int, strip_bytes: int) -> Iterator[_Strip]:
    images, _, height, width = x.shape
    row = width * hidden * x.element_size()
    several = max(1, strip_bytes // (row * height))
    rows = math.ceil(height / math.ceil(height * row / strip_bytes))
    for first in range(0, images, several):
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            yield _Strip(
                slice(first, first + several),
                slice(top, bottom),
                slice(max(top - halo, 0), min(bottom + halo, height)),
            )


class _InStrips(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, chain: Chain, cut: tuple[int, int, int], x: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.chain, ctx.cut = chain, cut
        ctx.save_for_backward(x, *parameters)
        out = torch.empty_like(x)
        for strip in _strips(x, *cut):
            strip.of(out).copy_(chain(strip.wide_of(x), *strip.neighbors))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, *parameters = ctx.saved_tensors
        wanted = [parameter for parameter in parameters if parameter.requires_grad]
        totals = [torch.zeros_like(parameter) for parameter in wanted]
        grad_x = torch.zeros_like(x)
        for strip in _strips(x, *ctx.cut):
            part = strip.wide_of(x).detach().requires_grad_()
            with torch.enable_grad():
                out = ctx.chain(part, *strip.neighbors)
            of_x, *of_parameters = torch.autograd.grad(out, (part, *wanted), strip.of(grad))
            strip.wide_of(grad_x).add_(of_x)
            for total, of_parameter in zip(totals, of_parameters, strict=True):
                total += of_parameter
        found = iter(totals)
        grads = (next(found) if parameter.requires_grad else None for parameter in parameters)
        return None, None, grad_x, *grads


class _WithoutNeighbours(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, above: int, below: int) -> Tensor:
        ctx.neighbors = above, below
        return x[:, :, above : x.shape[2] - below]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        # a slice's own gradient is contiguous, and is written a second time for it
        return F.pad(grad, (0, 0, *ctx.neighbors)), None, None


def without_neighbours(x: Tensor, above: int, below: int) -> Tensor:
    """The rows of a strip itself, (n, d, rows + above + below, W) -> (n, d, rows, W), a view."""
    return _WithoutNeighbours.apply(x, above, below) if above or below else x


def in_strips(
    chain: Chain, x: Tensor, parameters: Iterable[Tensor], hidden: int, halo: int = 0
) -> Tensor:
    """Apply a chain of layers to some rows at a time; see the module's head.

    Args:
        chain: maps rows (n, d, rows, W) and the numbers of neighboring rows among them, above and
            below, to (n, d, rows without neighbors, W). It is called anew in the backward pass,
            so it must not draw random numbers.
        x: (B, d, H, W), in channels_last.
        parameters: all tensors with gradients that the chain uses.
        hidden: the most channels between two layers of the chain.
        halo: how many rows above and below a row its result depends on.

    Returns:
        (B, d, H, W), in channels_last.
    """
    return _InStrips.apply(chain, (hidden, halo, _strip_bytes()), x, *parameters)


def runs_on_cpu(x: Tensor) -> bool:
    """Whether layers run on x as they are called: on a CPU, in full precision, one by one.

    Where a graph is made of them, for a compiler or for export, they stay PyTorch's.
    """
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
    )


def pay(x: Tensor, hidden: int) -> bool:
    """Whether strips pay: on a CPU, in channels_last, for large tensors.

    Args:
        x: (B, d, H, W).
        hidden: as in `in_strips`.
    """
    return (
        runs_on_cpu(x)
        and x.is_contiguous(memory_format=torch.channels_last)
        and x[:, 0].numel() * hidden * x.element_size() > _strip_bytes()
    )
