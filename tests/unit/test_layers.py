"""The layers against plain loops over the paper's equations, in float64."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fcvit_mm import ops
from fcvit_mm.models.fcvit import FCViT
from fcvit_mm.models.layers import Block, ChannelMixer, GlobalContext, PatchEmbed, TokenMixer
from fcvit_mm.models.layers import init_layer as init
from fcvit_mm.ops import global_context
from helpers.plain import PlainFCViT

HEADS = 8


def gelu(v: float) -> float:
    return 0.5 * v * (1 + math.erf(v / math.sqrt(2)))


def loop_conv(x, conv: Any):
    """Convolution of one image, tap by tap; x is a nested list [channel][row][column]."""
    rows, columns, groups = len(x[0]), len(x[0][0]), conv.groups
    k, pad, stride = conv.kernel_size[0], conv.padding[0], conv.stride[0]
    weight, bias = conv.weight.tolist(), conv.bias.tolist()
    per_in, per_out = conv.in_channels // groups, conv.out_channels // groups
    out = []
    for o in range(conv.out_channels):
        first = o // per_out * per_in
        plane = []
        for r in range(0, rows + 2 * pad - k + 1, stride):
            line = []
            for c in range(0, columns + 2 * pad - k + 1, stride):
                total = bias[o]
                for i in range(per_in):
                    for a in range(k):
                        for b in range(k):
                            y, z = r + a - pad, c + b - pad
                            if 0 <= y < rows and 0 <= z < columns:
                                total += weight[o][i][a][b] * x[first + i][y][z]
                line.append(total)
            plane.append(line)
        out.append(plane)
    return out


def loop_linear(v, linear: nn.Linear):
    weight, bias = linear.weight.tolist(), linear.bias.tolist()
    return [
        b + sum(w * a for w, a in zip(row, v, strict=True))
        for row, b in zip(weight, bias, strict=True)
    ]


def each(f, *maps):
    """Apply f to the values of nested lists of one shape."""
    if isinstance(maps[0], list):
        return [each(f, *parts) for parts in zip(*maps, strict=True)]
    return f(*maps)


def flat(x):
    return [v for plane in x for row in plane for v in row]


def loop_global_context(x, layer: GlobalContext):
    return each(lambda u, c: u + c, x, loop_context(x, layer))


def loop_context(x, layer: GlobalContext):
    d, n = len(x), len(x[0]) * len(x[0][0])
    e = d // HEADS
    gap = [sum(map(sum, plane)) / n for plane in x]
    hidden = loop_linear(gap, layer.fc1)
    half = len(hidden) // 2
    gc = loop_linear([max(hidden[i], hidden[half + i]) for i in range(half)], layer.fc2)
    if not layer.weighted:
        return [each(lambda _, g=gc[i]: g, x[i]) for i in range(d)]
    sim = []
    for h in range(HEADS):
        sim.append(
            each(
                lambda *u, h=h: sum(u[j] * gap[h * e + j] for j in range(e)) / math.sqrt(e),
                *x[h * e : (h + 1) * e],
            )
        )
    values = flat(sim)
    mean = sum(values) / len(values)
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    alpha, beta = layer.rescale_weight.tolist(), layer.rescale_bias.tolist()
    return [
        each(
            lambda s, h=i // e, g=gc[i]: (alpha[h] * (s - mean) / (std + 1e-5) + beta[h]) * g,
            sim[i // e],
        )
        for i in range(d)
    ]


def loop_token_mixer(x, layer: TokenMixer):
    steps = ((layer.gc1, layer.dw1, layer.fc1), (layer.gc2, layer.dw2, layer.fc2))
    for context, depthwise, pointwise in steps:
        if isinstance(context, GlobalContext):
            x = loop_global_context(x, context)
        x = loop_conv(each(gelu, loop_conv(loop_conv(x, depthwise), pointwise[0])), pointwise[2])
        x = each(gelu, x)
    return x


def loop_channel_mixer(x, layer: ChannelMixer):
    x = loop_conv(loop_conv(x, layer.fc1), layer.dwconv)
    return loop_conv(each(gelu, x), layer.fc2)


def loop_norm(x, norm: nn.GroupNorm):
    values = flat(x)
    mean = sum(values) / len(values)
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) + norm.eps)
    weight, bias = norm.weight.tolist(), norm.bias.tolist()
    return [
        each(lambda v, w=weight[i], b=bias[i]: (v - mean) / std * w + b, x[i])
        for i in range(len(x))
    ]


def loop_block(x, layer: Block):
    branches: Any = (
        (layer.norm1, layer.token_mixer, loop_token_mixer, layer.layer_scale_1),
        (layer.norm2, layer.channel_mixer, loop_channel_mixer, layer.layer_scale_2),
    )
    for norm, mixer, loop, scale in branches:
        branch = loop(loop_norm(x, norm), mixer)
        x = [
            each(lambda a, b, s=s: a + s * b, x[i], branch[i]) for i, s in enumerate(scale.tolist())
        ]
    return x


def randomized(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer.double().eval()


@pytest.mark.parametrize(
    ("layer", "channels", "loop"),
    [
        (GlobalContext(16), 16, loop_global_context),
        (GlobalContext(16, weighted=False), 16, loop_global_context),
        (TokenMixer(16, (3, 5)), 16, loop_token_mixer),
        (TokenMixer(8, (5, 5), global_context=False), 8, loop_token_mixer),
        (ChannelMixer(8, 2), 8, loop_channel_mixer),
        (Block(16, 2, (5, 3)), 16, loop_block),
        (PatchEmbed(3, 8, stride=4).proj, 3, loop_conv),
        (PatchEmbed(8, 8, stride=2).proj, 8, loop_conv),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layer_equals_plain_loops(layer, channels, loop):
    randomized(layer)
    x = torch.randn(2, channels, 5, 6, dtype=torch.float64)
    expected = torch.tensor([loop(image.tolist(), layer) for image in x], dtype=x.dtype)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


def test_heads_one_by_one_as_on_a_gpu_are_the_same(monkeypatch):
    layer = randomized(GlobalContext(16))
    x = torch.randn(2, 16, 5, 6, dtype=torch.float64)
    expected = layer(x)
    monkeypatch.setattr(global_context, "is_by_head", lambda x: True)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)
    other = layer(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(other, expected, rtol=1e-10, atol=1e-10)


def test_initialization():
    torch.manual_seed(0)
    block = Block(256, 4, (11, 11)).apply(init)
    mixer = block.channel_mixer
    for conv, fan_out in ((mixer.fc1, 1024), (mixer.dwconv, 9), (block.token_mixer.dw1, 121)):
        std = conv.weight.std().item()
        assert abs(std / math.sqrt(2 / fan_out) - 1) < 0.03
        assert not conv.bias.any()
    linear = block.token_mixer.gc1.fc1
    assert abs(linear.weight.std().item() / 0.02 - 1) < 0.03 and not linear.bias.any()
    assert (block.norm1.weight == 1).all() and (block.layer_scale_1 == 1e-6).all()


def test_drop_path_drops_a_branch_image_by_image():
    block = Block(16, 2, (3, 3), drop_path_rate=0.5, layer_scale_init=1.0).train()
    image = torch.randn(16, 5, 5)
    changed = (block(image.expand(64, -1, -1, -1)) - image).abs().amax((1, 2, 3)) > 1e-6
    # by chance all 64 are alike once in 1e8 runs
    assert changed.any() and not changed.all()


class Operators(TorchDispatchMode):
    """Counts the operators that compute something, which a GPU has to be told one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        aliases = [each.alias_info for each in operator._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        self.count += not is_view and "view" not in str(operator)
        return operator(*args, **kwargs or {})


def test_on_a_gpu_there_are_no_more_operators_than_as_published(monkeypatch):
    """Under autocast layers take none of the forms that are for CPUs; the layout is a GPU's."""
    for name in ("for_layers", "for_heads"):
        monkeypatch.setattr(ops, name, lambda x, **_: x)
    monkeypatch.setattr(global_context, "is_by_head", lambda x: True)
    counts = []
    for model in (PlainFCViT("tiny"), FCViT("tiny")):
        with Operators() as operators:
            with torch.autocast("cpu", torch.bfloat16):
                outs = model(torch.randn(1, 3, 64, 64))
            sum(out.float().sum() for out in outs).backward()
        counts.append(operators.count)
    published, ours = counts
    assert ours <= published, counts
