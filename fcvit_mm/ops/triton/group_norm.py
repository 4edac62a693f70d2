"""GroupNorm with one group: PyTorch's gives each image to a single multiprocessor."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .common import (
    dense,
    is_channels_last,
    jit,
    launch,
    plain_gradients,
    sum_dtype,
    tl,
    tl_sum_dtype,
    triton,
)

# Of one image: programs that sum up, at most (a power of two), and elements of their tiles.
PARTS, TILE = 128, 4096


@jit
def _moments_kernel(
    x: tl.tensor,
    partial: tl.tensor,
    positions: tl.tensor,
    channels: tl.tensor,
    tile: tl.constexpr,
    dtype: tl.constexpr,
) -> None:
    """Number, mean and squared deviation from it, of some of an image's elements: (B, parts, 3).

    Tile by tile, each by its own mean, so that no digits are lost where the mean is large.
    """
    size = positions * channels
    x += tl.program_id(0).to(tl.int64) * size
    number = tl.zeros((), dtype)
    mean = tl.zeros((), dtype)
    square = tl.zeros((), dtype)
    for start in range(tl.program_id(1) * tile, size, tl.num_programs(1) * tile):
        offset = start + tl.arange(0, tile)
        value = tl.load(x + offset, mask=offset < size, other=0).to(dtype)
        more = tl.minimum(size - start, tile).to(dtype)
        center = tl.sum(value, 0) / more
        deviation = tl.where(offset < size, value - center, 0)
        away = center - mean
        square += tl.sum(deviation * deviation, 0) + away * away * number * more / (number + more)
        mean += away * more / (number + more)
        number += more
    out = partial + (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * 3
    tl.store(out, number)
    tl.store(out + 1, mean)
    tl.store(out + 2, square)


@jit
def _norm_kernel(
    x: tl.tensor,
    partial: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    moments: tl.tensor,
    positions: tl.tensor,
    channels: tl.tensor,
    count: tl.tensor,
    parts: tl.constexpr,
    epsilon: tl.constexpr,
    channels_last: tl.constexpr,
    tile: tl.constexpr,
    dtype: tl.constexpr,
) -> None:
    """(x - mean) / deviation * weight + bias; mean and 1 / deviation go to moments, (B, 2)."""
    size = positions * channels
    image = tl.program_id(0).to(tl.int64) * size
    part = tl.arange(0, parts)
    partial += (tl.program_id(0) * count + part) * 3
    number = tl.load(partial, mask=part < count, other=0)
    means = tl.load(partial + 1, mask=part < count, other=0)
    mean = tl.sum(number * means, 0) / size
    square = tl.load(partial + 2, mask=part < count, other=0)
    square += number * (means - mean) * (means - mean)
    scale = 1 / tl.sqrt(tl.sum(square, 0) / size + epsilon)
    if tl.program_id(1) == 0:
        tl.store(moments + tl.program_id(0) * 2, mean)
        tl.store(moments + tl.program_id(0) * 2 + 1, scale)
    offset = tl.program_id(1) * tile + tl.arange(0, tile)
    valid = offset < size
    channel = offset % channels if channels_last else offset // positions
    value = tl.load(x + image + offset, mask=valid, other=0).to(dtype)
    factor = tl.load(weight + channel, mask=valid, other=0).to(dtype)
    shift = tl.load(bias + channel, mask=valid, other=0).to(dtype)
    result = (value - mean) * scale * factor + shift
    tl.store(out + image + offset, result.to(out.dtype.element_ty), mask=valid)


@jit
def _channel_sums_kernel(
    x: tl.tensor,
    grad: tl.tensor,
    moments: tl.tensor,
    partial: tl.tensor,
    positions: tl.tensor,
    channels: tl.tensor,
    channels_last: tl.constexpr,
    block_p: tl.constexpr,
    block_c: tl.constexpr,
    dtype: tl.constexpr,
) -> None:
    """Sums over some positions of grad and of grad * normalized x: (B, parts, 2, d)."""
    channel = tl.program_id(2) * block_c + tl.arange(0, block_c)[None, :]
    image = tl.program_id(0).to(tl.int64) * positions * channels
    mean = tl.load(moments + tl.program_id(0) * 2)
    scale = tl.load(moments + tl.program_id(0) * 2 + 1)
    plain = tl.zeros((block_p, block_c), dtype)
    weighted = tl.zeros((block_p, block_c), dtype)
    for start in range(tl.program_id(1) * block_p, positions, tl.num_programs(1) * block_p):
        position = start + tl.arange(0, block_p)[:, None]
        valid = (position < positions) & (channel < channels)
        if channels_last:
            offset = image + (position * channels + channel)
        else:
            offset = image + (channel * positions + position)
        slope = tl.load(grad + offset, mask=valid, other=0).to(dtype)
        value = tl.load(x + offset, mask=valid, other=0).to(dtype)
        plain += slope
        weighted += slope * (value - mean) * scale
    part = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * 2 * channels + channel
    inside = channel < channels
    tl.store(partial + part, tl.sum(plain, 0, keep_dims=True), mask=inside)
    tl.store(partial + part + channels, tl.sum(weighted, 0, keep_dims=True), mask=inside)


@jit
def _grad_kernel(
    x: tl.tensor,
    grad: tl.tensor,
    weight: tl.tensor,
    moments: tl.tensor,
    sums: tl.tensor,
    out: tl.tensor,
    positions: tl.tensor,
    channels: tl.tensor,
    channels_last: tl.constexpr,
    tile: tl.constexpr,
    dtype: tl.constexpr,
) -> None:
    """Gradient of x; sums are those of grad * weight and of that times normalized x, (B, 2)."""
    size = positions * channels
    image = tl.program_id(0).to(tl.int64) * size
    mean = tl.load(moments + tl.program_id(0) * 2)
    scale = tl.load(moments + tl.program_id(0) * 2 + 1)
    first = tl.load(sums + tl.program_id(0) * 2) / size
    second = tl.load(sums + tl.program_id(0) * 2 + 1) / size
    offset = tl.program_id(1) * tile + tl.arange(0, tile)
    valid = offset < size
    channel = offset % channels if channels_last else offset // positions
    value = (tl.load(x + image + offset, mask=valid, other=0).to(dtype) - mean) * scale
    slope = tl.load(grad + image + offset, mask=valid, other=0).to(dtype)
    slope *= tl.load(weight + channel, mask=valid, other=0).to(dtype)
    result = scale * (slope - first - value * second)
    tl.store(out + image + offset, result.to(out.dtype.element_ty), mask=valid)


class Norm(torch.autograd.Function):
    """x (B, d, H, W), weight and bias (d,) -> (B, d, H, W) in x's layout, of a dtype."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, dtype: torch.dtype
    ) -> Tensor:
        ctx.channels_last, ctx.epsilon, given = is_channels_last(x), epsilon, x
        x = dense(x, ctx.channels_last)
        batch, channels, height, width = x.shape
        positions = height * width
        tiles = triton.cdiv(positions * channels, TILE)
        parts = min(PARTS, tiles)
        sums = sum_dtype(x)
        partial = x.new_empty((batch, parts, 3), dtype=sums)
        sizes = positions, channels
        constants = {"tile": TILE, "dtype": tl_sum_dtype(x)}
        launch(_moments_kernel, (batch, parts), x, partial, *sizes, **constants)
        out = torch.empty_like(x, dtype=dtype)
        moments = x.new_empty((batch, 2), dtype=sums)
        constants["channels_last"] = ctx.channels_last
        launch(
            _norm_kernel,
            (batch, tiles),
            *(x, partial, weight, bias, out, moments, *sizes, parts),
            parts=PARTS,
            epsilon=epsilon,
            **constants,
        )
        ctx.save_for_backward(given, weight, bias, moments)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, moments = ctx.saved_tensors
        if torch.is_grad_enabled():

            def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
                dtype = moments.dtype
                return F.group_norm(x.to(dtype), 1, weight.to(dtype), bias.to(dtype), ctx.epsilon)

            return *plain_gradients(plain, (x, weight, bias), grad), None, None
        x, grad = dense(x, ctx.channels_last), dense(grad, ctx.channels_last)
        batch, channels, height, width = x.shape
        sizes = height * width, channels
        constants = {"channels_last": ctx.channels_last, "dtype": tl_sum_dtype(x)}
        # Neighboring threads get neighboring elements: channels of a position, or positions.
        block_p, block_c = (64, 32) if ctx.channels_last else (1024, 1)
        parts = min(PARTS, triton.cdiv(sizes[0], block_p))
        partial = moments.new_empty((batch, parts, 2, channels))
        launch(
            _channel_sums_kernel,
            (batch, parts, triton.cdiv(channels, block_c)),
            *(x, grad, moments, partial, *sizes),
            block_p=block_p,
            block_c=block_c,
            **constants,
        )
        by_channel = partial.sum(1)  # (B, 2, d)
        grad_bias, grad_weight = by_channel.sum(0)
        grad_x = None
        if ctx.needs_input_grad[0]:
            sums = by_channel @ weight.to(moments.dtype)
            grad_x = torch.empty_like(x)
            launch(
                _grad_kernel,
                (batch, triton.cdiv(x[0].numel(), TILE)),
                *(x, grad, weight, moments, sums, grad_x, *sizes),
                tile=TILE,
                **constants,
            )
        return grad_x, grad_weight, grad_bias, None, None
