"""Large depthwise convolutions on a CPU, trained through the Fourier transform.

The weight gradient is the correlation of input and output gradient at k x k shifts, for which
oneDNN needs up to ten times as long as for the convolution. By the correlation theorem all shifts
together are one product of spectra, whatever k.
"""

from itertools import count
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .cpu import runs_on_cpu

# From which filter size and number of positions on the transform is faster, as measured.
MIN_KERNEL, MIN_POSITIONS = 9, 256


def _fast_size(least: int) -> int:
    """Return the next multiple of 4 whose prime factors are at most 7, the faster transforms."""
    multiples = count(-least // 4 * -4, 4)
    return next(size for size in multiples if pow(210, size.bit_length(), size) == 0)


def weight_gradient(x: Tensor, grad: Tensor, kernel: int) -> Tensor:
    """Return the weight gradient of a depthwise convolution with stride 1 and padding k // 2.

        dL/dw[c, 0, i, j] = sum over b, y, z of x[b, c, y + i - r, z + j - r] grad[b, c, y, z]

    for r = k // 2, (d, 1, k, k); x and grad, of the output, are (B, d, H, W), kernel is k, odd.
    """
    reach = kernel // 2
    # Shifts are circular: zeros behind the maps as far as a filter reaches keep them apart.
    rows, columns = (_fast_size(max(length + reach, kernel)) for length in x.shape[2:])
    x_hat, grad_hat = (torch.fft.rfft2(maps.contiguous(), (rows, columns)) for maps in (x, grad))
    product = (x_hat * grad_hat.conj()).sum(0)
    # only the k x k shifts are transformed back
    shifts = torch.fft.ifft(product, dim=1).roll(reach, 1)[:, :kernel]
    shifts = torch.fft.irfft(shifts, columns).roll(reach, 2)[:, :, :kernel]
    return shifts[:, None]


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    reach = weight.shape[-1] // 2
    # NOTE: twice, since torch.jit.trace of PyTorch 2.6 takes no single number that it has traced.
    return F.conv2d(x, weight, bias, padding=(reach, reach), groups=weight.shape[0])


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _conv(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        # the input's gradient is a convolution with the filter turned round
        return (
            _conv(grad, weight.flip(2, 3)) if needs_x else None,
            weight_gradient(x, grad, weight.shape[-1]) if needs_weight else None,
            grad.sum((0, 2, 3)) if needs_bias else None,
        )


def depthwise_conv2d(x: Tensor, *, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve each channel with its own filter: stride 1, padding k // 2, size kept.

    On a CPU, with large filters and maps, the weight gradient is `weight_gradient`.
    x (B, d, H, W); weight (d, 1, k, k), k odd; bias (d,) or None.
    """
    if (
        runs_on_cpu(x)
        and torch.is_grad_enabled()
        and weight.requires_grad
        and weight.shape[-1] >= MIN_KERNEL
        and x.shape[2] * x.shape[3] >= MIN_POSITIONS
    ):
        return _DepthwiseConv.apply(x, weight, bias)
    return _conv(x, weight, bias)
