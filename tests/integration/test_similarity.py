"""Where FCViT looks: the maps against what the network adds, the figure against plain loops."""

import math

import numpy as np
import pytest
import torch

from fcvit_mm.analysis import similarity
from fcvit_mm.apis.model import build_model
from fcvit_mm.models.layers import GlobalContext
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.errors import ConfigError
from helpers import ROOT
from helpers.images import make_image
from helpers.models import CONFIGS

HEADS = 8


def plain_similarity(module: GlobalContext, u: np.ndarray) -> np.ndarray:
    """S' of the paper, section 3.2, by loops over heads and positions; u: (d, H, W)."""
    d, height, width = u.shape
    e = d // HEADS
    products = np.zeros((HEADS, height, width))
    for head in range(HEADS):
        part = u[head * e : (head + 1) * e]
        mean = [part[k].mean() for k in range(e)]
        for i in range(height):
            for j in range(width):
                products[head, i, j] = sum(part[k, i, j] * mean[k] for k in range(e)) / e**0.5
    normal = (products - products.mean()) / (products.std(ddof=1) + 1e-5)
    alpha, beta = (
        p.detach().double().numpy() for p in (module.rescale_weight, module.rescale_bias)
    )
    return alpha[:, None, None] * normal + beta[:, None, None]


def plain_difference(given: np.ndarray) -> float:
    """Mean over pairs of positions of (1 - cosine) / 2; given: (d, N)."""
    total, pairs = 0.0, 0
    for i in range(given.shape[1]):
        for j in range(given.shape[1]):
            if i != j:
                a, b = given[:, i], given[:, j]
                total += (1 - a @ b / (math.sqrt(a @ a) * math.sqrt(b @ b))) / 2
                pairs += 1
    return total / pairs


@pytest.mark.official
@pytest.mark.parametrize("scope", CONFIGS)
def test_maps_are_what_the_network_adds(predictors, scope):
    """(output - input) of a global context is S' times its vector, in each head's channels."""
    predictor = predictors[scope]
    backbone = similarity.find_backbone(predictor.model, "config")
    generator = torch.Generator().manual_seed(0)
    seen = []

    def record(module, inputs, output):
        seen.append((module, inputs[0][0].double(), (output - inputs[0])[0].double()))

    contexts = [m for m in backbone.modules() if isinstance(m, GlobalContext)]
    handles = [m.register_forward_hook(record) for m in contexts]
    for module in contexts:
        # untrained, they are all 1 and 0
        module.rescale_weight.data.copy_(torch.randn(HEADS, generator=generator))
        module.rescale_bias.data.copy_(torch.randn(HEADS, generator=generator))
    try:
        shown, found = similarity.contexts_of(predictor, make_image(0, 64, 64))
    finally:
        for handle in handles:
            handle.remove()
    assert shown.shape == (64, 64, 3) or scope == "mmpretrain"
    assert [(c.stage, c.block, c.part) for c in found] == [
        (stage, block, part)
        for stage, blocks in enumerate((3, 3, 5, 2), 1)
        for block in range(1, blocks + 1)
        for part in (1, 2)
    ]
    assert len(seen) == len(found)
    for context, (module, u, added) in zip(found, seen, strict=True):
        height, width = u.shape[1:]
        assert context.similarity.shape == (HEADS, height, width)
        expected = plain_similarity(module, u.numpy())
        np.testing.assert_allclose(context.similarity, expected, rtol=1e-3, atol=1e-3)
        vector = module.context(u.mean((1, 2))[None].float())[0].double().detach()
        given = vector.unflatten(0, (HEADS, -1))[:, :, None, None] * expected[:, None]
        np.testing.assert_allclose(added.unflatten(0, (HEADS, -1)), given, rtol=1e-2, atol=1e-4)
        if height * width <= 64:
            difference = plain_difference(given.flatten(0, 1).flatten(1).numpy())
            assert context.difference == pytest.approx(difference, abs=1e-4)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([[1, 2, 3], [1, 2, 3]], 0),
        ([[1, -2], [1, -2]], 1),
        ([[1, 0], [0, 5]], 0.5),
        # nothing is received at the last position
        ([[1, 1, 0], [0, 0, 0]], 1 / 3),
    ],
)
def test_difference_of_what_positions_receive(given, expected):
    assert similarity.mean_difference(torch.tensor(given).float()) == pytest.approx(expected)


def test_what_was_padded_is_not_shown(predictors):
    """A detector pads 48x80 to 64x96."""
    shown, found = similarity.contexts_of(predictors["mmdet"], make_image(0, 80, 48))
    assert shown.shape == (48, 80, 3)
    shapes = [context.similarity.shape[1:] for context in found if context.part == 1]
    expected = [(12, 20)] * 3 + [(6, 10)] * 3 + [(3, 5)] * 5
    assert shapes[:11] == expected
    assert shapes[11] in {(1, 2), (2, 2), (2, 3), (1, 3)}


def test_the_hooks_are_gone_afterwards(predictors):
    predictor = predictors["mmdet"]
    with pytest.raises(ConfigError, match="16x16 is a single position in stage 3"):
        similarity.contexts_of(predictor, make_image(0, 16, 16))
    assert not any(module._forward_hooks for module in predictor.model.modules())


def test_overlay_is_red_where_the_context_is_added():
    values = np.array([[1.0, 0.0, -1.0]])
    blue, green, red = np.moveaxis(
        similarity.overlay(np.full((512, 513, 3), 128, np.uint8), values, 1.0).astype(int), 2, 0
    )
    assert red[256, 5] > blue[256, 5] + 30 and blue[256, -5] > red[256, -5] + 30
    middle = red[256, 256], green[256, 256], blue[256, 256]
    assert max(middle) - min(middle) < 5


def test_one_figure_a_block():
    def context(block: int, part: int, difference: float) -> similarity.Context:
        return similarity.Context(1, block, part, np.zeros((8, 2, 2)), difference)

    looks = [
        [context(1, 1, 0.1), context(1, 2, 0.3), context(2, 1, 0.5), context(2, 2, 0.5)],
        [context(1, 1, 0.3), context(1, 2, 0.5), context(2, 1, 0.7), context(2, 2, 0.1)],
    ]
    first, second = similarity.differences(looks)
    assert first["contexts"] == pytest.approx([0.2, 0.4])
    assert first["difference"] == pytest.approx(0.3)
    assert (second["stage"], second["block"]) == (1, 2)
    assert second["difference"] == pytest.approx(0.45)


def test_a_model_without_contexts_is_refused():
    config = ROOT / "configs/segmentation/semantic_fpn_fcvit_tiny_plain_context_shapes.py"
    with pytest.raises(ConfigError, match="without global contexts"):
        similarity.find_backbone(build_model(load_config(str(config))), str(config))
    with pytest.raises(ConfigError, match="no FCViT"):
        similarity.find_backbone(torch.nn.Conv2d(3, 3, 1), "a.py")
