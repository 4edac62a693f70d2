"""Depthwise convolution and global context as Triton kernels for CUDA; off unless turned on.

    FCVIT_TRITON=1 python tools/train.py CONFIG

turns them on, or `triton_ops.use(True)` in Python.

Nobody has timed these kernels on a GPU, block sizes included: they were checked for correctness
in Triton's interpreter only. So even when they are on, each operation is timed in both forms the
first time it meets a shape, and the faster form is used from then on.

Shape letters: B batch, d channels, H x W positions (N = H * W), 8 heads, e = d / 8, k kernel size.
Tensors are read in the layout they come in, contiguous or channels_last; others are copied first.
Sums are taken in float32, of float64 in float64, and in a fixed order: results repeat bit by bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import depthwise

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for macOS and Windows comes without it
    triton = None

NUM_HEADS = 8
KERNEL_SIZES = range(3, 14, 2)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Positions whose weight gradients one program sums up: bounds the partial sums to store.
CHUNK = 1024
# Elements of one program's tile, 16 for each of 128 threads.
TILE = 2048

Run = Callable[[], Any]


def _jit(kernel: Callable) -> Any:
    return kernel if triton is None else triton.jit(kernel)


def _launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    # Triton launches on the current device, torch's operators on that of their tensors.
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, **constants)


def _is_channels_last(x: Tensor) -> bool:
    return x.stride(1) < x.stride(3)


def _dense(x: Tensor, channels_last: bool) -> Tensor:
    """x itself where it has this layout without gaps, else a copy that has."""
    return x.contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


# Depthwise convolution


@_jit
def _depthwise_offset(
    position: tl.tensor,
    channel: tl.tensor,
    channels: tl.tensor,
    area: tl.tensor,
    channels_last: tl.constexpr,
) -> tl.tensor:
    """Offset of an element, positions being counted through the whole batch."""
    # A batch may hold more than 2 ** 31 elements, a picture does not.
    start = (position // area).to(tl.int64) * channels * area
    if channels_last:
        return start + position % area * channels + channel
    return start + position % area + channel * area


@_jit
def _depthwise_kernel(
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
    channels_last: tl.constexpr,
    block_p: tl.constexpr,
    block_c: tl.constexpr,
    dtype: tl.constexpr,
) -> None:
    """Output of block_p positions x block_c channels; taps are (k * k, d)."""
    position = tl.program_id(0) * block_p + tl.arange(0, block_p)[:, None]
    channel = tl.program_id(1) * block_c + tl.arange(0, block_c)[None, :]
    valid = (position < positions) & (channel < channels)
    step = channels if channels_last else 1  # from a position to the next
    offset = _depthwise_offset(position, channel, channels, height * width, channels_last)
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
            tap = tl.load(taps + (i * k + j) * channels + channel, mask=channel < channels, other=0)
            total += value.to(dtype) * tap.to(dtype)
    tl.store(out + offset, total.to(out.dtype.element_ty), mask=valid)


@_jit
def _depthwise_weight_kernel(
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
        offset = _depthwise_offset(position, channel, channels, height * width, channels_last)
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


def _depthwise_blocks(x: Tensor, channels_last: bool) -> dict[str, Any]:
    # Neighbouring threads get neighbouring elements: channels of a position, or positions.
    block_c = 32 if channels_last else 1
    return {
        "channels_last": channels_last,
        "block_c": block_c,
        "dtype": tl.float64 if x.dtype == torch.float64 else tl.float32,
    }


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, channels_last: bool) -> Tensor:
    """The convolution of a dense x."""
    batch, channels, height, width = x.shape
    blocks = _depthwise_blocks(x, channels_last)
    block_p = TILE // 32 if channels_last else 256
    positions = batch * height * width
    grid = (triton.cdiv(positions, block_p), triton.cdiv(channels, blocks["block_c"]))
    taps = weight.flatten(1).t().contiguous()
    out = torch.empty_like(x)
    _launch(
        _depthwise_kernel,
        grid,
        *(x, taps, taps if bias is None else bias, out, positions, channels, height, width),
        k=weight.shape[-1],
        has_bias=bias is not None,
        block_p=block_p,
        **blocks,
    )
    return out


def _depthwise_weight_grad(x: Tensor, grad: Tensor, k: int, channels_last: bool) -> Tensor:
    """Gradient of the taps, (d, 1, k, k), in the dtype of sums."""
    batch, channels, height, width = x.shape
    blocks = _depthwise_blocks(x, channels_last)
    block_p = 8 if channels_last else 128
    positions = batch * height * width
    chunks = triton.cdiv(positions, CHUNK)
    partial_sums = x.new_empty((chunks, k * k, channels), dtype=_sum_dtype(x))
    _launch(
        _depthwise_weight_kernel,
        (chunks, triton.cdiv(channels, blocks["block_c"]), k),
        *(x, grad, partial_sums, positions, channels, height, width),
        k=k,
        block_k=triton.next_power_of_2(k),
        chunk=CHUNK,
        block_p=block_p,
        **blocks,
    )
    return partial_sums.sum(0).t().reshape(channels, 1, k, k)


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.channels_last = _is_channels_last(x)
        x = _dense(x, ctx.channels_last)
        ctx.save_for_backward(x, weight)
        return _depthwise(x, weight, bias, ctx.channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        layout = ctx.channels_last
        grad = _dense(grad, layout)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _depthwise(grad, weight.flip(2, 3), None, layout)
        if ctx.needs_input_grad[1]:
            grad_weight = _depthwise_weight_grad(x, grad, weight.shape[-1], layout)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3), dtype=_sum_dtype(x))
        # autograd rounds them to the dtypes of the parameters
        return grad_x, grad_weight, grad_bias


# Global context
#
# Reads and writes of tensors of x's size, S and its like (8 / d of it) left aside:
#   forward   mean: read; similarity: read; sum: read, write
#   backward  of the sum: read the gradient; of gap: read x; of x: read the gradient, write
# The mean must be known before the similarities, and their deviation before the sum: three reads
# are the least. The mean of S follows from gap alone: over the positions of a head it is
# |gap|^2 / sqrt(e). So S is taken of x - gap: those sum up to 0 over the positions, and their
# squares are summed up without cancellation while they are made.


@_jit
def _context_tile(
    start: tl.tensor,
    positions: tl.tensor,
    size: tl.constexpr,
    heads: tl.constexpr,
    block_p: tl.constexpr,
    block_e: tl.constexpr,
    channels_last: tl.constexpr,
) -> tl.tensor:
    """Where a tile of block_p positions x heads x block_e channels of a head lies.

    Returns offsets and mask in x, (B, d, N) or (B, N, d), offsets in a (B, d), and offsets and
    mask in a (B, 8, N).
    """
    picture = tl.program_id(0).to(tl.int64)
    head = tl.program_id(2) * heads + tl.arange(0, heads)[None, :, None]
    within = tl.arange(0, block_e)[None, None, :]
    channel = head * size + within
    position = start + tl.arange(0, block_p)[:, None, None]
    placed = position < positions
    token = picture * 8 * size + channel
    if channels_last:
        offset = (picture * positions + position) * 8 * size + channel
    else:
        offset = token * positions + position
    place = (picture * 8 + head) * positions + position
    return offset, placed & (within < size), token, place, placed


@_jit
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
        offset, valid, token, place, placed = _context_tile(
            start, positions, size, heads, block_p, block_e, channels_last
        )
        mean = tl.load(gap + token, mask=valid, other=0)
        centred = tl.load(x + offset, mask=valid, other=0).to(dtype) - mean
        value = tl.sum(centred * mean, 2, keep_dims=True) * size**-0.5
        tl.store(deviation + place, value, mask=placed)
        total += value * value
    head = tl.program_id(2) * heads + tl.arange(0, heads)[None, :, None]
    part = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(partial_squares + part * 8 + head, tl.sum(total, 0, keep_dims=True))


@_jit
def _add_kernel(
    x: tl.tensor,
    similarity: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    context: tl.tensor,
    constant: tl.tensor,
    out: tl.tensor,
    positions: tl.tensor,
    size: tl.constexpr,
    heads: tl.constexpr,
    block_p: tl.constexpr,
    block_e: tl.constexpr,
    channels_last: tl.constexpr,
) -> None:
    """x + (scale * similarity + shift) * context + constant."""
    dtype: tl.constexpr = context.dtype.element_ty
    first = tl.program_id(1) * 4 * block_p
    head = tl.program_id(2) * heads + tl.arange(0, heads)[None, :, None]
    a = tl.load(scale + tl.program_id(0) * 8 + head)
    b = tl.load(shift + tl.program_id(0) * 8 + head)
    for start in range(first, tl.minimum(first + 4 * block_p, positions), block_p):
        offset, valid, token, place, placed = _context_tile(
            start, positions, size, heads, block_p, block_e, channels_last
        )
        factor = a * tl.load(similarity + place, mask=placed, other=0) + b
        value = tl.load(x + offset, mask=valid, other=0).to(dtype)
        value += factor * tl.load(context + token, mask=valid, other=0)
        value += tl.load(constant + token, mask=valid, other=0)
        tl.store(out + offset, value.to(out.dtype.element_ty), mask=valid)


@_jit
def _sum_kernel(
    value: tl.tensor,
    similarity: tl.tensor,
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
    with_products: tl.constexpr,
) -> None:
    """(scale * similarity + shift) * value, summed over the positions of four tiles: (B, t, d).

    That is the gradient of _add_kernel's context where value is the gradient of its output. With
    products = <value, context> within each head, (B, 8, N), whose sums over the positions, times
    the similarity and alone, are the gradients of scale and shift: (B, t, 8).
    """
    dtype: tl.constexpr = context.dtype.element_ty
    first = tl.program_id(1) * 4 * block_p
    head = tl.program_id(2) * heads + tl.arange(0, heads)[None, :, None]
    a = tl.load(scale + tl.program_id(0) * 8 + head)
    b = tl.load(shift + tl.program_id(0) * 8 + head)
    total_context = tl.zeros((block_p, heads, block_e), dtype)
    total_scale = tl.zeros((block_p, heads, 1), dtype)
    total_shift = tl.zeros((block_p, heads, 1), dtype)
    for start in range(first, tl.minimum(first + 4 * block_p, positions), block_p):
        offset, valid, token, place, placed = _context_tile(
            start, positions, size, heads, block_p, block_e, channels_last
        )
        tile = tl.load(value + offset, mask=valid, other=0).to(dtype)
        sim = tl.load(similarity + place, mask=placed, other=0)
        total_context += (a * sim + b) * tile
        if with_products:
            factor = tl.load(context + token, mask=valid, other=0)
            product = tl.sum(tile * factor, 2, keep_dims=True)
            tl.store(products + place, product, mask=placed)
            total_scale += product * sim
            total_shift += product
    part = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    within = tl.arange(0, block_e)[None, None, :]
    tl.store(
        partial_context + (part * 8 + head) * size + within,
        tl.sum(total_context, 0, keep_dims=True),
        mask=within < size,
    )
    if with_products:
        tl.store(partial_scale + part * 8 + head, tl.sum(total_scale, 0, keep_dims=True))
        tl.store(partial_shift + part * 8 + head, tl.sum(total_shift, 0, keep_dims=True))


def _context_blocks(
    x: Tensor, channels_last: bool
) -> tuple[tuple[int, int, int], dict[str, int | bool]]:
    """The grid (pictures, runs of four tiles, groups of heads), and the kernels' constants."""
    size = x.shape[1] // NUM_HEADS
    block_e = triton.next_power_of_2(size)
    # Neighbouring threads get neighbours: 64 channels of a position, or positions of a channel.
    heads = max(1, min(NUM_HEADS, 64 // block_e)) if channels_last else 1
    block_p = max(1, TILE // (heads * block_e))
    tiles = triton.cdiv(x.shape[2] * x.shape[3], 4 * block_p)
    return (x.shape[0], tiles, NUM_HEADS // heads), {
        "size": size,
        "heads": heads,
        "block_p": block_p,
        "block_e": block_e,
        "channels_last": channels_last,
    }


class _Similarity(torch.autograd.Function):
    """x -> x, gap (B, d), <x - gap, gap> / sqrt(e) (B, 8, N), its squares' sums (B, 8).

    x is handed through so that its whole gradient arrives here at once and is written once.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, ...]:
        ctx.channels_last = _is_channels_last(x)
        x = _dense(x, ctx.channels_last)
        positions = x.shape[2] * x.shape[3]
        gap = x.mean((2, 3), dtype=_sum_dtype(x)).contiguous()
        grid, constants = _context_blocks(x, ctx.channels_last)
        deviation = gap.new_empty((x.shape[0], NUM_HEADS, positions))
        squares = gap.new_empty((*grid[:2], NUM_HEADS))
        _launch(_similarity_kernel, grid, x, gap, deviation, squares, positions, **constants)
        ctx.save_for_backward(x, gap, deviation)
        return x, gap, deviation, squares.sum(1)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor, grad_gap: Tensor, grad_deviation: Tensor, grad_squares: Tensor
    ) -> Tensor:
        x, gap, deviation = ctx.saved_tensors
        grad = _dense(grad, ctx.channels_last)
        grid, constants = _context_blocks(x, ctx.channels_last)
        positions = deviation.shape[2]
        size = gap.shape[1] // NUM_HEADS
        # gradient of the deviation, its squares' included
        total = torch.addcmul(grad_deviation, deviation, 2 * grad_squares[..., None])
        root, zero = torch.full_like(grad_squares, size**-0.5), torch.zeros_like(grad_squares)
        weighted = gap.new_empty((*grid[:2], gap.shape[1]))
        _launch(
            _sum_kernel,
            grid,
            *(x, total, root, zero, gap, *(weighted,) * 4, positions),
            with_products=False,
            **constants,
        )
        by_gap = 2 * (root * total.sum(2)).repeat_interleave(size, 1) * gap
        constant = ((grad_gap + weighted.sum(1) - by_gap) / positions).contiguous()
        out = torch.empty_like(x)
        _launch(
            _add_kernel,
            grid,
            *(grad, total, root, zero, gap, constant, out, positions),
            **constants,
        )
        return out


class _AddContext(torch.autograd.Function):
    """x + (scale * deviation + shift) * context, for a dense x.

    Shapes: deviation (B, 8, N), scale and shift (B, 8), context (B, d), all in the dtype of sums.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, deviation: Tensor, scale: Tensor, shift: Tensor, context: Tensor
    ) -> Tensor:
        small = deviation, scale.contiguous(), shift.contiguous(), context.contiguous()
        ctx.save_for_backward(*small)
        ctx.channels_last = _is_channels_last(x)
        grid, constants = _context_blocks(x, ctx.channels_last)
        constant, out = torch.zeros_like(small[3]), torch.empty_like(x)
        _launch(_add_kernel, grid, x, *small, constant, out, deviation.shape[2], **constants)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        # unpacked once: activation checkpointing allows no more
        deviation, scale, shift, context = ctx.saved_tensors
        grad = _dense(grad, ctx.channels_last)
        grid, constants = _context_blocks(grad, ctx.channels_last)
        products = torch.empty_like(deviation)
        sums = [context.new_empty((*grid[:2], n)) for n in (context.shape[1], NUM_HEADS, NUM_HEADS)]
        _launch(
            _sum_kernel,
            grid,
            *(grad, deviation, scale, shift, context, products, *sums, deviation.shape[2]),
            with_products=True,
            **constants,
        )
        grad_context, grad_scale, grad_shift = (part.sum(1) for part in sums)
        return grad, scale[..., None] * products, grad_scale, grad_shift, grad_context


def _add_global_context(
    x: Tensor, bottleneck: Callable[[Tensor], Tensor], alpha: Tensor, beta: Tensor
) -> Tensor:
    positions = x.shape[2] * x.shape[3]
    x, gap, deviation, squares = _Similarity.apply(x)
    context = bottleneck(gap.to(x.dtype)).to(gap.dtype)
    heads = gap.unflatten(1, (NUM_HEADS, -1))
    # The heads' mean similarities, |gap|^2 / sqrt(e), as they differ from the first head's: where
    # all are equal, a rounding left of them would be divided by 1e-5.
    first = heads[:, :1]
    head_mean = ((heads - first) * (heads + first)).sum(2) * heads.shape[2] ** -0.5
    # S - mean(S) = deviation + offset
    offset = head_mean - head_mean.mean(1, keepdim=True)
    squares = (squares + positions * offset.square()).sum(1, keepdim=True)
    var = squares / (NUM_HEADS * positions - 1)
    # The root's slope at 0 is infinite; torch.std takes 0 there.
    std = torch.where(var > 0, var, 1).sqrt() * (var > 0)
    scale = alpha.to(gap.dtype) / (std + 1e-5)
    shift = beta.to(gap.dtype) + scale * offset
    return _AddContext.apply(x, deviation, scale, shift, context)


# The choice between two forms


class _State:
    on = False
    timer: Callable[[str, Run], float]
    faster: dict[tuple, str] = {}


def _milliseconds(form: str, run: Run) -> float:
    """Median time of a run on the GPU; the first ones compile or choose among cuDNN's kernels."""
    for _ in range(3):
        run()
    times = []
    for _ in range(9):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return median(times)


def use(on: bool, timer: Callable[[str, Run], float] = _milliseconds) -> None:
    """Turn the kernels on or off for the whole process, and forget which forms were faster.

    When on, an operation on CUDA is timed in both forms, "triton" and "plain", forward and, where
    gradients are wanted, backward, the first time it meets a GPU, dtype, layout and shape: 12 runs
    of each. The faster form is used there from then on. Elsewhere, when traced, exported or
    compiled by torch.compile, and when a CUDA graph is captured before the shape was timed, the
    plain form is used. NOTE: two runs may choose differently where the forms are about equally
    fast, and differ in their roundings then.

    Args:
        on: whether the kernels may be used; they are off at first.
        timer: given a form's name and a function that runs it, returns its time.

    Raises:
        ImportError: Triton is not installed.
    """
    if on and triton is None:
        raise ImportError("the kernels of fcvit_mm need Triton: pip install triton")
    _State.on = on
    _State.timer = staticmethod(timer)
    _State.faster = {}


def _usable(x: Tensor) -> bool:
    """Whether the kernels are on and can take x."""
    return (
        _State.on
        # also true for torch.export
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        # fake tensors and other subclasses hold no data that a kernel could read
        and type(x) is Tensor
        and (x.is_cuda or not isinstance(_add_kernel, triton.JITFunction))  # or interpreted
        and x.dtype in DTYPES
        and x.dim() == 4
        and x.numel() > 0
    )


def _run_faster(
    operation: str,
    triton_form: Callable[..., Tensor],
    plain_form: Callable[..., Tensor],
    *inputs: Tensor | None,
) -> Tensor:
    """Run the form that is the faster for such inputs; time both if that isn't known yet."""
    x = inputs[0]
    assert x is not None
    grads = [t is not None and t.requires_grad and torch.is_grad_enabled() for t in inputs]
    key = (
        operation,
        torch.cuda.get_device_name(x.device) if x.is_cuda else x.device.type,
        x.dtype,
        _is_channels_last(x),
        *(None if t is None else t.shape for t in inputs),
        *grads,
    )
    forms = {"triton": triton_form, "plain": plain_form}
    if key not in _State.faster:
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            return plain_form(*inputs)

        leaves = [
            None if t is None else t.detach().requires_grad_(g)
            for t, g in zip(inputs, grads, strict=True)
        ]
        wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]

        def run(form: Callable[..., Tensor]) -> None:
            out = form(*leaves)
            if wanted:
                torch.autograd.grad(out, wanted, torch.ones_like(out))

        # Activation checkpointing counts the tensors saved: ours must not pass its hooks.
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            times = {name: _State.timer(name, partial(run, form)) for name, form in forms.items()}
        _State.faster[key] = min(times, key=lambda name: times[name])
    return forms[_State.faster[key]](*inputs)


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve each channel with its own filter: stride 1, padding k // 2, size kept.

    Depthwise_k of FCViT's token mixer (arXiv 2212.12552); what
    `F.conv2d(x, weight, bias, padding=k // 2, groups=d)` computes, autocast included. Can be
    differentiated once where the kernels run.

    Args:
        x: (B, d, H, W), any strides.
        weight: (d, 1, k, k), k odd; k from 3 to 13 has a kernel, other sizes take the plain form.
        bias: (d,) or None.

    Returns:
        (B, d, H, W) in the layout of x.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit each other, as F.conv2d raises it.
    """
    if not _usable(x):
        return depthwise.conv(x, weight, bias)
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    k, channels = weight.shape[-1], x.shape[1]
    parameters = [weight] if bias is None else [weight, bias]
    if (
        k not in KERNEL_SIZES
        or weight.shape != (channels, 1, k, k)
        or any(p.dtype != x.dtype or p.device != x.device for p in parameters)
        or (bias is not None and bias.shape != (channels,))
    ):
        return depthwise.conv(x, weight, bias)
    return _run_faster("depthwise_conv", _DepthwiseConv.apply, depthwise.conv, x, weight, bias)


def add_global_context(
    x: Tensor,
    bottleneck: Callable[[Tensor], Tensor],
    alpha: Tensor,
    beta: Tensor,
    plain: Callable[[Tensor], Tensor],
) -> Tensor:
    """Add the global context, weighted by similarity (arXiv 2212.12552, section 3.2), to x.

        S   = <x, gap> within each head / sqrt(e),  gap = mean of x over positions
        S'  = alpha * (S - mean(S)) / (std(S) + 1e-5) + beta,  over heads and positions together
        out = x + S' * bottleneck(gap)

    Can be differentiated once where the kernels run. Statistics and sums are float32 at least.

    Args:
        x: (B, d, H, W), d a multiple of 8, any strides.
        bottleneck: maps gap, (B, d) in the dtype of x, to the context, (B, d).
        alpha, beta: one value a head, (8,).
        plain: maps x to the same output by torch's operators.

    Returns:
        (B, d, H, W) in the dtype and layout of x.

    Raises:
        ValueError: d is not a multiple of 8, or alpha or beta do not have 8 values.
    """
    if not _usable(x):
        return plain(x)
    if x.shape[1] % NUM_HEADS:
        raise ValueError(f"x has {x.shape[1]} channels: not a multiple of its {NUM_HEADS} heads")
    if alpha.shape != (NUM_HEADS,) or beta.shape != (NUM_HEADS,):
        raise ValueError(
            f"alpha {tuple(alpha.shape)} and beta {tuple(beta.shape)} must be ({NUM_HEADS},)"
        )
    return _run_faster(
        "global_context",
        lambda x: _add_global_context(x, bottleneck, alpha, beta),
        plain,
        x,
    )


if os.environ.get("FCVIT_TRITON") == "1":
    use(True)
