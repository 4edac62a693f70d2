"""The layers of FCViT, parts before the whole.

Paper: "A Close Look at Spatial Modeling: From Attention to Convolution", arXiv 2212.12552.

Shape letters: B batch, d channels, H x W positions (N = H * W), h heads, e = d / h.
Every layer maps (B, d, H, W) to the same shape unless its docstring says otherwise. Parameter
names are those of the released weights, so that files load both ways without a translation.
"""

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

NUM_HEADS = 8
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
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class GlobalContext(nn.Module):
    """One context vector an image, handed to each position by similarity (paper section 3.2).

        S   = <u, mean of u> within each head / sqrt(e)
        S'  = alpha * (S - mean(S)) / (std(S) + 1e-5) + beta,  over heads and positions together
        out = S' * W2 max(W1a gap, W1b gap)

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
        """S' of the class docstring, (B, h, 1, H, W), at least float32.

        Args:
            x: (B, d, H, W).
            gap: mean of x over positions, (B, d).
        """
        # NOTE: half precision overflows in the inner product and loses the deviation's digits.
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            heads = x.to(dtype).unflatten(1, (NUM_HEADS, -1))  # (B, h, e, H, W)
            mean_token = gap.to(dtype).unflatten(1, (NUM_HEADS, -1))[..., None, None]
            sim = (heads * mean_token).sum(2, keepdim=True) * heads.shape[2] ** -0.5
            std, mean = torch.std_mean(sim, dim=(1, 2, 3, 4), keepdim=True)
            alpha, beta = (
                p.to(dtype).view(-1, 1, 1, 1) for p in (self.rescale_weight, self.rescale_bias)
            )
            return alpha * (sim - mean) / (std + 1e-5) + beta

    def forward(self, x: Tensor) -> Tensor:
        gap = x.mean((2, 3))  # (B, d)
        context = self.fc2(self.fc1(gap).unflatten(1, (2, -1)).amax(1))  # (B, d)
        if not self.weighted:
            return context[..., None, None].to(x.dtype).expand_as(x)
        context = context.unflatten(1, (NUM_HEADS, -1))[..., None, None]  # (B, h, e, 1, 1)
        similarity = self.similarity(x, gap).to(x.dtype)  # (B, h, 1, H, W)
        return (similarity * context.to(x.dtype)).flatten(1, 2)


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

        def depthwise(kernel: int) -> nn.Module:
            return nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)

        def pointwise() -> nn.Module:
            return nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.GELU(), nn.Conv2d(hidden, dim, 1))

        self.gc1, self.dw1, self.fc1 = context(), depthwise(kernel_size[0]), pointwise()
        self.gc2, self.dw2, self.fc2 = context(), depthwise(kernel_size[1]), pointwise()
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        if self.gc1 is not None:
            x = x + self.gc1(x)
        x = self.act(self.fc1(self.dw1(x)))
        if self.gc2 is not None:
            x = x + self.gc2(x)
        return self.act(self.fc2(self.dw2(x)))


class ChannelMixer(nn.Module):
    """Inverted bottleneck of `ratio * dim` channels with a 3x3 depthwise convolution inside."""

    def __init__(self, dim: int, ratio: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        hidden = dim * ratio
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, dim, 1)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.act(self.dwconv(self.fc1(x))))
        return self.drop(self.fc2(x))


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
        self.norm1 = nn.GroupNorm(1, dim)
        self.token_mixer = TokenMixer(dim, kernel_size, global_context, weighted_context)
        self.norm2 = nn.GroupNorm(1, dim)
        self.channel_mixer = ChannelMixer(dim, mlp_ratio, drop_rate)
        self.drop_path = StochasticDepth(drop_path_rate, mode="row")
        self.layer_scale_1 = nn.Parameter(torch.full((dim,), layer_scale_init))
        self.layer_scale_2 = nn.Parameter(torch.full((dim,), layer_scale_init))

    def forward(self, x: Tensor) -> Tensor:
        scale_1, scale_2 = self.layer_scale_1[:, None, None], self.layer_scale_2[:, None, None]
        x = x + self.drop_path(scale_1 * self.token_mixer(self.norm1(x)))
        return x + self.drop_path(scale_2 * self.channel_mixer(self.norm2(x)))


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
