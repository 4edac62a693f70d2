"""FCViT for inference: what is constant then is multiplied into the neighboring convolution."""

from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

from .fcvit import FCViT
from .layers import Block, PatchEmbed

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def fuse(model: Model) -> Model:
    """Fold constants of every FCViT in a model into its convolutions, in place.

    BatchNorm goes into the patch embeddings, the second layer scale into the channel mixer's last
    1x1 convolution (a GELU stands between the first and its convolution). Outputs stay the same but
    for rounding, 1e-5 of their largest magnitude; the state dict lacks what was folded, so save and
    load weights before. A model that has been fused is left as it is.

    Args:
        model: an FCViT, or a model with one, in evaluation mode; it is returned.

    Raises:
        ValueError: the model has no FCViT, or one in training mode.
    """
    backbones = [module for module in model.modules() if isinstance(module, FCViT)]
    if not backbones:
        raise ValueError(f"fuse: {type(model).__name__} has no FCViT")
    modules = [module for backbone in backbones for module in backbone.modules()]
    if any(module.training for module in modules):
        raise ValueError("fuse: the model is in training mode; call model.eval() first")
    for module in modules:
        if isinstance(module, PatchEmbed) and isinstance(module.norm, nn.BatchNorm2d):
            module.proj = fuse_conv_bn_eval(module.proj, module.norm)
            module.norm = nn.Identity().eval()
        elif isinstance(module, Block) and module.layer_scale_2 is not None:
            last = module.channel_mixer.fc2
            assert last.bias is not None
            last.weight *= module.layer_scale_2[:, None, None, None]
            last.bias *= module.layer_scale_2
            module.layer_scale_2 = None
    return model
