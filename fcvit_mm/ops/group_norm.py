"""Normalization of each image by one mean and deviation."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .cpu import is_transformed


def group_norm(x: Tensor, *, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Compute `F.group_norm` with one group: x (B, d, H, W); weight and bias (d,)."""
    # NOTE: PyTorch 2.6 to 2.9, at least, crash in the backward pass in channels_last if x needs no
    # gradient, as behind frozen layers.
    is_graph = torch.compiler.is_compiling() or torch.jit.is_tracing() or is_transformed()
    if torch.is_grad_enabled() and not x.requires_grad and not is_graph:
        x = x.detach().requires_grad_(weight.requires_grad)
    return F.group_norm(x, 1, weight, bias, eps)
