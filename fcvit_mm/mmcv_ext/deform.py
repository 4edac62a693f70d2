"""Deformable convolutions and multi-scale deformable attention."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .registry import register_operator, widen


@register_operator
def deform_conv_forward(*tensors: Tensor, **geometry: int) -> None:
    input, weight, offset, output, *_ = tensors
    output.copy_(_convolve(offset, _operands(input, weight, offset, geometry)))


@register_operator
def deform_conv_backward_input(*tensors: Tensor, **geometry: int) -> None:
    input, offset, grad_output, grad_input, grad_offset, weight, *_ = tensors
    grads = _gradients(grad_output, _operands(input, weight, offset, geometry))
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[2])


@register_operator
def deform_conv_backward_parameters(*tensors: Tensor, **geometry: int) -> None:
    input, offset, grad_output, grad_weight, *_ = tensors
    # the weight's gradient does not depend on the weight, which the extension is not handed here
    weight = torch.zeros_like(grad_weight)
    grads = _gradients(grad_output, _operands(input, weight, offset, geometry))
    grad_weight.add_(grads[1], alpha=geometry["scale"])


@register_operator
def modulated_deform_conv_forward(*tensors: Tensor, **geometry: int) -> None:
    input, weight, bias, _, offset, mask, output, _ = tensors
    offset, mask = (_leading(tensor, output.shape[2:]) for tensor in (offset, mask))
    output.copy_(_convolve(offset, _operands(input, weight, offset, geometry, mask, bias)))


@register_operator
def modulated_deform_conv_backward(*tensors: Tensor, **geometry: int) -> None:
    input, weight, bias, _, offset, mask, _, *targets, grad_output = tensors
    grad_input, grad_weight, grad_bias, grad_offset, grad_mask = targets
    offset, mask = (_leading(tensor, grad_output.shape[2:]) for tensor in (offset, mask))
    grads = _gradients(grad_output, _operands(input, weight, offset, geometry, mask, bias))
    grad_input.copy_(grads[0])
    grad_weight.copy_(grads[1])
    for target, grad in zip((grad_offset, grad_mask), grads[2:4], strict=True):
        unread = target.shape[1:].numel() - grad.shape[1:].numel()
        target.copy_(functional.pad(grad.flatten(1), (0, unread)).view(target.shape))
    if geometry["with_bias"]:
        grad_bias.copy_(grads[4])


def _leading(tensor: Tensor, size: torch.Size) -> Tensor:
    """Return what the extension reads of offsets or masks (B, n, ., .): (B, n, *size).

    Those are the first numbers of each image. MMDetection's DyHead hands over larger tensors.
    """
    numbers = tensor.shape[1] * size.numel()
    if tensor.shape[1:].numel() < numbers:
        raise ValueError(
            f"modulated_deform_conv2d has an output of {tuple(size)}: offset and mask must not be "
            f"smaller, and one is of {tuple(tensor.shape[2:])}"
        )
    return tensor.flatten(1)[:, :numbers].unflatten(1, (tensor.shape[1], *size))


def _operands(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    geometry: dict[str, int],
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> list[Any]:
    """Return the arguments of torchvision's deform_conv2d, which has one form for both kinds.

    Offsets of samples that are a pixel or more outside of the input are moved. The extension gives
    them value and gradient 0. So does torchvision for those two pixels outside, but elsewhere it
    may read memory that is not input's, or give them a gradient.
    """
    plain = ("dH", "dW", "padH", "padW", "dilationH", "dilationW")
    modulated = ("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w")
    axes = [geometry[name] for name in (plain if mask is None else modulated)]
    # im2col_step is left out: it bounds memory and changes no result
    groups = [geometry["group"], geometry["deformable_group"]]
    if bias is None or not geometry["with_bias"]:
        bias = weight.new_zeros(len(weight))
    given_mask = input.new_zeros(len(input), 1) if mask is None else mask
    input, weight, offset, given_mask, bias = widen(input, weight, offset, given_mask, bias)

    # (taps, output pixels) along each axis: where a sample is taken that has no offset
    rows, columns = (
        torch.arange(taps)[:, None] * dilation - padding + torch.arange(pixels) * stride
        for stride, padding, dilation, taps, pixels in zip(
            axes[:2], axes[2:4], axes[4:], weight.shape[2:], offset.shape[2:], strict=True
        )
    )
    grid = torch.broadcast_tensors(rows[:, None, :, None], columns[:, None])
    base = torch.stack(grid, dim=2).to(offset)  # (taps, taps, 2, P, Q)
    moved = offset.unflatten(1, (groups[1], *base.shape[:3]))
    size = offset.new_tensor(input.shape[2:])[:, None, None]
    inside = ((moved + base > -1) & (moved + base < size)).all(dim=4, keepdim=True)
    offset = moved.where(inside, -2 - base).flatten(1, 4)
    return [input, weight, offset, given_mask, bias, *axes, *groups, mask is not None]


def _convolve(offset: Tensor, operands: list[Any]) -> Tensor:
    """Convolve; where an offset is not a number, neither is the output."""
    output = torch.ops.torchvision.deform_conv2d(*operands)
    return output.masked_fill_(offset.isnan().any(dim=1, keepdim=True), torch.nan)


def _gradients(grad_output: Tensor, operands: list[Any]) -> list[Tensor]:
    """Return the gradients of input, weight, offset, mask and bias."""
    grad_output = grad_output.to(operands[0])
    return torch.ops.torchvision._deform_conv2d_backward(grad_output, *operands)


@register_operator
def ms_deform_attn_forward(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor, **_: int
) -> Tensor:
    """value (B, keys, heads, D), locations (B, queries, heads, levels, points, 2) as x, y in 0..1,
    weights without the last axis -> (B, queries, heads * D); shapes (levels, 2) of the levels."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    wide, locations, weights = widen(value, locations, weights)
    # samples a pixel or more outside add nothing, to the gradients neither; moved to -1, they do so
    # in mmcv's form too, where nan would spread and the border have a gradient
    sizes = shapes.flip(1)[:, None].to(locations)
    position = locations * sizes - 0.5
    inside = ((position > -1) & (position < sizes)).all(dim=-1, keepdim=True)
    where = locations.where(inside, -1), weights
    # mmcv's form takes the levels to lie one after the other; the extension goes by their starts
    levels = shapes.tolist()
    parts = [wide[:, s : s + h * w] for s, (h, w) in zip(starts.tolist(), levels, strict=True)]
    return multi_scale_deformable_attn_pytorch(torch.cat(parts, dim=1), levels, *where).to(value)


@register_operator
def ms_deform_attn_backward(*tensors: Tensor, **_: int) -> None:
    value, shapes, starts, locations, weights, grad_output, *targets = tensors
    inputs = [tensor.detach().requires_grad_() for tensor in (value, locations, weights)]
    with torch.enable_grad():
        output = ms_deform_attn_forward(inputs[0], shapes, starts, *inputs[1:])
    grads = torch.autograd.grad(output, inputs, grad_output.to(output))
    for target, grad in zip(targets, grads, strict=True):
        target.copy_(grad)
