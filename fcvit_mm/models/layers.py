"""The layers of FCViT, parts before the whole.

Paper: "A Close Look at Spatial Modeling: From Attention to Convolution", arXiv 2212.12552.

Shape letters: B batch, d channels, H x W positions (N = H * W), h heads, e = d / h.
Every layer maps (B, d, H, W) to the same shape unless its docstring says otherwise. Parameter
names are those of the released weights, so that files load both ways without a translation.
"""

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from .. import ops
from .arch import NUM_HEADS

# Channels are divided by this in the bottlenecks of a token mixer.
REDUCTION = 8


class PatchEmbed(nn.Module):
    """BatchNorm(Conv x), which lowers the resolution: the stem, and between two stages.

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
    """Normalize each image by one mean and deviation; weight and bias per channel."""

    def __init__(self, dim: int) -> None:
        super().__init__(1, dim)

    def forward(self, x: Tensor) -> Tensor:
        return ops.group_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


class GELU(nn.GELU):
    """GELU by the normal distribution function."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.gelu(x)


class GlobalContext(nn.Module):
    """Add one context vector per image, weighted by similarity (paper section 3.2).

        gap = mean of u over positions
        S   = <u, gap> within each head / sqrt(e)
        S'  = alpha * (S - mean(S)) / (std(S) + 1e-5) + beta,  over heads and positions together
        gc  = W2 max(W1a gap + b1a, W1b gap + b1b) + b2
        out = u + S' * gc

    Args:
        dim: channels d, a multiple of NUM_HEADS and of REDUCTION.
        weighted: False gives the paper's ablation S' = 1, every position the same context.
    """

    def __init__(self, dim: int, weighted: bool = True) -> None:
        super().__init__()
        self.weighted = weighted
        if weighted:
            self.rescale_weight = nn.Parameter(torch.ones(NUM_HEADS))  # alpha
            self.rescale_bias = nn.Parameter(torch.zeros(NUM_HEADS))  # beta
        self.fc1 = nn.Linear(dim, 2 * dim // REDUCTION)  # W1a and W1b
        self.fc2 = nn.Linear(dim // REDUCTION, dim)

    def forward(self, x: Tensor) -> Tensor:
        gap = ops.mean_over_positions(x)  # (B, d)
        gc = self.context(gap)
        if not self.weighted:
            return x + gc.to(x.dtype)[..., None, None]
        return ops.add_weighted(x, weights=self.similarity(x, gap), token=gc)

    def context(self, gap: Tensor) -> Tensor:
        """Compute gc of the class docstring: (B, d) -> (B, d)."""
        # float32 at least, which the layer takes under autocast alone
        halves = self.fc1(gap.to(self.fc1.weight.dtype)).unflatten(1, (2, -1))
        return self.fc2(halves.max(1).values)

    def similarity(self, x: Tensor, gap: Tensor) -> Tensor:
        """Compute S' of the class docstring: (B, d, H, W), (B, d) -> (B, h, H, W)."""
        e = x.shape[1] // NUM_HEADS
        s = ops.inner_products(x, gap, heads=NUM_HEADS, scale=e**-0.5)  # (B, h, H, W)
        std, mean = torch.std_mean(s, dim=(1, 2, 3), keepdim=True)
        alpha, beta = self.rescale_weight[:, None, None], self.rescale_bias[:, None, None]
        return alpha * ((s - mean) / (std + 1e-5)) + beta


class DepthwiseConv(nn.Conv2d):
    """Convolve each channel with its own filter of an odd size; the resolution stays."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__(dim, dim, kernel, padding=kernel // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return ops.depthwise_conv2d(x, weight=self.weight, bias=self.bias)


class Pointwise(nn.Sequential):
    """GELU(W2 GELU(W1 x)), a bottleneck of two 1x1 convolutions: d -> max(d / 8, 16) -> d."""

    def __init__(self, dim: int) -> None:
        hidden = max(dim // REDUCTION, 16)
        super().__init__(nn.Conv2d(dim, hidden, 1), GELU(), nn.Conv2d(hidden, dim, 1), GELU())

    def forward(self, x: Tensor) -> Tensor:
        return ops.apply_in_row_tiles(
            lambda rows, halo: nn.Sequential.forward(self, rows),
            x,
            module=self,
            hidden_channels=x.shape[1],
        )


class TokenMixer(nn.Module):
    """Twice: add the global context, then a large depthwise convolution and a bottleneck.

        y   = Pointwise(DepthwiseConv(GlobalContext(x)))
        out = Pointwise(DepthwiseConv(GlobalContext(y)))

    Args:
        dim: channels d.
        kernel_size: odd sizes of the two depthwise convolutions.
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
        self.gc1 = GlobalContext(dim, weighted_context) if global_context else nn.Identity()
        self.dw1 = DepthwiseConv(dim, kernel_size[0])
        self.fc1 = Pointwise(dim)
        self.gc2 = GlobalContext(dim, weighted_context) if global_context else nn.Identity()
        self.dw2 = DepthwiseConv(dim, kernel_size[1])
        self.fc2 = Pointwise(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(self.dw1(self.gc1(x)))
        return self.fc2(self.dw2(self.gc2(x)))


class ChannelMixer(nn.Module):
    """W2 GELU(DW3x3(W1 x)), an inverted bottleneck of 1x1 and depthwise convolutions: d * ratio."""

    def __init__(self, dim: int, ratio: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        hidden = dim * ratio
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = GELU()
        self.fc2 = nn.Conv2d(hidden, dim, 1)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        def layers(rows: Tensor, halo: ops.Halo) -> Tensor:
            hidden = ops.without_halo(self.dwconv(self.fc1(rows)), halo)
            return self.drop(self.fc2(self.drop(self.act(hidden))))

        return ops.apply_in_row_tiles(
            layers,
            x,
            module=self,
            hidden_channels=self.fc1.out_channels,
            halo_rows=1,
            repeatable=not (self.training and self.drop.p),
        )


class Block(nn.Module):
    """Residual token mixer, then residual channel mixer, each with layer scale and drop path.

        y   = x + scale1 * drop(TokenMixer(Norm(x)))
        out = y + scale2 * drop(ChannelMixer(Norm(y)))

    Args:
        dim: channels d.
        mlp_ratio: hidden channels of the channel mixer over d.
        kernel_size, global_context, weighted_context: see TokenMixer.
        drop_rate: dropout probability in the channel mixer.
        drop_path_rate: probability that a residual branch is dropped, image by image.
        layer_scale_init: initial value of the layer scales, which have one value per channel.
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
        self.norm2 = Norm(dim)
        self.channel_mixer = ChannelMixer(dim, mlp_ratio, drop_rate)
        self.drop_path = StochasticDepth(drop_path_rate, mode="row")
        self.layer_scale_1 = nn.Parameter(torch.full((dim,), layer_scale_init))
        # None in a block that `fcvit_mm.models.fuse` has changed
        self.layer_scale_2: nn.Parameter | None = nn.Parameter(torch.full((dim,), layer_scale_init))

    def forward(self, x: Tensor) -> Tensor:
        x = add_scaled(x, self.layer_scale_1, self.drop_path(self.token_mixer(self.norm1(x))))
        return add_scaled(x, self.layer_scale_2, self.drop_path(self.channel_mixer(self.norm2(x))))


def add_scaled(x: Tensor, scale: Tensor | None, branch: Tensor) -> Tensor:
    """Compute x + scale * branch in one pass; scale has one value per channel, None means 1."""
    return x + branch if scale is None else torch.addcmul(x, scale[:, None, None], branch)


def init_layer(module: nn.Module) -> None:
    """Initialize one layer as the released models were; use with `nn.Module.apply`.

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
    else:
        return
    assert module.bias is not None
    nn.init.zeros_(module.bias)
