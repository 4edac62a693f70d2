"""Deformable convolutions and multi-scale deformable attention."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .registry import register_operator, widen


@register_operator
def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, *buffers: Tensor, **geometry: int
) -> None:
    operands = _plain_operands(input, weight, offset, geometry)
    output.copy_(_unless_nan(torch.ops.torchvision.deform_conv2d(*operands), offset))


@register_operator
def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    *buffers: Tensor,
    **geometry: int,
) -> None:
    operands = _plain_operands(input, weight, offset, geometry)
    grads = torch.ops.torchvision._deform_conv2d_backward(grad_output.to(operands[0]), *operands)
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[2])


@register_operator
def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    *buffers: Tensor,
    **geometry: int,
) -> None:
    # the weight's gradient does not depend on the weight, which the extension is not handed here
    operands = _plain_operands(input, torch.zeros_like(grad_weight), offset, geometry)
    grads = torch.ops.torchvision._deform_conv2d_backward(grad_output.to(operands[0]), *operands)
    grad_weight.add_(grads[1], alpha=geometry["scale"])


def _plain_operands(
    input: Tensor, weight: Tensor, offset: Tensor, geometry: dict[str, int]
) -> list[Any]:
    """Return the arguments of torchvision's deform_conv2d, without mask and bias."""
    axes = ("dH", "dW", "padH", "padW", "dilationH", "dilationW")
    # im2col_step is left out: it bounds memory and changes no result
    scalars = [geometry[name] for name in (*axes, "group", "deformable_group")]
    mask, bias = input.new_zeros(len(input), 1), weight.new_zeros(len(weight))
    tensors = _reachable(widen(input, weight, offset, mask, bias), scalars)
    return [*tensors, *scalars, False]


@register_operator
def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    **geometry: int,
) -> None:
    offset, mask = (_leading(tensor, output.shape[2:]) for tensor in (offset, mask))
    operands = _modulated_operands(input, weight, offset, mask, bias, geometry)
    output.copy_(_unless_nan(torch.ops.torchvision.deform_conv2d(*operands), offset))


@register_operator
def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    **geometry: int,
) -> None:
    offset, mask = (_leading(tensor, grad_output.shape[2:]) for tensor in (offset, mask))
    operands = _modulated_operands(input, weight, offset, mask, bias, geometry)
    *grads, bias_grad = torch.ops.torchvision._deform_conv2d_backward(
        grad_output.to(operands[0]), *operands
    )
    grad_input.copy_(grads[0])
    grad_weight.copy_(grads[1])
    for target, grad in zip((grad_offset, grad_mask), grads[2:], strict=True):
        unread = target.shape[1:].numel() - grad.shape[1:].numel()
        target.copy_(functional.pad(grad.flatten(1), (0, unread)).view(target.shape))
    if geometry["with_bias"]:
        grad_bias.copy_(bias_grad)


def _leading(tensor: Tensor, size: torch.Size) -> Tensor:
    """Return what the extension reads of offsets or masks (B, n, ., .): (B, n, *size).

    Those are the first numbers of each image. MMDetection's DyHead hands over larger tensors.

    Raises:
        ValueError: they are smaller than the output.
    """
    numbers = tensor.shape[1] * size.numel()
    if tensor.shape[1:].numel() < numbers:
        raise ValueError(
            f"modulated_deform_conv2d has an output of {tuple(size)}: offset and mask must not be "
            f"smaller, and one is of {tuple(tensor.shape[2:])}"
        )
    return tensor.flatten(1)[:, :numbers].unflatten(1, (tensor.shape[1], *size))


def _modulated_operands(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor,
    bias: Tensor,
    geometry: dict[str, int],
) -> list[Any]:
    """Return the arguments of torchvision's deform_conv2d, with mask."""
    if not geometry["with_bias"]:
        bias = weight.new_zeros(len(weight))
    axes = ("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w")
    scalars = [geometry[name] for name in (*axes, "group", "deformable_group")]
    tensors = _reachable(widen(input, weight, offset, mask, bias), scalars)
    return [*tensors, *scalars, True]


def _reachable(tensors: list[Tensor], geometry: list[int]) -> list[Tensor]:
    """Move the offsets of samples that are a pixel or more outside of the input.

    The extension gives them value and gradient 0. So does torchvision for those two pixels outside,
    but elsewhere it may read memory that is not input's, or give them a gradient.
    """
    input, weight, offset, mask, bias = tensors
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, _, groups = geometry
    (height, width), (kernel_h, kernel_w) = input.shape[2:], weight.shape[2:]
    moved = offset.unflatten(1, (groups, kernel_h, kernel_w, 2))

    def at(stride: int, pad: int, dilation: int, taps: int, size: int) -> Tensor:
        tap, step = (torch.arange(n, device=offset.device)[:, None] for n in (taps, size))
        return (tap * dilation - pad + step.T * stride).to(offset)

    rows = at(stride_h, pad_h, dilation_h, kernel_h, offset.shape[2])[:, None, :, None]
    columns = at(stride_w, pad_w, dilation_w, kernel_w, offset.shape[3])[:, None]
    base = torch.stack(torch.broadcast_tensors(rows, columns), dim=2)
    position = moved + base
    size = offset.new_tensor([height, width])[:, None, None]
    inside = ((position > -1) & (position < size)).all(dim=4, keepdim=True)
    return [input, weight, moved.where(inside, -2 - base).flatten(1, 4), mask, bias]


def _unless_nan(output: Tensor, offset: Tensor) -> Tensor:
    return output.masked_fill_(offset.isnan().any(dim=1, keepdim=True), torch.nan)


@register_operator
def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """value (B, keys, heads, D), sampling_locations (B, queries, heads, levels, points, 2) as x, y
    in 0..1, attention_weights without the last axis -> (B, queries, heads * D)."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    wide, locations, weights = widen(value, sampling_locations, attention_weights)
    starts, levels = value_level_start_index.tolist(), value_spatial_shapes.tolist()
    # samples a pixel or more outside add nothing, to the gradients neither; moved to -1, they do so
    # in mmcv's form too, where nan would spread and the border have a gradient
    sizes = value_spatial_shapes.flip(1)[:, None].to(locations)
    position = locations * sizes - 0.5
    inside = ((position > -1) & (position < sizes)).all(dim=-1, keepdim=True)
    where = locations.where(inside, -1), weights
    # mmcv's form takes the levels to lie one after the other; the extension goes by their starts
    parts = [wide[:, s : s + h * w] for s, (h, w) in zip(starts, levels, strict=True)]
    return multi_scale_deformable_attn_pytorch(torch.cat(parts, dim=1), levels, *where).to(value)


@register_operator
def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    tensors = (value, sampling_locations, attention_weights)
    value, locations, weights = (tensor.detach().requires_grad_() for tensor in tensors)
    with torch.enable_grad():
        output = ms_deform_attn_forward(
            value, value_spatial_shapes, value_level_start_index, locations, weights, im2col_step
        )
    grads = torch.autograd.grad(output, (value, locations, weights), grad_output.to(output))
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        target.copy_(grad)
