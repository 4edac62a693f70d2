"""FCViT as it was published: every equation a pass of its own, in PyTorch's ordinary layout.

An independent formulation to compare with, in numbers and in speed. Names of parameters are those
of the released weights, so that a state dict of FCViT fits.
"""

import torch
from torch import Tensor, nn

from fcvit_mm.models.arch import get_arch

HEADS = 8


class GlobalContext(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.rescale_weight = nn.Parameter(torch.ones(HEADS))
        self.rescale_bias = nn.Parameter(torch.zeros(HEADS))
        self.fc1 = nn.Linear(d, 2 * d // 8)
        self.fc2 = nn.Linear(d // 8, d)

    def forward(self, u: Tensor) -> Tensor:
        b, d, h, w = u.shape
        e = d // HEADS
        gap = u.mean((2, 3))
        similarity = (u.view(b, HEADS, e, h * w) * gap.view(b, HEADS, e, 1)).sum(2) * e**-0.5
        std, mean = torch.std_mean(similarity, (1, 2), keepdim=True)
        similarity = (similarity - mean) / (std + 1e-5)
        similarity = similarity * self.rescale_weight[:, None] + self.rescale_bias[:, None]
        context = self.fc2(self.fc1(gap).view(b, 2, d // 8).max(1).values)
        return (similarity[:, :, None] * context.view(b, HEADS, e, 1)).view(b, d, h, w)


class TokenMixer(nn.Module):
    def __init__(self, d: int, k: int) -> None:
        super().__init__()
        m = max(d // 8, 16)
        for i in (1, 2):
            self.add_module(f"gc{i}", GlobalContext(d))
            self.add_module(f"dw{i}", nn.Conv2d(d, d, k, padding=k // 2, groups=d))
            pointwise = nn.Sequential(nn.Conv2d(d, m, 1), nn.GELU(), nn.Conv2d(m, d, 1))
            self.add_module(f"fc{i}", pointwise)
        self.act = nn.GELU()

    def forward(self, u: Tensor) -> Tensor:
        u = u + self.gc1(u)
        u = self.act(self.fc1(self.dw1(u)))
        u = u + self.gc2(u)
        return self.act(self.fc2(self.dw2(u)))


class ChannelMixer(nn.Module):
    def __init__(self, d: int, r: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(d, r * d, 1)
        self.dwconv = nn.Conv2d(r * d, r * d, 3, padding=1, groups=r * d)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(r * d, d, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.dwconv(self.fc1(x))))


class Block(nn.Module):
    def __init__(self, d: int, r: int, k: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, d), nn.GroupNorm(1, d)
        self.token_mixer, self.channel_mixer = TokenMixer(d, k), ChannelMixer(d, r)
        self.layer_scale_1 = nn.Parameter(torch.ones(d))
        self.layer_scale_2 = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale_1[:, None, None] * self.token_mixer(self.norm1(x))
        return x + self.layer_scale_2[:, None, None] * self.channel_mixer(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, channels: int, d: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, d, 2 * stride - 1, stride, padding=stride - 1)
        self.norm = nn.BatchNorm2d(d)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class PlainFCViT(nn.Module):
    """The dense network: (B, 3, H, W) to four maps."""

    def __init__(self, arch: str | dict, kernel_size: int = 11) -> None:
        super().__init__()
        layers, dims, ratios = get_arch(arch)
        self.patch_embed = PatchEmbed(3, dims[0], 4)
        self.network = nn.ModuleList()
        for i, (depth, d, r) in enumerate(zip(layers, dims, ratios, strict=True)):
            if i:
                self.network.append(PatchEmbed(dims[i - 1], d, 2))
            self.network.append(nn.Sequential(*(Block(d, r, kernel_size) for _ in range(depth))))
            self.add_module(f"norm{2 * i}", nn.GroupNorm(1, d))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.patch_embed(x)
        outs = []
        for i, module in enumerate(self.network):
            x = module(x)
            if i % 2 == 0:
                outs.append(self.get_submodule(f"norm{i}")(x))
        return tuple(outs)


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """What a forward pass keeps for the backward pass, parameters and input apart."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    for known in (*model.parameters(), *model.buffers(), x):
        kept.pop(known.untyped_storage().data_ptr(), None)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
