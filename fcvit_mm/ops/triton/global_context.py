"""The global context and its addition (arXiv 2212.12552, section 3.2).

Reads and writes of tensors of x's size, S and its like (8 / d of it) left aside:

    forward   mean: read; similarity: read; sum: read, write
    backward  of the sum: read the gradient; of gap: read x; of x: read the gradient, write

The mean must be known before the similarities, and their deviation before the sum: three reads are
the least. The mean of S follows from gap alone: over the positions of a head it is
|gap|^2 / sqrt(e). So S is taken of x - gap: those sum up to 0 over the positions, and their squares
are summed up without cancellation while they are made.

Above 400 lines: the kernels of both passes share their tiles and are read together.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..global_context import add_weighted, inner_products, mean_over_positions
from .common import (
    TILE,
    dense,
    is_channels_last,
    jit,
    launch,
    plain_gradients,
    sum_dtype,
    tl,
    triton,
)

# for which these kernels are written
HEADS = 8


@jit
def _tile(
    start: tl.tensor,
    positions: tl.tensor,
    size: tl.constexpr,
    heads: tl.constexpr,
    block_p: tl.constexpr,
    block_e: tl.constexpr,
    channels_last: tl.constexpr,
) -> tl.tensor:
    """Where a tile of block_p positions x heads x block_e channels of a head lies.

    Returns offsets and mask in x, (B, d, N) or (B, N, d), in a (B, d), and in a (B, 8, N).
    """
    image = tl.program_id(0).to(tl.int64)
    head = tl.program_id(2) * heads + tl.arange(0, heads)[None, :, None]
    within = tl.arange(0, block_e)[None, None, :]
    channel = head * size + within
    position = start + tl.arange(0, block_p)[:, None, None]
    placed = position < positions
    token = image * 8 * size + channel
    if channels_last:
        offset = (image * positions + position) * 8 * size + channel
    else:
        offset = token * positions + position
    place = (image * 8 + head) * positions + position
    # NOTE: Triton 3.2 takes no mask that has more places than its pointers.
    return offset, placed & (within < size), token, within < size, place, placed


@jit
def _similarity_kernel(
    x: tl.tensor,
    gap: tl.tensor,
    deviation: tl.tensor,
    partial_squares: tl.tensor,
    positions: tl.tensor,
    size: tl.constexpr,
    heads: tl.constexpr,
    block_p: tl.constexpr,
    block_e: tl.constexpr,
    channels_last: tl.constexpr,
) -> None:
    """<x - gap, gap> / sqrt(e), and the sums of its squares over four tiles."""
    dtype: tl.constexpr = gap.dtype.element_ty
    first = tl.program_id(1) * 4 * block_p
    total = tl.zeros((block_p, heads, 1), dtype)
    for start in range(first, tl.minimum(first + 4 * block_p, positions), block_p):
        offset, valid, token, inside, place, placed = _tile(
            start, positions, size, heads, block_p, block_e, channels_last
        )
        mean = tl.load(gap + token, mask=inside, other=0)
        centered = tl.load(x + offset, mask=valid, other=0).to(dtype) - mean
        value = tl.sum(centered * mean, 2, keep_dims=True) * size**-0.5
        value = tl.where(placed, value, 0)  # there is a mean beyond the last position, too
        tl.store(deviation + place, value, mask=placed)
        total += value * value
    head = tl.program_id(2) * heads + tl.arange(0, heads)[None, :, None]
    part = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(partial_squares + part * 8 + head, tl.sum(total, 0, keep_dims=True))


@jit
def _sum_of_parts(partial: tl.tensor, parts: tl.tensor, block_t: tl.constexpr) -> tl.tensor:
    """This image's sums by head: (B, parts, 8) -> (8,)."""
    total = tl.zeros((block_t, 8), partial.dtype.element_ty)
    head = tl.arange(0, 8)[None, :]
    for first in range(0, parts, block_t):
        part = first + tl.arange(0, block_t)[:, None]
        place = (tl.program_id(0) * parts + part) * 8 + head
        total += tl.load(partial + place, mask=part < parts, other=0)
    return tl.sum(total, 0)


@jit
def _head_offsets(gap: tl.tensor, size: tl.constexpr, block_e: tl.constexpr) -> tl.tensor:
    """This image's mean similarities by head, less their mean: (B, d) -> (8,)."""
    within = tl.arange(0, block_e)[None, :]
    token = tl.program_id(0) * 8 * size + tl.arange(0, 8)[:, None] * size + within
    mean = tl.load(gap + token, mask=within < size, other=0)
    # As they differ from the first head's: where all are equal, a rounding left of them would be
    # divided by 1e-5.
    first = tl.load(gap + tl.program_id(0) * 8 * size + within, mask=within < size, other=0)
    head_mean = tl.sum((mean - first) * (mean + first), 1) * size**-0.5
    return head_mean - tl.sum(head_mean, 0) / 8


@jit
def _product(
    matrix: tl.tensor,
    vector: tl.tensor,
    rows: tl.constexpr,
    columns: tl.constexpr,
    block_r: tl.constexpr,
    block_c: tl.constexpr,
) -> tl.tensor:
    """A matrix (rows, columns) times a vector in memory: (block_r,)."""
    row = tl.arange(0, block_r)[:, None]
    total = tl.zeros((block_r, block_c), vector.dtype.element_ty)
    for first in range(0, columns, block_c):
        column = first + tl.arange(0, block_c)[None, :]
        valid = (row < rows) & (column < columns)
        value = tl.load(vector + column, mask=column < columns, other=0)
        total += tl.load(matrix + row * columns + column, mask=valid, other=0) * value
    return tl.sum(total, 1)


@jit
def _context_kernel(
    gap: tl.tensor,
    partial_squares: tl.tensor,
    alpha: tl.tensor,
    beta: tl.tensor,
    weight1: tl.tensor,
    bias1: tl.tensor,
    weight2: tl.tensor,
    bias2: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    deviations: tl.tensor,
    middle: tl.tensor,
    share: tl.tensor,
    context: tl.tensor,
    positions: tl.tensor,
    parts: tl.tensor,
    size: tl.constexpr,
    block_e: tl.constexpr,
    block_t: tl.constexpr,
) -> None:
    """What is small, of one image.

    S' = scale * deviation + shift, (B, 8), with std(S) in deviations, (B,); the context, (B, d),
    with the larger halves in middle, and in share the first half's part in them, (B, e).
    """
    dtype: tl.constexpr = gap.dtype.element_ty
    image = tl.program_id(0)
    offset = _head_offsets(gap, size, block_e)
    squares = _sum_of_parts(partial_squares, parts, block_t) + positions * offset * offset
    std = tl.sqrt(tl.sum(squares, 0) / (8 * positions - 1))
    head = tl.arange(0, 8)
    factor = tl.load(alpha + head).to(dtype) / (std + 1e-5)
    tl.store(scale + image * 8 + head, factor)
    tl.store(shift + image * 8 + head, tl.load(beta + head).to(dtype) + factor * offset)
    tl.store(deviations + image, std)

    within = tl.arange(0, block_e)
    token = gap + image * 8 * size
    first = _product(weight1, token, size, 8 * size, block_e, 32)
    first += tl.load(bias1 + within, mask=within < size, other=0)
    second = _product(weight1 + 8 * size * size, token, size, 8 * size, block_e, 32)
    second += tl.load(bias1 + size + within, mask=within < size, other=0)
    larger = tl.maximum(first, second)
    # PyTorch shares the gradient of a maximum among equals
    part = tl.where(first > second, 1.0, tl.where(first == second, 0.5, 0.0)).to(dtype)
    tl.store(middle + image * size + within, larger, mask=within < size)
    tl.store(share + image * size + within, part, mask=within < size)
    for i in range(8):
        row = i * size + within[:, None]
        valid = (within[:, None] < size) & (within[None, :] < size)
        weights = tl.load(weight2 + row * size + within[None, :], mask=valid, other=0)
        value = tl.sum(weights * larger[None, :], 1)
        channel = i * size + within
        value += tl.load(bias2 + channel, mask=within < size, other=0)
        tl.store(context + image * 8 * size + channel, value.to(dtype), mask=within < size)


@jit
def _small_grads_kernel(
    gap: tl.tensor,
    partial_scale: tl.tensor,
    partial_shift: tl.tensor,
    partial_context: tl.tensor,
    alpha: tl.tensor,
    deviations: tl.tensor,
    weight1: tl.tensor,
    weight2: tl.tensor,
    share: tl.tensor,
    grad_alpha: tl.tensor,
    grad_beta: tl.tensor,
    grad_context: tl.tensor,
    grad_halves: tl.tensor,
    grad_gap: tl.tensor,
    twice: tl.tensor,
    positions: tl.tensor,
    parts: tl.tensor,
    size: tl.constexpr,
    block_e: tl.constexpr,
    block_t: tl.constexpr,
) -> None:
    """Backward pass of _context_kernel, of one image, but for weights and biases.

    Gradients of alpha and beta, (B, 8), of the context, (B, d), of both halves, (B, 2 e), of gap,
    (B, d), and, to twice, (B,), two times that of the squares' sum.
    """
    dtype: tl.constexpr = gap.dtype.element_ty
    image = tl.program_id(0)
    offset = _head_offsets(gap, size, block_e)
    of_shift = _sum_of_parts(partial_shift, parts, block_t)
    of_scale = _sum_of_parts(partial_scale, parts, block_t) + of_shift * offset
    head = tl.arange(0, 8)
    weight = tl.load(alpha + head).to(dtype)
    std = tl.load(deviations + image)
    tl.store(grad_alpha + image * 8 + head, of_scale / (std + 1e-5))
    tl.store(grad_beta + image * 8 + head, of_shift)
    of_std = -tl.sum(of_scale * weight, 0) / ((std + 1e-5) * (std + 1e-5))
    # The root's slope at 0 is infinite; it is to be multiplied by deviations, which are 0 there.
    slope = of_std / (tl.where(std > 0, std, 1) * (8 * positions - 1))
    tl.store(twice + image, slope)
    of_offset = of_shift * weight / (std + 1e-5) + slope * positions * offset
    of_mean = of_offset - tl.sum(of_offset, 0) / 8

    within = tl.arange(0, block_e)
    of_middle = tl.zeros((block_e,), dtype)
    for i in range(8):
        channel = i * size + within
        total = tl.zeros((block_t, block_e), dtype)
        for first in range(0, parts, block_t):
            part = first + tl.arange(0, block_t)[:, None]
            place = (image * parts + part) * 8 * size + channel[None, :]
            valid = (part < parts) & (within[None, :] < size)
            total += tl.load(partial_context + place, mask=valid, other=0)
        of_context = tl.sum(total, 0)
        tl.store(grad_context + image * 8 * size + channel, of_context, mask=within < size)
        valid = (within[:, None] < size) & (within[None, :] < size)
        weights = weight2 + channel[:, None] * size + within[None, :]
        of_middle += tl.sum(tl.load(weights, mask=valid, other=0) * of_context[:, None], 0)
    part = tl.load(share + image * size + within, mask=within < size, other=0)
    of_first, of_second = of_middle * part, of_middle * (1 - part)
    halves = grad_halves + image * 2 * size + within
    tl.store(halves, of_first, mask=within < size)
    tl.store(halves + size, of_second, mask=within < size)
    for i in range(8):
        channel = i * size + within
        valid = (within[:, None] < size) & (within[None, :] < size)
        weights = weight1 + within[:, None] * 8 * size + channel[None, :]
        value = tl.sum(tl.load(weights, mask=valid, other=0) * of_first[:, None], 0)
        weights += 8 * size * size
        value += tl.sum(tl.load(weights, mask=valid, other=0) * of_second[:, None], 0)
        mean = tl.load(gap + image * 8 * size + channel, mask=within < size, other=0)
        value += 2 * size**-0.5 * tl.sum(tl.where(head == i, of_mean, 0), 0) * mean
        tl.store(grad_gap + image * 8 * size + channel, value.to(dtype), mask=within < size)


@jit
def _add_kernel(
    x: tl.tensor,
    similarity: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    context: tl.tensor,
    out: tl.tensor,
    positions: tl.tensor,
    size: tl.constexpr,
    heads: tl.constexpr,
    block_p: tl.constexpr,
    block_e: tl.constexpr,
    channels_last: tl.constexpr,
    backward: tl.constexpr,
) -> None:
    """x + (scale * similarity + shift) * context.

    backward: x + similarity * context / sqrt(e) + (scale + shift) / N, both (B, d).
    """
    dtype: tl.constexpr = similarity.dtype.element_ty
    first = tl.program_id(1) * 4 * block_p
    head = tl.program_id(2) * heads + tl.arange(0, heads)[None, :, None]
    for start in range(first, tl.minimum(first + 4 * block_p, positions), block_p):
        offset, valid, token, inside, place, placed = _tile(
            start, positions, size, heads, block_p, block_e, channels_last
        )
        value = tl.load(x + offset, mask=valid, other=0).to(dtype)
        factor = tl.load(similarity + place, mask=placed, other=0)
        if backward:
            factor *= size**-0.5
            constant = tl.load(scale + token, mask=inside, other=0)
            constant += tl.load(shift + token, mask=inside, other=0)
            value += constant / positions
        else:
            factor *= tl.load(scale + tl.program_id(0) * 8 + head)
            factor += tl.load(shift + tl.program_id(0) * 8 + head)
        value += factor * tl.load(context + token, mask=inside, other=0).to(dtype)
        tl.store(out + offset, value.to(out.dtype.element_ty), mask=valid)


@jit
def _context_grad_kernel(
    grad: tl.tensor,
    deviation: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    context: tl.tensor,
    products: tl.tensor,
    partial_context: tl.tensor,
    partial_scale: tl.tensor,
    partial_shift: tl.tensor,
    positions: tl.tensor,
    size: tl.constexpr,
    heads: tl.constexpr,
    block_p: tl.constexpr,
    block_e: tl.constexpr,
    channels_last: tl.constexpr,
) -> None:
    """Backward pass of _add_kernel, summed over the positions of four tiles.

    The gradient of context, (B, t, d); products = <grad, context> within each head, (B, 8, N),
    whose sums, times the deviation and alone, are the gradients of scale and shift, (B, t, 8).
    """
    dtype: tl.constexpr = deviation.dtype.element_ty
    first = tl.program_id(1) * 4 * block_p
    head = tl.program_id(2) * heads + tl.arange(0, heads)[None, :, None]
    a = tl.load(scale + tl.program_id(0) * 8 + head)
    b = tl.load(shift + tl.program_id(0) * 8 + head)
    total_context = tl.zeros((block_p, heads, block_e), dtype)
    total_scale = tl.zeros((block_p, heads, 1), dtype)
    total_shift = tl.zeros((block_p, heads, 1), dtype)
    for start in range(first, tl.minimum(first + 4 * block_p, positions), block_p):
        offset, valid, token, inside, place, placed = _tile(
            start, positions, size, heads, block_p, block_e, channels_last
        )
        tile = tl.load(grad + offset, mask=valid, other=0).to(dtype)
        similarity = tl.load(deviation + place, mask=placed, other=0)
        total_context += (a * similarity + b) * tile
        factor = tl.load(context + token, mask=inside, other=0).to(dtype)
        product = tl.sum(tile * factor, 2, keep_dims=True)
        tl.store(products + place, product, mask=placed)
        total_scale += product * similarity
        total_shift += product
    part = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    within = tl.arange(0, block_e)[None, None, :]
    tl.store(
        partial_context + (part * 8 + head) * size + within,
        tl.sum(total_context, 0, keep_dims=True),
        mask=within < size,
    )
    tl.store(partial_scale + part * 8 + head, tl.sum(total_scale, 0, keep_dims=True))
    tl.store(partial_shift + part * 8 + head, tl.sum(total_shift, 0, keep_dims=True))


@jit
def _gap_grad_kernel(
    x: tl.tensor,
    gap: tl.tensor,
    deviation: tl.tensor,
    scale: tl.tensor,
    twice: tl.tensor,
    products: tl.tensor,
    out: tl.tensor,
    partial: tl.tensor,
    positions: tl.tensor,
    size: tl.constexpr,
    heads: tl.constexpr,
    block_p: tl.constexpr,
    block_e: tl.constexpr,
    channels_last: tl.constexpr,
) -> None:
    """Gradient of gap by the deviation, over four tiles: (B, t, d).

    The deviation's own, by the addition and by its squares, goes to out. It can't take the place
    of products: several threads read each of them.
    """
    dtype: tl.constexpr = gap.dtype.element_ty
    first = tl.program_id(1) * 4 * block_p
    head = tl.program_id(2) * heads + tl.arange(0, heads)[None, :, None]
    a = tl.load(scale + tl.program_id(0) * 8 + head)
    b = tl.load(twice + tl.program_id(0))
    result = tl.zeros((block_p, heads, block_e), dtype)
    for start in range(first, tl.minimum(first + 4 * block_p, positions), block_p):
        offset, valid, token, inside, place, placed = _tile(
            start, positions, size, heads, block_p, block_e, channels_last
        )
        total = a * tl.load(products + place, mask=placed, other=0)
        total += b * tl.load(deviation + place, mask=placed, other=0)
        tl.store(out + place, total, mask=placed)
        mean = tl.load(gap + token, mask=inside, other=0)
        # gap stands twice in <x - gap, gap>
        result += total * (tl.load(x + offset, mask=valid, other=0).to(dtype) - 2 * mean)
    part = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    within = tl.arange(0, block_e)[None, None, :]
    tl.store(
        partial + (part * 8 + head) * size + within,
        tl.sum(result, 0, keep_dims=True) * size**-0.5,
        mask=within < size,
    )


def _blocks(x: Tensor, channels_last: bool) -> tuple[tuple[int, int, int], dict[str, int | bool]]:
    """The grid (images, runs of four tiles, groups of heads), and the kernels' constants."""
    size = x.shape[1] // HEADS
    block_e = triton.next_power_of_2(size)
    # Neighboring threads get neighbors: 64 channels of a position, or positions of a channel.
    heads = max(1, min(HEADS, 64 // block_e)) if channels_last else 1
    block_p = max(1, TILE // (heads * block_e))
    tiles = triton.cdiv(x.shape[2] * x.shape[3], 4 * block_p)
    return (x.shape[0], tiles, HEADS // heads), {
        "size": size,
        "heads": heads,
        "block_p": block_p,
        "block_e": block_e,
        "channels_last": channels_last,
    }


def _small_constants(gap: Tensor) -> dict[str, int]:
    """Return the constants of the kernels that have one program per image."""
    size = gap.shape[1] // HEADS
    return {"size": size, "block_e": triton.next_power_of_2(size), "block_t": 32}


def _plain(x: Tensor, *parameters: Tensor) -> Tensor:
    alpha, beta, weight1, bias1, weight2, bias2 = parameters
    gap = mean_over_positions(x)
    s = inner_products(x, gap, heads=HEADS, scale=(x.shape[1] // HEADS) ** -0.5)
    std, mean = torch.std_mean(s, dim=(1, 2, 3), keepdim=True)
    weights = alpha[:, None, None] * ((s - mean) / (std + 1e-5)) + beta[:, None, None]
    halves = F.linear(gap.to(weight1.dtype), weight1, bias1).unflatten(1, (2, -1))
    token = F.linear(halves.max(1).values, weight2, bias2)
    return add_weighted(x, weights=weights, token=token)


class GlobalContext(torch.autograd.Function):
    """x + S' * (W2 max(W1a gap, W1b gap)): (B, d, H, W) -> the same, in x's layout, of a dtype.

    alpha and beta (8,), weight1 (2 e, d), bias1 (2 e,), weight2 (d, e), bias2 (d,).
    """

    @staticmethod
    def forward(
        ctx: Any,
        dtype: torch.dtype,
        x: Tensor,
        alpha: Tensor,
        beta: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
    ) -> Tensor:
        ctx.channels_last = is_channels_last(x)
        inputs = x, alpha, beta, weight1, bias1, weight2, bias2
        x = dense(x, ctx.channels_last)
        batch, channels, height, width = x.shape
        positions, size = height * width, channels // HEADS
        grid, constants = _blocks(x, ctx.channels_last)
        gap = x.mean((2, 3), dtype=sum_dtype(x))
        deviation = gap.new_empty((batch, HEADS, positions))
        squares = gap.new_empty((*grid[:2], HEADS))
        launch(_similarity_kernel, grid, x, gap, deviation, squares, positions, **constants)
        scale, shift = gap.new_empty((2, batch, HEADS))
        middle, share = gap.new_empty((2, batch, size))
        deviations, context = gap.new_empty(batch), torch.empty_like(gap)
        launch(
            _context_kernel,
            (batch,),
            *(gap, squares, alpha, beta, weight1, bias1, weight2, bias2),
            *(scale, shift, deviations, middle, share, context, positions, grid[1]),
            **_small_constants(gap),
        )
        out = torch.empty_like(x, dtype=dtype)
        launch(
            _add_kernel,
            grid,
            *(x, deviation, scale, shift, context, out, positions),
            backward=False,
            **constants,
        )
        ctx.save_for_backward(
            *inputs,
            *(gap, deviation, scale, shift, deviations, middle, share, context),
        )
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # unpacked once: activation checkpointing allows no more
        saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, *plain_gradients(_plain, saved[:7], grad)
        x, alpha, _, weight1, _, weight2, _, *others = saved
        gap, deviation, scale, shift, deviations, middle, share, context = others
        x, grad = dense(x, ctx.channels_last), dense(grad, ctx.channels_last)
        grid, constants = _blocks(x, ctx.channels_last)
        (batch, channels), positions = gap.shape, deviation.shape[2]
        products = torch.empty_like(deviation)
        of_context, of_scale, of_shift = (
            gap.new_empty((*grid[:2], n)) for n in (channels, HEADS, HEADS)
        )
        launch(
            _context_grad_kernel,
            grid,
            *(grad, deviation, scale, shift, context, products),
            *(of_context, of_scale, of_shift, positions),
            **constants,
        )
        of_both = gap.new_empty((2, batch, HEADS))  # alpha and beta
        grad_context, grad_gap = torch.empty_like(gap), torch.empty_like(gap)
        of_halves, twice = gap.new_empty((batch, len(weight1))), torch.empty_like(deviations)
        launch(
            _small_grads_kernel,
            (batch,),
            *(gap, of_scale, of_shift, of_context, alpha, deviations, weight1, weight2, share),
            *(*of_both, grad_context, of_halves, grad_gap, twice, positions, grid[1]),
            **_small_constants(gap),
        )
        total, partial = torch.empty_like(products), torch.empty_like(of_context)
        launch(
            _gap_grad_kernel,
            grid,
            *(x, gap, deviation, scale, twice, products, total, partial, positions),
            **constants,
        )
        out = torch.empty_like(x)
        launch(
            _add_kernel,
            grid,
            *(grad, total, grad_gap, partial.sum(1), gap, out, positions),
            backward=True,
            **constants,
        )
        # autograd rounds them to the dtypes of the parameters
        return (
            None,
            out,
            *of_both.sum(1),
            of_halves.t() @ gap,
            of_halves.sum(0),
            grad_context.t() @ middle,
            grad_context.sum(0),
        )
