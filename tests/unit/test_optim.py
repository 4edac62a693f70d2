"""Which learning rate and which weight decay every parameter gets with layer-wise decay."""

import re

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, init_default_scope
from torch import nn

from fcvit_mm import FCViT
from helpers import ROOT

CONSTRUCTOR = "FCViTLayerDecayOptimWrapperConstructor"
LR, DECAY = 1e-3, 0.05
# Layer by layer, written out by hand, the parameters of a segmentor. s12 has blocks 2, 2, 6, 2 in
# network.0, .2, .4 and .6, and downsampling in network.1, .3 and .5.
SIX_LAYERS_OF_S12 = [
    r"backbone\.patch_embed\.",
    r"backbone\.network\.0\.[01]\.",
    r"backbone\.network\.(1|2\.[01])\.",
    r"backbone\.network\.(3|4\.[01])\.",
    r"backbone\.network\.4\.[23]\.",
    r"backbone\.network\.4\.[45]\.",
    r"backbone\.network\.(5|6\.[01])\.",
    r"(backbone\.norm[0246]|neck|decode_head)\.",
]
# tiny has blocks 3, 3, 5, 2: each is a layer of its own
ALL_LAYERS_OF_TINY = [
    r"backbone\.patch_embed\.",
    r"backbone\.network\.0\.0\.",
    r"backbone\.network\.0\.1\.",
    r"backbone\.network\.0\.2\.",
    r"backbone\.network\.(1|2\.0)\.",
    r"backbone\.network\.2\.1\.",
    r"backbone\.network\.2\.2\.",
    r"backbone\.network\.(3|4\.0)\.",
    r"backbone\.network\.4\.1\.",
    r"backbone\.network\.4\.2\.",
    r"backbone\.network\.4\.3\.",
    r"backbone\.network\.4\.4\.",
    r"backbone\.network\.(5|6\.0)\.",
    r"backbone\.network\.6\.1\.",
    r"(backbone\.norm[0246]|neck|decode_head)\.",
]


def segmentor(arch: str) -> nn.Module:
    cfg = Config.fromfile(ROOT / f"configs/segmentation/semantic_fpn_fcvit_{arch}_ade20k.py")
    cfg.model.backbone.init_cfg = None
    cfg.model.decode_head.norm_cfg = dict(type="BN")
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model)


def build(model: nn.Module, paramwise_cfg: dict, **optimizer: float) -> OptimWrapper:
    optimizer = {"lr": LR, "weight_decay": DECAY, **optimizer}
    return build_optim_wrapper(
        model,
        dict(
            constructor=CONSTRUCTOR,
            optimizer=dict(type="AdamW", **optimizer),
            paramwise_cfg=paramwise_cfg,
        ),
    )


@pytest.mark.official
@pytest.mark.parametrize(
    ("arch", "paramwise_cfg", "layers"),
    [
        ("s12", dict(decay_rate=0.7, num_layers=6), SIX_LAYERS_OF_S12),
        ("tiny", dict(decay_rate=0.8), ALL_LAYERS_OF_TINY),
    ],
)
def test_every_parameter_is_in_the_group_that_is_written_out(arch, paramwise_cfg, layers):
    model = segmentor(arch)
    wrapper = build(model, paramwise_cfg)
    groups = {
        id(parameter): group
        for group in wrapper.optimizer.param_groups
        for parameter in group["params"]
    }
    assert sum(len(group["params"]) for group in wrapper.optimizer.param_groups) == len(groups)
    assert len(groups) == len(list(model.parameters()))
    seen = set()
    for name, parameter in model.named_parameters():
        (layer,) = [i for i, pattern in enumerate(layers) if re.match(pattern, name)]
        group = groups[id(parameter)]
        print(f"{name}: layer {layer}, lr {group['lr']:.3g}, decay {group['weight_decay']}")
        assert group["layer"] == layer and name in group["param_names"]
        rate = paramwise_cfg["decay_rate"]
        assert group["lr"] == pytest.approx(LR * rate ** (len(layers) - 1 - layer)), name
        spared = re.search(r"\.norm|\.bn\.|\.bias$|layer_scale|rescale_", name)
        assert group["weight_decay"] == (0.0 if spared else DECAY), name
        seen.add((layer, bool(spared)))
    assert len(seen) == len(wrapper.optimizer.param_groups) == 2 * len(layers)


def test_the_spared_parameters_of_the_backbone_are_norms_biases_scales_and_similarity():
    """One-dimensional is what the constructor looks at; this is what that means in an FCViT."""
    for name, parameter in FCViT("tiny").named_parameters():
        kind = re.search(r"norm|bias$|layer_scale|rescale_", name)
        assert (parameter.ndim == 1) == bool(kind), name


def test_schedulers_keep_the_ratios():
    wrapper = build(FCViT("tiny"), dict(decay_rate=0.5, num_layers=2))
    scheduler = PARAM_SCHEDULERS.build(
        dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=11),
        default_args=dict(optimizer=wrapper),
    )
    for factor in (0.1, 0.19):
        lrs = {group["layer"]: group["lr"] for group in wrapper.optimizer.param_groups}
        expected = {layer: LR * factor * 0.5 ** (3 - layer) for layer in range(4)}
        assert lrs == pytest.approx(expected)
        wrapper.optimizer.step()
        scheduler.step()


def test_mmengines_own_rules_come_on_top_and_frozen_parameters_stay_out():
    model = FCViT("tiny", frozen_stages=0)
    rules = {"network.6.0": dict(lr_mult=0.1, decay_mult=0.5)}
    wrapper = build(
        model, dict(decay_rate=0.5, num_layers=1, custom_keys=rules, flat_decay_mult=1.0)
    )
    by_name = {
        name: group for group in wrapper.optimizer.param_groups for name in group["param_names"]
    }
    assert set(by_name) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith("patch_embed") for name in by_name)
    group = by_name["network.6.0.channel_mixer.fc1.weight"]
    assert (group["lr"], group["weight_decay"]) == pytest.approx((LR * 0.5 * 0.1, DECAY * 0.5))
    group = by_name["network.6.1.layer_scale_1"]
    assert (group["lr"], group["weight_decay"]) == pytest.approx((LR * 0.5, DECAY))


def test_a_step_moves_the_deep_layers_more():
    torch.manual_seed(0)
    model = FCViT("tiny", layer_scale_init=0.1)
    wrapper = build(model, dict(decay_rate=0.1, num_layers=2), weight_decay=0.0)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    features = model(torch.rand(2, 3, 64, 64))
    wrapper.update_params(sum((f * torch.randn_like(f)).sum() for f in features))
    moved = {name: (p - before[name]).abs().max().item() for name, p in model.named_parameters()}
    # the first step of AdamW is as long as the learning rate, to the rounding of weights of 1
    assert moved["norm6.weight"] == pytest.approx(LR, rel=1e-2)
    assert moved["network.6.1.layer_scale_1"] == pytest.approx(LR * 0.1, rel=1e-2)
    assert moved["network.0.0.layer_scale_1"] == pytest.approx(LR * 0.01, rel=1e-2)
    assert moved["patch_embed.norm.weight"] == pytest.approx(LR * 0.001, abs=2e-7)


@pytest.mark.parametrize(
    ("paramwise_cfg", "words"),
    [
        (dict(num_layers=6), "decay_rate=None"),
        (dict(decay_rate=1.5), "decay_rate=1.5"),
        (dict(decay_rate=0.7, num_layers=14), "num_layers=14 .* 1 to 13"),
        (dict(decay_rate=0.7, num_layers=True), "num_layers=True"),
    ],
)
def test_values_out_of_range_are_named(paramwise_cfg, words):
    with pytest.raises(ValueError, match=words):
        build(FCViT("tiny"), paramwise_cfg)


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.ModuleList([FCViT("tiny"), FCViT("tiny")])])
def test_a_model_without_exactly_one_fcvit_is_refused(model):
    with pytest.raises(ValueError, match="one FCViT; (Linear has 0|ModuleList has 2)"):
        build(model, dict(decay_rate=0.7))
