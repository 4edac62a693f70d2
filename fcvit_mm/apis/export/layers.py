"""FCViT's layers in the form that runtimes run fastest, with the same weights and results.

Runtimes keep maps in layouts of their own, with channels last or in blocks. A product with a map
as a matrix (B, d, N), or a norm over one, would have it rewritten twice: so there are convolutions,
means and elementwise operators alone, on (B, d, H, W).
"""

import torch
from torch import Tensor, nn

from ...models import layers
from ...models.arch import NUM_HEADS


class Norm(nn.Module):
    """`layers.Norm` by its equation, which OpenVINO takes for a normalization of its own."""

    def __init__(self, norm: layers.Norm) -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight, self.bias = (
            nn.Parameter(values.detach()[:, None, None]) for values in (norm.weight, norm.bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        axes = 1, 2, 3
        centered = x - x.mean(axes, keepdim=True)
        variance = (centered * centered).mean(axes, keepdim=True)
        return centered / torch.sqrt(variance + self.eps) * self.weight + self.bias


class GlobalContext(nn.Module):
    """`layers.GlobalContext` of 1x1 convolutions.

    The sum over a head's channels, and the repetition for each of them, are convolutions whose
    weights are 0 outside of the head.
    """

    def __init__(self, context: layers.GlobalContext) -> None:
        super().__init__()
        fc1, fc2 = context.fc1, context.fc2
        self.pair = nn.ModuleList(
            conv1x1(weight, bias)
            for weight, bias in zip(fc1.weight.chunk(2), fc1.bias.chunk(2), strict=True)
        )
        self.fc2 = conv1x1(fc2.weight, fc2.bias)
        self.weighted = context.weighted
        if self.weighted:
            e = fc2.out_features // NUM_HEADS
            of_head = torch.eye(NUM_HEADS).repeat_interleave(e, 1)  # (h, d)
            alpha, beta = context.rescale_weight, context.rescale_bias
            self.gather = conv1x1(of_head * e**-0.5, torch.zeros(NUM_HEADS))
            self.spread = conv1x1((of_head * alpha[:, None]).T, beta.repeat_interleave(e))

    def forward(self, x: Tensor) -> Tensor:
        gap = x.mean((2, 3), keepdim=True)  # (B, d, 1, 1)
        first, second = self.pair
        gc = self.fc2(torch.maximum(first(gap), second(gap)))
        if not self.weighted:
            return x + gc
        s = self.gather(x * gap)  # (B, h, H, W)
        centered = s - s.mean((1, 2, 3), keepdim=True)
        total = (centered * centered).sum((1, 2, 3), keepdim=True)
        std = torch.sqrt(total / (s.shape[1] * s.shape[2] * s.shape[3] - 1))
        return x + self.spread(centered / (std + 1e-5)) * gc


def conv1x1(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """Make a 1x1 convolution of a matrix (d_out, d_in) and a vector (d_out,)."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    conv.weight = nn.Parameter(weight.detach()[:, :, None, None].contiguous())
    conv.bias = nn.Parameter(bias.detach())
    return conv


def for_runtimes(model: nn.Module) -> nn.Module:
    """Replace the layers of every FCViT in a model, in place."""
    for name, child in model.named_children():
        if isinstance(child, layers.Norm):
            setattr(model, name, Norm(child))
        elif isinstance(child, layers.GlobalContext):
            setattr(model, name, GlobalContext(child))
        else:
            for_runtimes(child)
    return model
