"""The channel mixer in half precision and channels_last: two products with a 3x3 between them.

Its hidden channels are up to eight times those of its input. Only the input is kept for the
backward pass, which computes them anew: what that costs is one product and one read.

Reads and writes of the hidden channels, the matrix products' included:

    forward   first product: write; 3x3 and GELU: read, write; second product: read
    backward  first product: write; gradient by the second: write; 3x3 and GELU: read twice, write
              twice; second's weight: read; 3x3: read twice, write; first's weight, its input: read
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .common import (
    dense,
    gelu_share,
    gelu_slope,
    jit,
    launch,
    plain_gradients,
    rows,
    sum_dtype,
    taps_of,
    tl,
    triton,
)

# A program's tile, columns x channels, and how many rows of the image it goes down.
WIDE, CHANNELS, ROWS = 16, 64, 32


@jit
def _place(
    channels: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    wide: tl.constexpr,
    block_c: tl.constexpr,
    down: tl.constexpr,
) -> tl.tensor:
    """Channels and columns of this program's tile, which of them exist, first row, image."""
    across = tl.cdiv(width, wide)
    channel = tl.program_id(0) * block_c + tl.arange(0, block_c)[None, :]
    column = tl.program_id(1) % across * wide + tl.arange(0, wide)[:, None]
    first = tl.program_id(1) // across * down
    image = tl.program_id(2).to(tl.int64) * channels * height * width
    valid = (column < width) & (channel < channels)
    return channel, column, valid, first, image


@jit
def _row(
    x: tl.tensor,
    taps: tl.tensor,
    value: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    channel: tl.tensor,
    valid: tl.tensor,
    channels: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    step: tl.constexpr,
) -> tl.tensor:
    """A row of x under three taps.

    Returns its sum weighted by the taps, and its elements to the left, here and to the right, each
    times value.
    """
    position = row * width + column
    x += position * channels + channel
    taps += channel
    # NOTE: the row alone is a plain number to Triton 3.2's interpreter, which can't mask with it.
    valid = valid & (position >= 0) & (position < height * width)
    dtype: tl.constexpr = taps.dtype.element_ty
    left = tl.load(x - channels, mask=valid & (column >= 1), other=0).to(dtype)
    here = tl.load(x, mask=valid, other=0).to(dtype)
    right = tl.load(x + channels, mask=valid & (column + 1 < width), other=0).to(dtype)
    inside = channel < channels
    total = left * tl.load(taps, mask=inside, other=0)
    total += here * tl.load(taps + step * channels, mask=inside, other=0)
    total += right * tl.load(taps + 2 * step * channels, mask=inside, other=0)
    return total, left * value, here * value, right * value


@jit
def _conv(
    x: tl.tensor,
    taps: tl.tensor,
    bias: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    channel: tl.tensor,
    valid: tl.tensor,
    channels: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
) -> tl.tensor:
    """The 3x3 convolution of a row's tile."""
    total = tl.load(bias + channel, mask=channel < channels, other=0).to(taps.dtype.element_ty)
    for i in tl.static_range(3):
        three = taps + 3 * i * channels
        y = row + i - 1
        more, _, _, _ = _row(x, three, 0, y, column, channel, valid, channels, height, width, 1)
        total += more
    return total


@jit
def _gelu_kernel(
    hidden: tl.tensor,
    taps: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    channels: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    wide: tl.constexpr,
    block_c: tl.constexpr,
    down: tl.constexpr,
) -> None:
    """GELU of the 3x3 convolution."""
    channel, column, valid, first, image = _place(channels, height, width, wide, block_c, down)
    hidden += image
    for row in range(first, tl.minimum(first + down, height)):
        z = _conv(hidden, taps, bias, row, column, channel, valid, channels, height, width)
        value = z * gelu_share(z)
        offset = image + ((row * width + column) * channels + channel)
        tl.store(out + offset, value.to(out.dtype.element_ty), mask=valid)


@jit
def _gelu_grad_kernel(
    hidden: tl.tensor,
    taps: tl.tensor,
    bias: tl.tensor,
    grad: tl.tensor,
    out: tl.tensor,
    channels: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    wide: tl.constexpr,
    block_c: tl.constexpr,
    down: tl.constexpr,
) -> None:
    """What _gelu_kernel computes; grad, its gradient, becomes that of the convolution."""
    channel, column, valid, first, image = _place(channels, height, width, wide, block_c, down)
    hidden += image
    for row in range(first, tl.minimum(first + down, height)):
        offset = image + ((row * width + column) * channels + channel)
        slope = tl.load(grad + offset, mask=valid, other=0).to(taps.dtype.element_ty)
        z = _conv(hidden, taps, bias, row, column, channel, valid, channels, height, width)
        share = gelu_share(z)
        tl.store(out + offset, (z * share).to(out.dtype.element_ty), mask=valid)
        slope *= gelu_slope(z, share)
        tl.store(grad + offset, slope.to(grad.dtype.element_ty), mask=valid)


@jit
def _conv_grad_kernel(
    hidden: tl.tensor,
    taps: tl.tensor,
    grad: tl.tensor,
    out: tl.tensor,
    partial: tl.tensor,
    channels: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    wide: tl.constexpr,
    block_c: tl.constexpr,
    down: tl.constexpr,
) -> None:
    """Backward pass of the 3x3 convolution: of its input, to out, and of the parameters.

    partial, (parts, 11, D), has sums over some positions: the gradients of the nine taps, of the
    bias, and, summed up for the first product's bias, of the input.
    """
    dtype: tl.constexpr = taps.dtype.element_ty
    channel, column, valid, first, image = _place(channels, height, width, wide, block_c, down)
    grad += image
    s0 = tl.zeros((wide, block_c), dtype)
    s1 = tl.zeros((wide, block_c), dtype)
    s2 = tl.zeros((wide, block_c), dtype)
    s3 = tl.zeros((wide, block_c), dtype)
    s4 = tl.zeros((wide, block_c), dtype)
    s5 = tl.zeros((wide, block_c), dtype)
    s6 = tl.zeros((wide, block_c), dtype)
    s7 = tl.zeros((wide, block_c), dtype)
    s8 = tl.zeros((wide, block_c), dtype)
    of_bias = tl.zeros((wide, block_c), dtype)
    of_input = tl.zeros((wide, block_c), dtype)
    for row in range(first, tl.minimum(first + down, height)):
        offset = (row * width + column) * channels + channel
        value = tl.load(hidden + image + offset, mask=valid, other=0).to(dtype)
        # What lies above and to the left took this element by the last tap.
        three, y = taps + 8 * channels, row - 1
        above, p8, p7, p6 = _row(
            grad, three, value, y, column, channel, valid, channels, height, width, -1
        )
        three, y = taps + 5 * channels, row
        same, p5, p4, p3 = _row(
            grad, three, value, y, column, channel, valid, channels, height, width, -1
        )
        three, y = taps + 2 * channels, row + 1
        below, p2, p1, p0 = _row(
            grad, three, value, y, column, channel, valid, channels, height, width, -1
        )
        total = above + same + below
        tl.store(out + image + offset, total.to(out.dtype.element_ty), mask=valid)
        s0 += p0
        s1 += p1
        s2 += p2
        s3 += p3
        s4 += p4
        s5 += p5
        s6 += p6
        s7 += p7
        s8 += p8
        of_bias += tl.load(grad + offset, mask=valid, other=0).to(dtype)
        of_input += tl.where(valid, total, 0)
    part = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    partial += part * 11 * channels + channel
    inside = channel < channels
    tl.store(partial, tl.sum(s0, 0, keep_dims=True), mask=inside)
    tl.store(partial + channels, tl.sum(s1, 0, keep_dims=True), mask=inside)
    tl.store(partial + 2 * channels, tl.sum(s2, 0, keep_dims=True), mask=inside)
    tl.store(partial + 3 * channels, tl.sum(s3, 0, keep_dims=True), mask=inside)
    tl.store(partial + 4 * channels, tl.sum(s4, 0, keep_dims=True), mask=inside)
    tl.store(partial + 5 * channels, tl.sum(s5, 0, keep_dims=True), mask=inside)
    tl.store(partial + 6 * channels, tl.sum(s6, 0, keep_dims=True), mask=inside)
    tl.store(partial + 7 * channels, tl.sum(s7, 0, keep_dims=True), mask=inside)
    tl.store(partial + 8 * channels, tl.sum(s8, 0, keep_dims=True), mask=inside)
    tl.store(partial + 9 * channels, tl.sum(of_bias, 0, keep_dims=True), mask=inside)
    tl.store(partial + 10 * channels, tl.sum(of_input, 0, keep_dims=True), mask=inside)


def _launch(kernel: Any, size: tuple[int, int, int], channels: int, *arguments: Tensor) -> None:
    """Run a kernel on images (B, H, W) of hidden channels."""
    batch, height, width = size
    launch(
        kernel,
        (triton.cdiv(channels, CHANNELS), _strips(height, width), batch),
        *(*arguments, channels, height, width),
        wide=WIDE,
        block_c=CHANNELS,
        down=ROWS,
    )


def _strips(height: int, width: int) -> int:
    return triton.cdiv(width, WIDE) * triton.cdiv(height, ROWS)


def _plain(x: Tensor, *parameters: Tensor) -> Tensor:
    weight1, bias1, weight, bias, weight2, bias2 = (p.to(x.dtype) for p in parameters)
    hidden = F.conv2d(x, weight1, bias1)
    hidden = F.gelu(F.conv2d(hidden, weight, bias, padding=1, groups=len(weight)))
    return F.conv2d(hidden, weight2, bias2)


class ChannelMixer(torch.autograd.Function):
    """x -> second(GELU(3x3(first(x)))), each with its bias; (B, d, H, W), in channels_last.

    The products are taken in x's dtype. Weights as those of convolutions: (D, d, 1, 1),
    (D, 1, 3, 3), (d, D, 1, 1).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight: Tensor,
        bias: Tensor,
        weight2: Tensor,
        bias2: Tensor,
    ) -> Tensor:
        inputs = x, weight1, bias1, weight, bias, weight2, bias2
        x = dense(x, channels_last=True)
        size = x.shape[0], x.shape[2], x.shape[3]
        first, second = (w.flatten(1).to(x.dtype) for w in (weight1, weight2))
        bias1, bias2 = bias1.to(x.dtype), bias2.to(x.dtype)
        taps = taps_of(weight)
        hidden = torch.addmm(bias1, rows(x), first.t())  # (B * N, D)
        activated = torch.empty_like(hidden)
        _launch(_gelu_kernel, size, hidden.shape[1], hidden, taps, bias, activated)
        out = torch.addmm(bias2, activated, second.t())
        ctx.save_for_backward(*inputs, first, bias1, taps, second)
        return out.view(*size, -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, first, bias1, taps, second = ctx.saved_tensors
        if torch.is_grad_enabled():
            return plain_gradients(_plain, inputs, grad)
        x, bias = dense(inputs[0], channels_last=True), inputs[4]
        size = x.shape[0], x.shape[2], x.shape[3]
        grad = rows(dense(grad, channels_last=True))
        hidden = torch.addmm(bias1, rows(x), first.t())
        of_hidden = grad @ second  # of the activated ones, then of the convolution's output
        buffer = torch.empty_like(hidden)  # the activated ones, then the gradient of hidden
        _launch(_gelu_grad_kernel, size, hidden.shape[1], hidden, taps, bias, of_hidden, buffer)
        of_second = grad.t() @ buffer
        partial = taps.new_empty((size[0] * _strips(*size[1:]), 11, hidden.shape[1]))
        _launch(_conv_grad_kernel, size, hidden.shape[1], hidden, taps, of_hidden, buffer, partial)
        sums = partial.sum(0)
        grad_x = (buffer @ first).view(*size, -1).permute(0, 3, 1, 2)
        # autograd rounds them to the dtypes of the parameters
        return (
            grad_x,
            (buffer.t() @ rows(x))[..., None, None],
            sums[10],
            sums[:9].t().reshape(-1, 1, 3, 3),
            sums[9],
            of_second[..., None, None],
            grad.sum(0, dtype=sum_dtype(grad)),
        )
