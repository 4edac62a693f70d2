"""The layers of FCViT, parts before the whole.

Paper: "A Close Look at Spatial Modeling: From Attention to Convolution", arXiv 2212.12552.

Shape letters: B batch, d channels, H x W positions (N = H * W), h heads, e = d / h.
Every layer maps (B, d, H, W) to the same shape unless its docstring says otherwise. Parameter
names are those of the released weights, so that files load both ways without a translation.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ..ops import dispatch, row_tiling
from ..ops.dispatch import NUM_HEADS

# Channels are divided by this in the bottlenecks of a token mixer.
REDUCTION = 8


class PatchEmbed(nn.Module):
    """Convolution and BatchNorm that lower the resolution: the stem, and between two stages.

    (B, in_dim, H, W) -> (B, dim, ceil(H / stride), ceil(W / stride)) for kernel = 2 * stride - 1.
    """

    def __init__(self, in_dim: int, dim: int, stride: int) -> None:
        super().__init__()
        kernel = 2 * stride - 1
        self.proj = nn.Conv2d(in_dim, dim, kernel, stride, padding=kernel // 2)
        self.norm: nn.Module = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class Norm(nn.GroupNorm):
    """One mean and deviation an image; weight and bias a channel.

    Args:
        dim: channels d.
        narrow: under autocast, what comes next rounds to its dtype anyhow.
    """

    def __init__(self, dim: int, narrow: bool = False) -> None:
        super().__init__(1, dim)
        self.narrow = narrow

    def forward(self, x: Tensor) -> Tensor:
        # NOTE: PyTorch 2.6 to 2.9, at least, crash in the backward pass in channels_last if x needs
        # no gradient, as behind frozen layers.
        if torch.is_grad_enabled() and not x.requires_grad and not torch.compiler.is_compiling():
            x = x.detach().requires_grad_(self.weight.requires_grad)
        return dispatch.group_norm(x, self.weight, self.bias, self.eps, self.narrow)


def by_head(values: Tensor) -> Tensor:
    """Channels split by head, as rows of a matrix: (B, d) -> (B, h, d), zero outside of a head."""
    heads = torch.eye(NUM_HEADS, dtype=values.dtype, device=values.device)
    return values[:, None] * heads.repeat_interleave(values.shape[1] // NUM_HEADS, dim=1)


class _InnerProducts(torch.autograd.Function):
    """x (B, d, H, W), tokens (B, h, d) -> x, inner products with its positions (B, h, N).

    x is handed through so that its whole gradient arrives here at once and is written once.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, tokens)
        return x.view_as(x), tokens @ x.flatten(2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_products: Tensor) -> tuple[Tensor, Tensor]:
        x, tokens = ctx.saved_tensors
        grad_x = torch.baddbmm(grad.flatten(2).mT, grad_products.mT, tokens)  # (B, N, d)
        return grad_x.mT.unflatten(2, x.shape[2:]), grad_products @ x.flatten(2).mT


class GlobalContext(nn.Module):
    """Adds one context vector an image, weighted by similarity (paper section 3.2).

        S   = <u, mean of u> within each head / sqrt(e)
        S'  = alpha * (S - mean(S)) / (std(S) + 1e-5) + beta,  over heads and positions together
        out = u + S' * W2 max(W1a gap, W1b gap)

    The inner products of all heads are one product of u with a matrix (d, h), and so is, with
    (h, d), the handing out; the addition is part of it. So u is read three times, for its mean,
    for S and for the sum, and nothing of its size is written but the output.

    Args:
        dim: channels d, a multiple of 8.
        weighted: False gives the paper's ablation S' = 1, every position the same context.
    """

    def __init__(self, dim: int, weighted: bool = True) -> None:
        super().__init__()
        self.weighted = weighted
        if weighted:
            self.rescale_weight = nn.Parameter(torch.ones(NUM_HEADS))
            self.rescale_bias = nn.Parameter(torch.zeros(NUM_HEADS))
        self.fc1 = nn.Linear(dim, 2 * dim // REDUCTION)
        self.fc2 = nn.Linear(dim // REDUCTION, dim)

    def similarity(self, x: Tensor, gap: Tensor) -> Tensor:
        """S' of the class docstring, (B, h, H, W), at least float32.

        Args:
            x: (B, d, H, W).
            gap: mean of x over positions, (B, d).
        """
        return self._similarity(x, gap)[1]

    def _similarity(self, x: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        """x, to be used from here on, and S'."""
        # NOTE: half precision overflows in the inner product and loses the deviation's digits.
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            scale = (x.shape[1] // NUM_HEADS) ** -0.5
            mean_tokens = by_head(gap.to(dtype) * scale)  # (B, h, d)
            channels_last = x.is_contiguous(memory_format=torch.channels_last)
            if torch.is_grad_enabled() and channels_last and row_tiling.runs_on_cpu(x):
                x, sim = _InnerProducts.apply(x, mean_tokens)  # (B, h, N)
            else:
                sim = mean_tokens @ x.to(dtype).flatten(2)
            std, mean = torch.std_mean(sim, dim=(1, 2), keepdim=True)
            alpha, beta = (p.to(dtype)[:, None] for p in (self.rescale_weight, self.rescale_bias))
            return x, (alpha * ((sim - mean) / (std + 1e-5)) + beta).unflatten(2, x.shape[2:])

    def context(self, gap: Tensor) -> Tensor:
        """W2 max(W1a gap, W1b gap): (B, d) -> (B, d)."""
        return self.fc2(self.fc1(gap).unflatten(1, (2, -1)).amax(1))

    def forward(self, x: Tensor) -> Tensor:
        if not self.weighted:
            return x + self.context(x.mean((2, 3))).to(x.dtype)[..., None, None]
        return dispatch.add_global_context(x, self.add_weighted, *self.parameters())

    def add_weighted(self, x: Tensor) -> Tensor:
        """The class docstring's equations, with PyTorch's operators."""
        # a sum's gradient, other than a mean's, is not written out over all positions
        total = x.sum((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))
        gap = (total / (x.shape[2] * x.shape[3])).to(x.dtype)  # (B, d)
        context = self.context(gap).to(x.dtype)  # (B, d)
        x, similarity = self._similarity(x, gap)
        similarity = similarity.to(x.dtype).flatten(2)  # (B, h, N)
        tokens, contexts = x.flatten(2), by_head(context)  # (B, d, N), (B, h, d)
        # a product keeps no memory format: it is written in the order that the next layer reads
        if x.is_contiguous(memory_format=torch.channels_last):
            out = torch.baddbmm(tokens.mT, similarity.mT, contexts)  # (B, N, d)
            return out.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        return torch.baddbmm(tokens, contexts.mT, similarity).unflatten(2, x.shape[2:])


class DepthwiseConv(nn.Conv2d):
    """Each channel with its own filter of an odd size; the resolution stays."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__(dim, dim, kernel, padding=kernel // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return dispatch.depthwise_conv(x, self.weight, self.bias)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__(in_dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not dispatch.in_half_precision(x):
            return super().forward(x)
        # cuDNN adds the bias in a pass of its own, a matrix product as it writes
        out = F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
        return out.permute(0, 3, 1, 2)


class GELU(nn.GELU):
    """In place in a prediction on a CPU, which then needs less memory and seldom new one."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not row_tiling.runs_on_cpu(x):
            return super().forward(x)
        return torch.ops.aten.gelu_(x)


class TokenMixer(nn.Module):
    """Twice: add the global context, then a large depthwise and a pointwise bottleneck.

    Args:
        dim: channels d.
        kernel_size: odd sizes of the first and the second depthwise convolution.
        global_context: False leaves the contexts out (ablation).
        weighted_context: see GlobalContext.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: tuple[int, int],
        global_context: bool = True,
        weighted_context: bool = True,
    ) -> None:
        super().__init__()
        hidden = max(dim // REDUCTION, 16)

        def context() -> nn.Module | None:
            return GlobalContext(dim, weighted_context) if global_context else None

        def pointwise() -> nn.Sequential:
            return nn.Sequential(Pointwise(dim, hidden), GELU(), Pointwise(hidden, dim))

        first, second = (DepthwiseConv(dim, kernel) for kernel in kernel_size)
        self.gc1, self.dw1, self.fc1 = context(), first, pointwise()
        self.gc2, self.dw2, self.fc2 = context(), second, pointwise()
        self.act = GELU()

    def forward(self, x: Tensor) -> Tensor:
        if self.gc1 is not None:
            x = self.gc1(x)
        x = self.bottleneck(self.fc1, self.dw1(x))
        if self.gc2 is not None:
            x = self.gc2(x)
        return self.bottleneck(self.fc2, self.dw2(x))

    def bottleneck(self, pointwise: nn.Module, x: Tensor) -> Tensor:
        """GELU of a pointwise bottleneck."""

        def chain(rows: Tensor, *_: int) -> Tensor:
            return self.act(pointwise(rows))

        if row_tiling.pay(x, hidden=x.shape[1]):
            return row_tiling.in_strips(chain, x, pointwise.parameters(), hidden=x.shape[1])
        return chain(x)


class ChannelMixer(nn.Module):
    """Inverted bottleneck of `ratio * dim` channels with a 3x3 depthwise convolution inside."""

    def __init__(self, dim: int, ratio: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        hidden = dim * ratio
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = GELU()
        self.fc2 = nn.Conv2d(hidden, dim, 1)
        self.drop = nn.Dropout(drop_rate)

    def mix(self, x: Tensor, above: int = 0, below: int = 0) -> Tensor:
        """All layers; so many rows above and below, mere neighbors, are not in the result."""
        x = row_tiling.without_neighbours(self.dwconv(self.fc1(x)), above, below)
        return self.drop(self.fc2(self.drop(self.act(x))))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1.out_channels
        if self.training and self.drop.p:
            return self.mix(x)
        if row_tiling.pay(x, hidden):
            return row_tiling.in_strips(self.mix, x, self.parameters(), hidden, halo=1)
        return dispatch.channel_mixer(x, self.mix, *self.parameters())


class Block(nn.Module):
    """Residual token mixer, then residual channel mixer, each with layer scale and drop path.

    Args:
        dim: channels d.
        mlp_ratio: hidden channels of the channel mixer over d.
        kernel_size, global_context, weighted_context: see TokenMixer.
        drop_rate: dropout probability in the channel mixer.
        drop_path_rate: probability that a residual branch is dropped, image by image.
        layer_scale_init: start value of the layer scales, one a channel.
    """

    def __init__(
        self,
        dim: int,
        mlp_ratio: int,
        kernel_size: tuple[int, int],
        global_context: bool = True,
        weighted_context: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm1 = Norm(dim)
        self.token_mixer = TokenMixer(dim, kernel_size, global_context, weighted_context)
        self.norm2 = Norm(dim, narrow=True)
        self.channel_mixer = ChannelMixer(dim, mlp_ratio, drop_rate)
        self.drop_path = StochasticDepth(drop_path_rate, mode="row")
        self.layer_scale_1 = nn.Parameter(torch.full((dim,), layer_scale_init))
        # None in a block that `fcvit_mm.models.fuse` has changed
        self.layer_scale_2: nn.Parameter | None = nn.Parameter(torch.full((dim,), layer_scale_init))

    def forward(self, x: Tensor) -> Tensor:
        x = self.add(x, self.layer_scale_1, self.token_mixer(self.norm1(x)))
        return self.add(x, self.layer_scale_2, self.channel_mixer(self.norm2(x)))

    def add(self, x: Tensor, scale: Tensor | None, branch: Tensor) -> Tensor:
        """x + DropPath(scale * branch), where a scale of None is already in the branch."""
        branch = self.drop_path(branch)
        if scale is None:
            return x + branch
        return dispatch.add_scaled(x, scale, branch)


def init_start_values(module: nn.Module) -> None:
    """Give one layer the published start values; use with `nn.Module.apply`.

    Convolutions: normal, std sqrt(2 / fan_out) with fan_out = kh * kw * out / groups. Linear
    layers: truncated normal, std 0.02. Biases 0, norms 1 and 0.
    """
    if isinstance(module, nn.Conv2d):
        fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.ones_(module.weight)
    if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.GroupNorm):
        assert module.bias is not None
        nn.init.zeros_(module.bias)
