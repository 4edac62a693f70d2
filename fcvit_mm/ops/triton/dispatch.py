"""Run a layer by a Triton kernel where that is faster than PyTorch's operators.

Each layer is timed in both forms, "triton" and "plain", the first time it meets a GPU, dtype,
layout and size, and the faster form is used from then on. `fcvit_mm.models.triton_layers` lets a
model's layers call what is here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..cpu import is_transformed
from ..depthwise_conv import depthwise_conv2d
from ..group_norm import group_norm as group_norm_of_pytorch
from . import channel_mixer as channel_mixer_module
from . import common, global_context, layer_scale
from . import depthwise_conv as depthwise_kernels
from . import group_norm as group_norm_module
from .common import is_channels_last, triton

KERNEL_SIZES = range(3, 14, 2)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Run = Callable[[], Any]
# (name of the form, a function that runs it) -> its time
Timer = Callable[[str, Run], float]


def milliseconds(form: str, run: Run) -> float:
    """Time a run among others; the first ones compile or choose among cuDNN's kernels."""
    for _ in range(3):
        run()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    # One after the other, as in a training: the GPU's time or the processor's for the launches,
    # whichever is the longer.
    start.record()
    for _ in range(10):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 10


class _Choice:
    timer: Timer = staticmethod(milliseconds)
    faster: dict[tuple, str] = {}


def set_timer(timer: Timer = milliseconds) -> None:
    """Forget which forms were faster, and time them by another function from now on.

    A layer is timed forward and, where gradients are wanted, backward, once for all inputs whose
    number of positions rounds up to the same power of two; `milliseconds` runs each form 13 times.
    NOTE: two processes may choose differently where the forms are about equally fast, and differ in
    their roundings then.
    """
    _Choice.timer = staticmethod(timer)
    _Choice.faster = {}


def usable(x: Tensor) -> bool:
    """Tell whether kernels can take x: it is on a GPU, and layers run one by one."""
    return (
        triton is not None
        # also true for torch.export
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not is_transformed()
        # fake tensors and other subclasses hold no data that a kernel could read
        and type(x) is Tensor
        and x.dtype in DTYPES
        and x.dim() == 4
        and x.numel() > 0
        and (x.is_cuda or common.interpreted())
    )


def _run_faster(
    operation: str,
    triton_form: Callable[..., Tensor],
    plain_form: Callable[..., Tensor],
    *inputs: Tensor | None,
) -> Tensor:
    """Run the form that is faster for such inputs; time both if that isn't known yet.

    When a CUDA graph is captured before the layer was timed, the plain form is run.
    """
    x = inputs[0]
    assert x is not None
    grads = [t is not None and t.requires_grad and torch.is_grad_enabled() for t in inputs]
    key = (
        operation,
        x.device,
        x.dtype,
        is_channels_last(x),
        x.shape[1],
        (x[:, 0].numel() - 1).bit_length(),
        *(None if t is None else t.shape for t in inputs[1:]),
        *grads,
    )
    forms = {"triton": triton_form, "plain": plain_form}
    if key not in _Choice.faster:
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            return plain_form(*inputs)

        # parameters themselves, since a plain form may call their module
        leaves = [
            t if t is None or t.is_leaf else t.detach().requires_grad_(g)
            for t, g in zip(inputs, grads, strict=True)
        ]
        wanted = [t for t, g in zip(leaves, grads, strict=True) if t is not None and g]

        def run(form: Callable[..., Tensor]) -> None:
            out = form(*leaves)
            if wanted:
                torch.autograd.grad(out, wanted, torch.ones_like(out))

        # Activation checkpointing counts the tensors saved: ours must not pass its hooks.
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            times = {name: _Choice.timer(name, partial(run, form)) for name, form in forms.items()}
        _Choice.faster[key] = min(times, key=lambda name: times[name])
    return forms[_Choice.faster[key]](*inputs)


def _autocast_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which autocast runs convolutions of x."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def _fit(x: Tensor, *parameters: Tensor | None) -> bool:
    """Tell whether parameters are where x is, and of its dtype unless autocast is on."""
    return all(
        p is None
        or (
            p.device == x.device
            and (p.dtype == x.dtype or torch.is_autocast_enabled(x.device.type))
        )
        for p in parameters
    )


def depthwise_conv(x: Tensor, *, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve each channel with its own filter: stride 1, padding k // 2, size kept.

    Depthwise_k of FCViT's token mixer (arXiv 2212.12552); what
    `F.conv2d(x, weight, bias, padding=k // 2, groups=d)` computes, autocast included.

    Args:
        x: (B, d, H, W), any strides.
        weight: (d, 1, k, k), k odd; k from 3 to 13 has a kernel, other sizes take the plain form.
        bias: (d,) or None.

    Returns:
        (B, d, H, W) in the layout of x.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit each other, as F.conv2d raises it.
    """
    k, channels = weight.shape[-1], x.shape[1]
    if (
        not usable(x)
        or k not in KERNEL_SIZES
        or weight.shape != (channels, 1, k, k)
        or not (bias is None or bias.shape == (channels,))
        or not _fit(x, weight, bias)
    ):
        return depthwise_conv2d(x, weight=weight, bias=bias)
    return _run_faster(
        "depthwise_conv",
        depthwise_kernels.DepthwiseConv.apply,
        lambda x, weight, bias: depthwise_conv2d(x, weight=weight, bias=bias),
        *(x.to(_autocast_dtype(x)), weight, bias),
    )


def add_global_context(
    x: Tensor,
    *,
    plain: Callable[[Tensor], Tensor],
    alpha: Tensor,
    beta: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
) -> Tensor:
    """Add the global context, weighted by similarity (arXiv 2212.12552, section 3.2), to x.

        S   = <x, gap> within each head / sqrt(e),  gap = mean of x over positions
        S'  = alpha * (S - mean(S)) / (std(S) + 1e-5) + beta,  over heads and positions together
        out = x + S' * (W2 max(W1a gap + b1a, W1b gap + b1b) + b2)

    Statistics and sums are float32 at least, and so is what is computed of gap.

    Args:
        x: (B, d, H, W), any strides.
        plain: maps x to the same output by PyTorch's operators; runs for other than 8 heads.
        alpha, beta: one value per head, (h,), h a divisor of d.
        weight1, bias1: W1a above W1b, (d / 4, d), and (d / 4,).
        weight2, bias2: (d, d / 8) and (d,).

    Returns:
        (B, d, H, W) in the layout of x; under autocast a kernel rounds to its dtype, as the next
        convolution would.

    Raises:
        ValueError: d is not a multiple of h.
    """
    parameters = (alpha, beta, weight1, bias1, weight2, bias2)
    if (
        not usable(x)
        or len(alpha) != global_context.HEADS
        or any(p.device != x.device for p in parameters)
    ):
        return plain(x)
    if x.shape[1] % len(alpha):
        raise ValueError(f"x has {x.shape[1]} channels: not a multiple of its {len(alpha)} heads")
    dtype = _autocast_dtype(x)
    return _run_faster(
        "global_context",
        lambda *inputs: global_context.GlobalContext.apply(dtype, *inputs),
        lambda x, *_: plain(x),
        *(x, *parameters),
    )


def group_norm(
    x: Tensor, *, weight: Tensor, bias: Tensor, eps: float, narrow: bool = False
) -> Tensor:
    """Normalize each image by one mean and deviation: `F.group_norm(x, 1, weight, bias, eps)`.

    Statistics and sums are float32 at least.

    Args:
        x: (B, d, H, W), any strides.
        weight, bias: (d,).
        eps: is added to the variance.
        narrow: what comes next rounds to autocast's dtype: a kernel does so as it writes.

    Returns:
        (B, d, H, W); under autocast float32, as of PyTorch's, or narrow.
    """

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return group_norm_of_pytorch(x, weight=weight, bias=bias, eps=eps)

    if not usable(x) or weight.shape != x.shape[1:2] or not _fit(x, weight, bias):
        return plain(x, weight, bias)
    dtype = _autocast_dtype(x)
    if dtype != x.dtype or torch.is_autocast_enabled(x.device.type):
        dtype = dtype if narrow else torch.promote_types(x.dtype, torch.float32)
    return _run_faster(
        "group_norm",
        lambda x, weight, bias: group_norm_module.Norm.apply(x, weight, bias, eps, dtype),
        # PyTorch's forgets the layout, in which the next layers are to run
        lambda *inputs: common.dense(plain(*inputs), is_channels_last(x)),
        *(x, weight, bias),
    )


def _in_half_precision(x: Tensor, *parameters: Tensor) -> bool:
    """Tell whether kernels can run in half precision and channels_last."""
    return (
        usable(x)
        and _autocast_dtype(x) in (torch.float16, torch.bfloat16)
        and x.is_contiguous(memory_format=torch.channels_last)
        and _fit(x, *parameters)
    )


def pointwise_conv(x: Tensor, *, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve by 1x1, in half precision and channels_last as a matrix product.

    Args:
        x: (B, d, H, W).
        weight: (m, d, 1, 1).
        bias: (m,) or None.

    Returns:
        (B, m, H, W).
    """
    if not _in_half_precision(x):
        return F.conv2d(x, weight, bias)
    # cuDNN adds the bias in a pass of its own, a matrix product as it writes
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def channel_mixer(
    x: Tensor,
    *,
    plain: Callable[[Tensor], Tensor],
    weight1: Tensor,
    bias1: Tensor,
    weight: Tensor,
    bias: Tensor,
    weight2: Tensor,
    bias2: Tensor,
) -> Tensor:
    """Apply FCViT's channel mixer: 1x1, 3x3 depthwise convolution, GELU, 1x1 convolution.

    A kernel runs in half precision and channels_last alone, and keeps nothing but x for the
    backward pass.

    Args:
        x: (B, d, H, W).
        plain: maps x to the same output by PyTorch's operators.
        weight1, bias1: (m, d, 1, 1) and (m,).
        weight, bias: of the depthwise convolution, (m, 1, 3, 3) and (m,).
        weight2, bias2: (d, m, 1, 1) and (d,).

    Returns:
        (B, d, H, W).
    """
    parameters = (weight1, bias1, weight, bias, weight2, bias2)
    if not _in_half_precision(x, *parameters):
        return plain(x)
    dtype = _autocast_dtype(x)
    return _run_faster(
        "channel_mixer",
        lambda x, *parameters: channel_mixer_module.ChannelMixer.apply(x.to(dtype), *parameters),
        lambda x, *_: plain(x),
        *(x, *parameters),
    )


def add_scaled(x: Tensor, *, scale: Tensor, branch: Tensor) -> Tensor:
    """Compute x + scale * branch, which is a layer scale and the residual addition.

    A kernel runs in channels_last alone.

    Args:
        x, branch: (B, d, H, W).
        scale: (d,).

    Returns:
        (B, d, H, W), in the wider of the dtypes.
    """

    def plain(x: Tensor, scale: Tensor, branch: Tensor) -> Tensor:
        return torch.addcmul(x, scale[:, None, None], branch)

    if (
        not usable(x)
        or not x.is_contiguous(memory_format=torch.channels_last)
        or branch.shape != x.shape
        or not _fit(x, scale)
        or not (scale.requires_grad and torch.is_grad_enabled())
    ):
        return plain(x, scale, branch)
    return _run_faster("add_scaled", layer_scale.AddScaled.apply, plain, x, scale, branch)
