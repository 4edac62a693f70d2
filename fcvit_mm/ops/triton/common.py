"""What all kernels share: compilation, launch, memory formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..global_context import sum_dtype

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for macOS and Windows comes without it
    triton = tl = None

# Elements of one program's tile, 16 for each of 128 threads.
TILE = 2048


def jit(kernel: Callable) -> Any:
    """The kernel, compiled when it is called; its sizes without a version for each value."""
    if triton is None:
        return kernel
    names = kernel.__code__.co_varnames[: kernel.__code__.co_argcount]
    # An image's sizes change from batch to batch: no version for multiples of 16, or for 1.
    sizes = [name for name in names if name in ("positions", "height", "width", "groups")]
    return triton.jit(kernel, do_not_specialize=sizes)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return not isinstance(gelu_share, triton.JITFunction)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run a kernel on the device of its first argument, on its current stream."""
    # Triton launches on the current device, torch's operators on that of their tensors.
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, **constants)


def is_channels_last(x: Tensor) -> bool:
    return x.stride(1) < x.stride(3)


def dense(x: Tensor, channels_last: bool) -> Tensor:
    """x itself where it has this layout without gaps, else a copy that has."""
    return x.contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


def rows(x: Tensor) -> Tensor:
    """Positions as rows of a matrix: (B, d, H, W) in channels_last -> (B * N, d), a view."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def tl_sum_dtype(x: Tensor) -> Any:
    """sum_dtype as Triton names it."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def factor_dtype(x: Tensor) -> Any:
    """In what Triton multiplies matrices of x's dtype; its interpreter knows no bfloat16."""
    if x.dtype == torch.bfloat16:
        return tl.float32 if interpreted() else tl.bfloat16
    return {torch.float16: tl.float16, torch.float32: tl.float32, torch.float64: tl.float64}[
        x.dtype
    ]


def taps_of(weight: Tensor) -> Tensor:
    """Filters by tap: (d, 1, k, k) -> (k * k, d), in the dtype of sums."""
    taps = weight.new_empty((weight[0].numel(), weight.shape[0]), dtype=sum_dtype(weight))
    return taps.copy_(weight.flatten(1).t())


@jit
def gelu_share(z: tl.tensor) -> tl.tensor:
    """GELU(z) / z, the normal distribution."""
    return 0.5 * (1 + tl.erf(z * 0.7071067811865476))


@jit
def gelu_slope(z: tl.tensor, share: tl.tensor) -> tl.tensor:
    """Derivative of GELU at z, where share is gelu_share(z)."""
    return share + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)


def plain_gradients(
    plain: Callable[..., Tensor], inputs: Sequence[Tensor | None], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Return a kernel's gradients by PyTorch's operators: they can be differentiated again.

    Args:
        plain: computes of the inputs what the kernel does.
        inputs: as the kernel was given them; a gradient of each that requires one is returned.
        grad: of the output.
    """
    # of views, as an input may come from another
    given = [t if t is None or t.is_leaf else t.view_as(t) for t in inputs]
    needed = [t is not None and t.requires_grad for t in inputs]
    wanted = [t for t, is_needed in zip(given, needed, strict=True) if t is not None and is_needed]
    out = plain(*given).to(grad.dtype)
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return tuple(next(found) if is_needed else None for is_needed in needed)
