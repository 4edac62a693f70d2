"""Depthwise convolution with stride 1, in the layout that its input comes in."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .common import (
    TILE,
    dense,
    factor_dtype,
    is_channels_last,
    jit,
    launch,
    plain_gradients,
    sum_dtype,
    taps_of,
    tl,
    tl_sum_dtype,
    triton,
)

# Positions whose weight gradients one program sums up: bounds the partial sums to store.
CHUNK = 1024
# In half precision, weight gradients are products of matrices: of so many positions of a row with
# the inputs that they read, k - 1 more, rounded up to a power of two; in so many rows at a time,
# for so many channels; one program sums up so many rows.
COLUMNS, ROWS, CHANNELS, ROWS_OF_PROGRAM = 16, 32, 16, 512


@jit
def _offset(
    position: tl.tensor,
    channel: tl.tensor,
    channels: tl.tensor,
    area: tl.tensor,
    channels_last: tl.constexpr,
) -> tl.tensor:
    """Offset of an element, positions being counted through the whole batch."""
    # A batch may hold more than 2 ** 31 elements, an image does not.
    start = (position // area).to(tl.int64) * channels * area
    if channels_last:
        return start + position % area * channels + channel
    return start + position % area + channel * area


@jit
def _conv_kernel(
    x: tl.tensor,
    taps: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    positions: tl.tensor,
    channels: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    k: tl.constexpr,
    has_bias: tl.constexpr,
    turned: tl.constexpr,
    channels_last: tl.constexpr,
    block_p: tl.constexpr,
    block_c: tl.constexpr,
    dtype: tl.constexpr,
) -> None:
    """Output of block_p positions x block_c channels; taps (k * k, d), or the filter turned."""
    position = tl.program_id(0) * block_p + tl.arange(0, block_p)[:, None]
    channel = tl.program_id(1) * block_c + tl.arange(0, block_c)[None, :]
    valid = (position < positions) & (channel < channels)
    step = channels if channels_last else 1  # from a position to the next
    offset = _offset(position, channel, channels, height * width, channels_last)
    column = position % width
    row = position // width % height
    total = tl.zeros((block_p, block_c), dtype)
    if has_bias:
        total += tl.load(bias + channel, mask=channel < channels, other=0).to(dtype)
    for i in range(k):
        dy = i - k // 2
        row_valid = valid & (row + dy >= 0) & (row + dy < height)
        for j in tl.static_range(k):
            dx = j - k // 2
            inside = row_valid & (column + dx >= 0) & (column + dx < width)
            value = tl.load(x + offset + (dy * width + dx) * step, mask=inside, other=0)
            tap = k * k - 1 - i * k - j if turned else i * k + j
            factor = tl.load(taps + tap * channels + channel, mask=channel < channels, other=0)
            total += value.to(dtype) * factor
    tl.store(out + offset, total.to(out.dtype.element_ty), mask=valid)


@jit
def _weight_kernel(
    x: tl.tensor,
    grad: tl.tensor,
    partial_sums: tl.tensor,
    positions: tl.tensor,
    channels: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    k: tl.constexpr,
    block_k: tl.constexpr,
    channels_last: tl.constexpr,
    chunk: tl.constexpr,
    block_p: tl.constexpr,
    block_c: tl.constexpr,
    dtype: tl.constexpr,
) -> None:
    """Gradients of one row of taps, summed over a chunk of positions: (chunks, k, k, d).

    A row at once, because that reads the output's gradient k times and not k * k times.
    """
    channel = tl.program_id(1) * block_c + tl.arange(0, block_c)[None, None, :]
    i = tl.program_id(2)
    j = tl.arange(0, block_k)[:, None, None]
    dy, dx = i - k // 2, j - k // 2
    step = channels if channels_last else 1
    first = tl.program_id(0) * chunk
    total = tl.zeros((block_k, block_p, block_c), dtype)
    for start in range(first, tl.minimum(first + chunk, positions), block_p):
        position = start + tl.arange(0, block_p)[None, :, None]
        valid = (position < positions) & (channel < channels)
        offset = _offset(position, channel, channels, height * width, channels_last)
        row, column = position // width % height + dy, position % width + dx
        inside = valid & (row >= 0) & (row < height) & (column >= 0) & (column < width) & (j < k)
        value = tl.load(x + offset + (dy * width + dx) * step, mask=inside, other=0)
        total += value.to(dtype) * tl.load(grad + offset, mask=valid, other=0).to(dtype)
    tap = (tl.program_id(0) * k + i) * k + j
    tl.store(
        partial_sums + tap * channels + channel,
        tl.sum(total, 1, keep_dims=True),
        mask=(j < k) & (channel < channels),
    )


@jit
def _tile(
    x: tl.tensor,
    channel: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    valid: tl.tensor,
    channels: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    channels_last: tl.constexpr,
) -> tl.tensor:
    """Elements of one image, 0 outside of it."""
    inside = valid & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    if channels_last:
        offset = (row * width + column) * channels + channel
    else:
        offset = (channel * height + row) * width + column
    return tl.load(x + offset, mask=inside & (channel < channels), other=0)


@jit
def _weight_product_kernel(
    x: tl.tensor,
    grad: tl.tensor,
    partial_sums: tl.tensor,
    groups: tl.tensor,
    channels: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    k: tl.constexpr,
    channels_last: tl.constexpr,
    chunk: tl.constexpr,
    block_g: tl.constexpr,
    block_c: tl.constexpr,
    columns: tl.constexpr,
    reach: tl.constexpr,
    factor: tl.constexpr,
) -> None:
    """Gradients of one row of taps, summed over a chunk of an image's groups: (parts, k, k, d).

    A group is some columns of a row. Its inputs times its gradients, (reach, columns), summed over
    the groups, holds on each diagonal what belongs to one tap.
    """
    channel = tl.program_id(1) * block_c + tl.arange(0, block_c)[:, None, None]
    i = tl.program_id(2)
    chunks = tl.cdiv(groups, chunk)
    image = (tl.program_id(0) // chunks).to(tl.int64) * channels * height * width
    first = tl.program_id(0) % chunks * chunk
    read = tl.arange(0, reach)[None, :, None]
    written = tl.arange(0, columns)[None, None, :]
    total = tl.zeros((block_c, reach, columns), tl.float32)
    for start in range(first, tl.minimum(first + chunk, groups), block_g):
        # Groups are the columns of the first factor and the rows of the second.
        group = start + tl.arange(0, block_g)[None, None, :]
        row, column = group % height, group // height * columns
        row += i - k // 2
        column += read - k // 2
        valid = group < groups
        inputs = _tile(
            x + image, channel, row, column, valid, channels, height, width, channels_last
        )
        group = start + tl.arange(0, block_g)[None, :, None]
        row, column = group % height, group // height * columns + written
        valid = group < groups
        grads = _tile(
            grad + image, channel, row, column, valid, channels, height, width, channels_last
        )
        total = tl.dot(inputs.to(factor), grads.to(factor), total)
    channel = tl.program_id(1) * block_c + tl.arange(0, block_c)
    for j in tl.static_range(k):
        diagonal = tl.where(read - written == j, total, 0.0)
        tap = (tl.program_id(0) * k + i) * k + j
        tl.store(
            partial_sums + tap * channels + channel,
            tl.sum(tl.sum(diagonal, 2), 1),
            mask=channel < channels,
        )


def conv(
    x: Tensor, taps: Tensor, bias: Tensor | None, channels_last: bool, turned: bool = False
) -> Tensor:
    """The convolution of a dense x with taps (k * k, d), or with the filter turned round."""
    batch, channels, height, width = x.shape
    # Neighboring threads get neighboring elements: channels of a position, or positions.
    block_p, block_c = (TILE // 32, 32) if channels_last else (256, 1)
    positions = batch * height * width
    out = torch.empty_like(x)
    launch(
        _conv_kernel,
        (triton.cdiv(positions, block_p), triton.cdiv(channels, block_c)),
        *(x, taps, taps if bias is None else bias, out, positions, channels, height, width),
        k=round(len(taps) ** 0.5),
        has_bias=bias is not None,
        turned=turned,
        channels_last=channels_last,
        block_p=block_p,
        block_c=block_c,
        dtype=tl_sum_dtype(x),
    )
    return out


def weight_grad(x: Tensor, grad: Tensor, k: int, channels_last: bool) -> Tensor:
    """Gradient of the filters, (d, 1, k, k), in the dtype of sums; x and grad are dense."""
    batch, channels, height, width = x.shape
    if x.element_size() == 2:
        groups = height * triton.cdiv(width, COLUMNS)
        parts = batch * triton.cdiv(groups, ROWS_OF_PROGRAM)
        partial_sums = x.new_empty((parts, k * k, channels), dtype=torch.float32)
        launch(
            _weight_product_kernel,
            (parts, triton.cdiv(channels, CHANNELS), k),
            *(x, grad, partial_sums, groups, channels, height, width),
            k=k,
            channels_last=channels_last,
            chunk=ROWS_OF_PROGRAM,
            block_g=ROWS,
            block_c=CHANNELS,
            columns=COLUMNS,
            reach=triton.next_power_of_2(COLUMNS + k - 1),
            factor=factor_dtype(x),
            num_stages=2,
        )
    else:
        positions = batch * height * width
        chunks = triton.cdiv(positions, CHUNK)
        partial_sums = torch.empty((chunks, k * k, channels), dtype=x.dtype, device=x.device)
        block_p, block_c = (8, 32) if channels_last else (128, 1)
        launch(
            _weight_kernel,
            (chunks, triton.cdiv(channels, block_c), k),
            *(x, grad, partial_sums, positions, channels, height, width),
            k=k,
            block_k=triton.next_power_of_2(k),
            channels_last=channels_last,
            chunk=CHUNK,
            block_p=block_p,
            block_c=block_c,
            dtype=tl_sum_dtype(x),
        )
    return partial_sums.sum(0).t().reshape(channels, 1, k, k)


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))


class DepthwiseConv(torch.autograd.Function):
    """x (B, d, H, W), weight (d, 1, k, k), bias (d,) or None -> (B, d, H, W) in x's dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.channels_last = is_channels_last(x)
        taps = taps_of(weight)
        ctx.save_for_backward(x, weight, bias, taps)
        return conv(dense(x, ctx.channels_last), taps, bias, ctx.channels_last)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, taps = ctx.saved_tensors
        if torch.is_grad_enabled():
            return plain_gradients(_plain, (x, weight, bias), grad)
        layout = ctx.channels_last
        x, grad = dense(x, layout), dense(grad, layout)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = conv(grad, taps, None, layout, turned=True)
        if ctx.needs_input_grad[1]:
            grad_weight = weight_grad(x, grad, weight.shape[-1], layout)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3), dtype=sum_dtype(x))
        # autograd rounds them to the dtypes of the parameters
        return grad_x, grad_weight, grad_bias
