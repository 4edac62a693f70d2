"""FCViT's layers on a GPU: `backbone=dict(type='FCViT', triton=True)`, or `use_triton(model)`.

Layers that have a Triton kernel are given another `forward`, which runs the kernel or the layer's
own, whichever `ops.triton.dispatch` finds faster. Parameters, names and results stay.
"""

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

from torch import Tensor, nn

from ..ops.triton import dispatch
from ..ops.triton.common import triton
from .fcvit import FCViT
from .layers import Block, ChannelMixer, DepthwiseConv, GlobalContext, Norm, Pointwise


def use_triton(model: nn.Module, on: bool = True) -> None:
    """Let every FCViT in a model run Triton kernels, or no longer.

    When traced, exported or compiled by torch.compile, layers run as they do without.

    Args:
        model: an FCViT, or a model with one.
        on: False undoes it.

    Raises:
        ImportError: Triton is not installed.
        ValueError: the model has no FCViT.
    """
    if on and triton is None:
        raise ImportError("the kernels of fcvit_mm need Triton: pip install triton")
    backbones = [module for module in model.modules() if isinstance(module, FCViT)]
    if not backbones:
        raise ValueError(f"use_triton: {type(model).__name__} has no FCViT")
    for backbone in backbones:
        backbone.triton = on
        for layer in backbone.modules():
            layer.__dict__.pop("forward", None)
            if on and type(layer) in FORWARDS:
                layer.__dict__["forward"] = MethodType(FORWARDS[type(layer)], layer)
        for block in backbone.modules() if on else ():
            if isinstance(block, Block):
                # the channel mixer rounds its input to autocast's dtype anyhow
                block.norm2.__dict__["forward"] = partial(_norm, block.norm2, narrow=True)


def _norm(layer: Norm, x: Tensor, narrow: bool = False) -> Tensor:
    return dispatch.group_norm(
        x, weight=layer.weight, bias=layer.bias, eps=layer.eps, narrow=narrow
    )


def _global_context(layer: GlobalContext, x: Tensor) -> Tensor:
    if not layer.weighted:
        return GlobalContext.forward(layer, x)
    return dispatch.add_global_context(
        x,
        plain=partial(GlobalContext.forward, layer),
        alpha=layer.rescale_weight,
        beta=layer.rescale_bias,
        weight1=layer.fc1.weight,
        bias1=layer.fc1.bias,
        weight2=layer.fc2.weight,
        bias2=layer.fc2.bias,
    )


def _depthwise_conv(layer: DepthwiseConv, x: Tensor) -> Tensor:
    return dispatch.depthwise_conv(x, weight=layer.weight, bias=layer.bias)


def _pointwise(layer: Pointwise, x: Tensor) -> Tensor:
    for part in layer:
        if isinstance(part, nn.Conv2d):
            x = dispatch.pointwise_conv(x, weight=part.weight, bias=part.bias)
        else:
            x = part(x)
    return x


def _channel_mixer(layer: ChannelMixer, x: Tensor) -> Tensor:
    plain = partial(ChannelMixer.forward, layer)
    if layer.training and layer.drop.p:
        return plain(x)
    assert layer.fc1.bias is not None
    assert layer.dwconv.bias is not None
    assert layer.fc2.bias is not None
    return dispatch.channel_mixer(
        x,
        plain=plain,
        weight1=layer.fc1.weight,
        bias1=layer.fc1.bias,
        weight=layer.dwconv.weight,
        bias=layer.dwconv.bias,
        weight2=layer.fc2.weight,
        bias2=layer.fc2.bias,
    )


def _block(layer: Block, x: Tensor) -> Tensor:
    branch = layer.drop_path(layer.token_mixer(layer.norm1(x)))
    x = dispatch.add_scaled(x, scale=layer.layer_scale_1, branch=branch)
    branch = layer.drop_path(layer.channel_mixer(layer.norm2(x)))
    if layer.layer_scale_2 is None:
        return x + branch
    return dispatch.add_scaled(x, scale=layer.layer_scale_2, branch=branch)


FORWARDS: dict[type[nn.Module], Callable[..., Any]] = {
    Norm: _norm,
    GlobalContext: _global_context,
    DepthwiseConv: _depthwise_conv,
    Pointwise: _pointwise,
    ChannelMixer: _channel_mixer,
    Block: _block,
}
