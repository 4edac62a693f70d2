"""Every config is complete, says what its recipe says, trains a step and predicts."""

import json
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import Runner
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fcvit_mm.engine.layer_decay import layer_ids
from fcvit_mm.models.arch import get_arch
from fcvit_mm.utils.config import adapt, iter_leaf_datasets
from fcvit_mm.utils.options import enable_tta
from helpers import DATA, ROOT
from helpers.configs import differences
from helpers.images import read as read_image

CONFIGS = ROOT / "configs"
LEAVES = sorted(
    str(path.relative_to(CONFIGS))
    for task in ("detection", "segmentation")
    for path in (CONFIGS / task).glob("*.py")
)
EXAMPLES = ("_shapes.py", "_coins.py")


def read_recipes() -> dict[str, dict]:
    """The recipes' figures, a family of configs each.

    A value that depends on the arch is a dict by arch, "*" for the others. A recipe that is "like"
    another takes from it what it does not say itself.
    """
    recipes = json.loads((DATA / "recipes.json").read_text())

    def whole(name: str) -> dict:
        recipe = dict(recipes[name])
        return {**whole(recipe.pop("like")), **recipe} if "like" in recipe else recipe

    return {name: whole(name) for name in recipes}


RECIPES = read_recipes()
FAMILIES = {
    name.format(arch=arch): (name, arch) for name in RECIPES for arch in RECIPES[name]["archs"]
}
SIBLINGS = [name for name, (_, arch) in FAMILIES.items() if arch != "s12"]
ROOTS = [name for name, (_, arch) in FAMILIES.items() if arch == "s12"]
# one config a family, of its smallest arch
SMALLEST = [name.format(arch=recipe["archs"][0]) for name, recipe in RECIPES.items()]


@cache
def read(name: str) -> Config:
    return Config.fromfile(CONFIGS / name)


def load(name: str) -> Config:
    """A config of its own for each caller; reading one takes longest."""
    return deepcopy(read(name))


def method(name: str) -> tuple[str, str]:
    model = read(name).model
    return model.type, model.get("decode_head", {}).get("type", "")


# the first config of each method
METHODS = [*{method(name): name for name in reversed(SMALLEST)}.values()]
# one of each family, and those that are trained on generated images
TRAINED = [*SMALLEST, *(name for name in LEAVES if name not in FAMILIES)]


def test_every_family_is_complete():
    """Every recipe's configs exist, and each config of a public dataset has a recipe."""
    assert {name for name in LEAVES if not name.endswith(EXAMPLES)} == set(FAMILIES)


@pytest.mark.parametrize("name", LEAVES)
def test_survives_dumping(name, tmp_path):
    """The copy that MMEngine saves with a run's results is the same config."""
    cfg = load(name)
    cfg.dump(tmp_path / "dumped.py")
    assert Config.fromfile(tmp_path / "dumped.py")._cfg_dict == cfg._cfg_dict


@pytest.mark.parametrize("name", ROOTS)
def test_root_names_its_bases_and_origin(name):
    text = (CONFIGS / name).read_text()
    for fact in ("arXiv 2212.12552", "8 GPUs", f"dist_train.sh configs/{name} 8", "Published:"):
        assert fact in text
    assert text.count('"../_base_/') == 4


@pytest.mark.parametrize("name", SIBLINGS)
def test_sibling_is_a_difference(name):
    """A sibling inherits from its root and differs in what depends on the arch, nothing else."""
    family, arch = FAMILIES[name]
    root = family.format(arch="s12")
    lines = (CONFIGS / name).read_text().splitlines()
    assert len(lines) <= 12
    assert f'_base_ = "./{Path(root).name}"' in lines
    assert differences(load(root)._cfg_dict, load(name)._cfg_dict) <= {
        "model.backbone.arch",
        "model.backbone.drop_path_rate",
        "model.backbone.init_cfg.checkpoint",
        "model.neck.in_channels",
        "model.decode_head.in_channels",
        "model.auxiliary_head.in_channels",
    }


# ------------------------------------------------------------------------------ the recipes


def only(steps: list[ConfigDict], *types: str) -> ConfigDict:
    """The one step of a pipeline, or the one scheduler, of these types."""
    (found,) = [step for step in steps if step["type"] in types]
    return found


def resize(steps: list[ConfigDict]) -> dict:
    return dict(only(steps, "Resize", "RandomResize", "RandomChoice"))


def values(node: Any, *keys: str) -> list:
    """Every value under one of these keys in a config, at any depth, in order."""
    if isinstance(node, list | tuple):
        return [found for child in node for found in values(child, *keys)]
    if not isinstance(node, dict):
        return []
    return [
        found
        for key, child in node.items()
        for found in ([child] if key in keys else values(child, *keys))
    ]


def warmup(cfg: Config) -> dict | None:
    schedulers = [step for step in cfg.param_scheduler if step["type"] == "LinearLR"]
    if not schedulers:
        return None
    (linear,) = schedulers
    assert not linear.by_epoch
    return {"iterations": linear.end - linear.begin, "start": linear.start_factor}


def duration(cfg: Config) -> str:
    if cfg.train_cfg.type == "EpochBasedTrainLoop":
        return f"{cfg.train_cfg.max_epochs} epochs"
    return f"{cfg.train_cfg.max_iters} iterations"


def steps(cfg: Config) -> dict:
    multi_step = only(cfg.param_scheduler, "MultiStepLR")
    unit = "epochs" if multi_step.by_epoch else "iterations"
    assert f"{multi_step.end} {unit}" == duration(cfg)
    return {unit: multi_step.milestones, "factor": multi_step.gamma}


def poly(cfg: Config) -> dict:
    scheduler = only(cfg.param_scheduler, "PolyLR")
    assert not scheduler.by_epoch and scheduler.end == cfg.train_cfg.max_iters
    assert scheduler.begin == (warmup(cfg) or {"iterations": 0})["iterations"]
    return {"power": scheduler.power, "to": scheduler.eta_min}


def fpn(cfg: Config) -> dict | None:
    neck = dict(cfg.model.get("neck", {"type": None}))
    return neck if neck.pop("type") == "FPN" else None


def head(cfg: Config) -> dict:
    head = cfg.model.decode_head
    if head.type == "Mask2FormerHead":
        *classes, nothing = head.loss_cls.class_weight
        assert classes == [1.0] * head.num_classes
        return {
            "type": head.type,
            "channels": [head.feat_channels, head.out_channels],
            "queries": head.num_queries,
            "layers": [head.pixel_decoder.encoder.num_layers, head.transformer_decoder.num_layers],
            "points": head.train_cfg.num_points,
            "loss_weights": [head[f"loss_{part}"].loss_weight for part in ("cls", "mask", "dice")],
            "match_weights": [cost.weight for cost in head.train_cfg.assigner.match_costs],
            "weight_of_nothing": nothing,
        }
    assert head.loss_decode == dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0)
    return {
        "type": head.type,
        "channels": head.channels,
        "dropout": head.dropout_ratio,
        "norm": head.norm_cfg.type,
    }


def auxiliary_head(cfg: Config) -> dict | None:
    if "auxiliary_head" not in cfg.model:
        return None
    head = cfg.model.auxiliary_head
    return {
        "type": head.type,
        "stage": head.in_index + 1,
        "in_channels": head.in_channels,
        "channels": head.channels,
        "dropout": head.dropout_ratio,
        "norm": head.norm_cfg.type,
        "loss_weight": head.loss_decode.loss_weight,
    }


def crop(cfg: Config) -> dict:
    step = only(cfg.train_dataloader.dataset.pipeline, "RandomCrop")
    return {
        "size": step.crop_size,
        "cat_max_ratio": step.cat_max_ratio,
        "padded_to": cfg.model.data_preprocessor.size,
    }


# what Mask2Former's recipe spares besides: what it learns whatever the image, and layer scales
SPARED = ["query_embed", "query_feat", "level_embed", "layer_scale_"]


def no_decay_on(cfg: Config) -> list[str]:
    rules = cfg.optim_wrapper.get("paramwise_cfg", {})
    if rules.get("flat_decay_mult") == 0.0:
        return ["vectors"]
    if rules.get("norm_decay_mult") == 0.0:
        return ["norms", *(key for key in SPARED if key in rules.custom_keys)]
    return []


def precision(cfg: Config) -> str:
    wrapper = cfg.optim_wrapper
    return {"OptimWrapper": "float32", "AmpOptimWrapper": wrapper.get("dtype")}[wrapper.type]


def backbone_lr_factor(cfg: Config) -> float | dict:
    rules = cfg.optim_wrapper.get("paramwise_cfg", {})
    if cfg.optim_wrapper.get("constructor") == "FCViTLayerDecayOptimWrapperConstructor":
        return {"decay_rate": rules.decay_rate, "layers": rules.num_layers}
    return rules.get("custom_keys", {}).get("backbone", {}).get("lr_mult", 1.0)


def large_scale_jitter(cfg: Config) -> dict | None:
    pipeline = cfg.train_dataloader.dataset.pipeline
    if "RandomCrop" not in [step["type"] for step in pipeline]:
        return None
    crop = only(pipeline, "RandomCrop")
    (pad,) = cfg.model.data_preprocessor.batch_augments
    assert (crop.crop_type, pad.type) == ("absolute", "BatchFixedSizePad")
    return {"crop": crop.crop_size, "padded_to": pad.size}


def box_heads(cfg: Config) -> list[dict]:
    heads = cfg.model.get("roi_head", cfg.model).get("bbox_head", [])
    return [
        {
            "type": head.type,
            "stds": head.get("bbox_coder", {}).get("target_stds"),
            "norm": head.get("norm_cfg", {}).get("type"),
            "loss": [head.loss_bbox.type, head.loss_bbox.loss_weight],
        }
        for head in (heads if isinstance(heads, list) else [heads])
    ]


def transformer(cfg: Config) -> dict | None:
    head = cfg.model.get("panoptic_head", cfg.model)
    if "num_queries" not in head:
        return None
    neck = cfg.model.get("neck", {})
    encoder, decoder = values(head, "encoder")[-1], values(head, "decoder", "transformer_decoder")
    return {
        "queries": head.num_queries,
        "layers": [encoder.num_layers, decoder[-1].num_layers],
        "scales": encoder.layer_cfg.self_attn_cfg.num_levels,
        "input": {key: neck.get(key) for key in ("type", "in_channels", "out_channels")},
    }


# what detectors call the same
CLASSES = ("num_classes", "num_things_classes")
MAX_PER_IMAGE = ("max_per_img", "max_per_image")


def decoder_classes(cfg: Config) -> list[int]:
    heads = [head for head in ("decode_head", "auxiliary_head") if head in cfg.model]
    return [cfg.model[head].num_classes for head in heads]


# How each entry of a recipe is read from a config, as MMEngine will use it.
READERS: dict[str, Callable[[Config], Any]] = {
    "backbone": lambda cfg: cfg.model.backbone.type,
    "drop_path_rate": lambda cfg: cfg.model.backbone.get("drop_path_rate", 0.0),
    "mean": lambda cfg: cfg.model.data_preprocessor.mean,
    "std": lambda cfg: cfg.model.data_preprocessor.std,
    "bgr_to_rgb": lambda cfg: cfg.model.data_preprocessor.bgr_to_rgb,
    "optimizer": lambda cfg: cfg.optim_wrapper.optimizer.type,
    "lr": lambda cfg: cfg.optim_wrapper.optimizer.lr,
    "betas": lambda cfg: cfg.optim_wrapper.optimizer.betas,
    "weight_decay": lambda cfg: cfg.optim_wrapper.optimizer.weight_decay,
    "no_decay_on": no_decay_on,
    "precision": precision,
    "loss_scale": lambda cfg: cfg.optim_wrapper.get("loss_scale"),
    "clip_grad": lambda cfg: cfg.optim_wrapper.get("clip_grad"),
    "gpus": lambda cfg: cfg.auto_scale_lr.base_batch_size / cfg.train_dataloader.batch_size,
    "images_per_gpu": lambda cfg: cfg.train_dataloader.batch_size,
    "backbone_lr_factor": backbone_lr_factor,
    "duration": duration,
    "warmup": warmup,
    "flip": lambda cfg: only(cfg.train_dataloader.dataset.pipeline, "RandomFlip").prob,
    "fpn": fpn,
    "train_resize": lambda cfg: resize(cfg.train_dataloader.dataset.pipeline),
    "test_resize": lambda cfg: resize(cfg.test_dataloader.dataset.pipeline),
    "images_per_gpu_in_test": lambda cfg: cfg.test_dataloader.batch_size,
}
DETECTION_READERS = READERS | {
    "num_classes": lambda cfg: values(cfg.model, *CLASSES),
    "steps": steps,
    "large_scale_jitter": large_scale_jitter,
    "without_objects": lambda cfg: not cfg.train_dataloader.dataset.filter_cfg.filter_empty_gt,
    "box_heads": box_heads,
    "positive_overlaps": lambda cfg: values(cfg.model.train_cfg, "pos_iou_thr"),
    "transformer": transformer,
    "max_per_image": lambda cfg: values(cfg.model.test_cfg, *MAX_PER_IMAGE)[-1],
    "metric": lambda cfg: cfg.test_evaluator.metric,
}
SEGMENTATION_READERS = READERS | {
    "num_classes": decoder_classes,
    "poly": poly,
    "head": head,
    "auxiliary_head": auxiliary_head,
    "crop": crop,
    "photometric": lambda cfg: bool(
        only(cfg.train_dataloader.dataset.pipeline, "PhotoMetricDistortion")
    ),
    "test_rounded_up_to": lambda cfg: (
        only(cfg.test_dataloader.dataset.pipeline, "ResizeToMultiple").size_divisor
    ),
    "test_mode": lambda cfg: cfg.model.test_cfg.mode,
    "metric": lambda cfg: cfg.test_evaluator.iou_metrics,
}


def for_arch(value: Any, arch: str) -> Any:
    """A recipe's value with each choice by arch made."""
    if isinstance(value, list):
        return [for_arch(item, arch) for item in value]
    if not isinstance(value, dict):
        return value
    if "*" in value:
        return value.get(arch, value["*"])
    return {key: for_arch(item, arch) for key, item in value.items()}


def as_json(value: Any) -> Any:
    """A value of a config as it comes from JSON: tuples are lists, whole floats are integers."""
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("name", FAMILIES)
def test_follows_its_recipe(name):
    family, arch = FAMILIES[name]
    recipe, cfg = for_arch(RECIPES[family], arch), load(name)
    del recipe["archs"]
    readers = DETECTION_READERS if cfg.default_scope == "mmdet" else SEGMENTATION_READERS
    assert set(recipe) == set(readers), "each figure must be checked, and each check has a figure"
    assert as_json({key: read(cfg) for key, read in readers.items()}) == recipe
    assert cfg.model.backbone.arch == arch
    assert cfg.model.backbone.init_cfg == dict(
        type="Pretrained", checkpoint=f"pretrained/fcvit_{arch}.pth"
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_evaluation_is_the_same_in_training_and_test(name):
    cfg = load(name)
    assert cfg.val_dataloader == cfg.test_dataloader
    assert cfg.val_evaluator == cfg.test_evaluator
    # ... and on other images than those of the training
    training, evaluation = (
        next(iter_leaf_datasets(cfg[loader].dataset, ""))[1]
        for loader in ("train_dataloader", "val_dataloader")
    )
    assert training["data_prefix"] != evaluation["data_prefix"]
    assert cfg.auto_scale_lr.enable is False


# Learning rates by iteration. MMEngine's schedulers reach the last value of a phase at its last
# iteration, so a phase of n iterations has n - 1 steps. An epoch's iterations do not matter as long
# as the first one holds the warm-up (COCO: 3,665 with 32 images each, 7,330 with 16).
EPOCH = 1500
CURVES = {
    "detection/mask_rcnn_fcvit_s12_coco.py": {
        0: 2e-7,
        250: 2e-4 * (0.001 + 0.999 * 250 / 499),
        499: 2e-4,
        500: 2e-4,
        8 * EPOCH - 1: 2e-4,
        8 * EPOCH: 2e-5,
        11 * EPOCH - 1: 2e-5,
        11 * EPOCH: 2e-6,
        12 * EPOCH - 1: 2e-6,
    },
    "detection/mask_rcnn_fcvit_s12_3x_coco.py": {
        0: 1e-7,
        500: 1e-4 * (0.001 + 0.999 * 500 / 999),
        999: 1e-4,
        27 * EPOCH - 1: 1e-4,
        27 * EPOCH: 1e-5,
        33 * EPOCH - 1: 1e-5,
        33 * EPOCH: 1e-6,
        36 * EPOCH - 1: 1e-6,
    },
    "detection/mask2former_fcvit_s12_50e_coco.py": {
        0: 1e-4,
        327777: 1e-4,
        327778: 1e-5,
        355091: 1e-5,
        355092: 1e-6,
        368749: 1e-6,
    },
    "detection/dino_fcvit_s12_12e_coco.py": {
        0: 1e-4,
        11 * EPOCH - 1: 1e-4,
        11 * EPOCH: 1e-5,
        12 * EPOCH - 1: 1e-5,
    },
    "segmentation/semantic_fpn_fcvit_s12_ade20k.py": {
        0: 2e-4,
        500: 2e-4 * (1 - 500 / 39999) ** 0.9,
        20000: 2e-4 * (1 - 20000 / 39999) ** 0.9,
        39999: 0.0,
    },
    "segmentation/upernet_fcvit_s12_ade20k.py": {
        0: 6e-11,
        750: 6e-5 * (1e-6 + (1 - 1e-6) * 750 / 1499),
        1499: 6e-5,
        1500: 6e-5,
        80000: 6e-5 * (1 - (80000 - 1500) / 158499),
        159999: 0.0,
    },
    "segmentation/semantic_fpn_fcvit_s12_80k_ade20k.py": {
        0: 1e-4,
        40000: 1e-4 * (1 - 40000 / 79999) ** 0.9,
        79999: 0.0,
    },
    "segmentation/mask2former_fcvit_s12_160k_ade20k.py": {
        0: 1e-4,
        80000: 1e-4 * (1 - 80000 / 159999) ** 0.9,
        159999: 0.0,
    },
    "segmentation/upernet_fcvit_s12_80k_cityscapes.py": {
        0: 6e-11,
        1500: 6e-5,
        40000: 6e-5 * (1 - (40000 - 1500) / 78499),
        79999: 0.0,
    },
}


@pytest.mark.parametrize("name", CURVES)
def test_learning_rate_curve(name):
    cfg = load(name)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))], lr=cfg.optim_wrapper.optimizer.lr)
    wrapper = OptimWrapper(optimizer)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(step), default_args=dict(optimizer=wrapper))
        for step in cfg.param_scheduler
    ]
    optimizer.step()  # PyTorch wants one before the schedulers'
    curve = []
    for iteration in range(max(CURVES[name]) + 1):
        curve.append(optimizer.param_groups[0]["lr"])
        for scheduler in schedulers:
            if not scheduler.by_epoch or (iteration + 1) % EPOCH == 0:
                scheduler.step()
    expected = CURVES[name]
    assert {i: curve[i] for i in expected} == pytest.approx(expected, rel=1e-6, abs=1e-16)


# --------------------------------------------------------------- every config, built on no device


@dataclass
class Built:
    name: str
    cfg: Config
    model: nn.Module


@pytest.fixture(scope="module")
def built(request) -> Built:
    """A config's model as it is, of tensors that have no values."""
    cfg = load(request.param)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    adapt(cfg)
    with torch.device("meta"):
        return Built(request.param, cfg, MODELS.build(cfg.model))


def with_built(names: Iterable[str]) -> pytest.MarkDecorator:
    """Run a test with each of these models; the tests of a config share what is built."""
    params = [
        pytest.param(name, marks=[pytest.mark.official] if name in METHODS else [])
        for name in names
    ]
    return pytest.mark.parametrize("built", params, indirect=True, scope="module")


@with_built(LEAVES)
def test_necks_channels_are_the_backbones(built):
    model = built.model
    channels = list(model.backbone.out_channels)
    cfg = built.cfg.model
    reader = next(cfg[key] for key in ("neck", "decode_head", "panoptic_head") if key in cfg)
    assert list(reader.in_channels) == channels
    if hasattr(model, "auxiliary_head"):
        assert model.auxiliary_head.in_channels == channels[model.auxiliary_head.in_index]


@with_built(FAMILIES)
def test_parameter_groups(built):
    """Parameters have the weight decay and the learning rate of the recipe, each one."""
    recipe, model = RECIPES[FAMILIES[built.name][0]], built.model
    settings = {
        id(parameter): (group["weight_decay"], group["lr"])
        for group in build_optim_wrapper(model, built.cfg.optim_wrapper).param_groups
        for parameter in group["params"]
    }
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.modules.batchnorm._BatchNorm)
        for parameter in module.parameters()
    }
    factor = recipe["backbone_lr_factor"]
    if isinstance(factor, dict):
        layers = layer_ids(model.backbone, factor["layers"])
        factors = {
            f"backbone.{name}": factor["decay_rate"] ** (factor["layers"] + 1 - layer)
            for name, layer in layers.items()
        }
    else:
        factors = {f"backbone.{name}": factor for name, _ in model.backbone.named_parameters()}
    for name, parameter in model.named_parameters():
        kinds = {
            # the similarity is normalized without a module
            "norms": id(parameter) in norms or "rescale" in name,
            # norms, biases, layer scales, the similarity's scale and shift
            "vectors": parameter.ndim == 1,
            **{key: key in name for key in SPARED},
        }
        spared = any(kinds[kind] for kind in recipe["no_decay_on"])
        lr = recipe["lr"] * factors.get(name, 1.0)
        expected = 0.0 if spared else recipe["weight_decay"], pytest.approx(lr)
        assert settings[id(parameter)] == expected, name


@with_built(LEAVES)
def test_schedulers_run(built):
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))])
    for step in built.cfg.param_scheduler:
        PARAM_SCHEDULERS.build(dict(step), default_args=dict(optimizer=optimizer)).step()


# ------------------------------------------------------------- a step, and a prediction


SIZE = 64
VAL_SHAPE = (50, 60)  # resized to 64 x 77: neither side of the file is a multiple of 32


def innermost(dataset: ConfigDict) -> ConfigDict:
    while "dataset" in dataset:
        dataset = dataset.dataset
    return dataset


def shrink(node: Any) -> None:
    """Scale images to 64 pixels, in place: at the recipe's sizes a step would take minutes."""
    if isinstance(node, dict):
        for key in ("crop_size", "size"):
            if node.get(key) is not None:
                node[key] = (SIZE, SIZE)
        if "scale" in node:
            node["scale"] = (2 * SIZE, SIZE)
        if "scales" in node:
            node["scales"] = [(2 * SIZE, SIZE)]
    for child in node.values() if isinstance(node, dict) else node:
        if isinstance(child, dict | list | tuple):
            shrink(child)


# what takes seconds at any size of images, and how much of it is enough
ENOUGH = {
    "max_per_img": 20,
    "max_per_image": 20,
    "num_queries": 8,
    "num_dn_queries": 8,
    "num_points": 64,
    "num_layers": 2,
    "fc_out_channels": 64,
    "feedforward_channels": 64,
    # an untrained head scores each class alike, below the recipe's threshold
    "score_thr": 0.0,
}


def lighten(node: Any) -> None:
    """Leave a model less to do, in place."""
    if isinstance(node, dict):
        for key in node.keys() & ENOUGH.keys():
            node[key] = min(node[key], ENOUGH[key])
    for child in node.values() if isinstance(node, dict) else node:
        if isinstance(child, dict | list | tuple):
            lighten(child)


def narrow(model: ConfigDict) -> None:
    """Give a model's backbone the fewest channels, and say so to what reads them; in place."""
    arch = get_arch(model.backbone.arch)
    dims = (8, 16, 16, 32)
    fewer = dict(zip(arch.dims, dims, strict=True))

    def change(node: Any) -> None:
        if isinstance(node, dict):
            match node.get("in_channels"):
                case int(number):
                    node["in_channels"] = fewer.get(number, number)
                case [*numbers]:
                    node["in_channels"] = [fewer.get(number, number) for number in numbers]
        for child in node.values() if isinstance(node, dict) else node:
            if isinstance(child, dict | list | tuple):
                change(child)

    # behind a neck nothing reads the backbone, whose channels may be as many as the neck's
    neck = model.get("neck") or {}
    change(neck if "in_channels" in neck else model)
    model.backbone.arch = dict(layers=arch.layers, dims=dims, mlp_ratios=(2,) * 4)


def write_images(dataset_cfg: ConfigDict, root: Path, shape: tuple[int, int], n: int) -> None:
    """Write n images of two rectangles where a dataset of a config will look for them."""
    dataset_cfg.data_root = str(root)
    # Asking the dataset itself where it looks keeps this true for any layout.
    dataset = DATASETS.build(ConfigDict(dataset_cfg, lazy_init=True, pipeline=[]))
    height, width = shape
    boxes = [(4, 6, 24, 30), (30, 20, 20, 24)]  # x, y, width, height
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, height, width, 3), dtype=np.uint8)
    labels = np.zeros((height, width), np.uint8)
    for category, (x, y, w, h) in enumerate(boxes, start=1):
        labels[y : y + h, x : x + w] = category
        images[:, y : y + h, x : x + w] //= 2 * category
    suffix = getattr(dataset, "img_suffix", ".jpg")
    for i, image in enumerate(images):
        directory = Path(dataset.data_prefix.get("img") or dataset.data_prefix["img_path"])
        directory.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(directory / f"{i}{suffix}")
        if "seg_map_path" in dataset.data_prefix:
            directory = Path(dataset.data_prefix["seg_map_path"])
            directory.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(directory / f"{i}{dataset.seg_map_suffix}")
    if "img" in dataset.data_prefix:
        annotations = {
            "images": [
                {"id": i, "file_name": f"{i}{suffix}", "height": height, "width": width}
                for i in range(n)
            ],
            "categories": [
                {"id": i, "name": name} for i, name in enumerate(dataset.metainfo["classes"], 1)
            ],
            "annotations": [
                {
                    "id": 2 * i + category,
                    "image_id": i,
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    "iscrowd": 0,
                }
                for i in range(n)
                for category, (x, y, w, h) in enumerate(boxes, start=1)
            ],
        }
        Path(dataset.ann_file).parent.mkdir(parents=True, exist_ok=True)
        Path(dataset.ann_file).write_text(json.dumps(annotations))


def small_experiment(name: str, root: Path) -> Config:
    """A config with small images of its own, without its weights, and a narrow backbone."""
    cfg = load(name)
    init_default_scope(cfg.default_scope)
    cfg.work_dir = str(root / "work_dir")
    cfg.model.backbone.init_cfg = None
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        cfg[loader].update(num_workers=0, persistent_workers=False)
        shrink(cfg[loader].dataset)
    # UperNet pools to one position, and BatchNorm needs two values
    cfg.train_dataloader.batch_size = 2
    shrink(cfg.get("tta_pipeline", []))
    shrink(cfg.model.data_preprocessor)
    lighten([cfg.model, cfg.get("tta_model", {})])
    narrow(cfg.model)
    write_images(innermost(cfg.train_dataloader.dataset), root / "train", (SIZE, SIZE), 2)
    for task in ("val", "test"):
        dataset = innermost(cfg[f"{task}_dataloader"].dataset)
        write_images(dataset, root / "val", VAL_SHAPE, 1)
        if "ann_file" in cfg[f"{task}_evaluator"]:
            cfg[f"{task}_evaluator"].ann_file = str(root / "val" / dataset.ann_file)
    adapt(cfg)
    if "loss_scale" in cfg.optim_wrapper:
        cfg.optim_wrapper.loss_scale = 1.0  # "dynamic" begins by skipping steps
    return cfg


@dataclass
class Experiment:
    name: str
    cfg: Config
    runner: Runner


@pytest.fixture(scope="module")
def experiment(request, tmp_path_factory) -> Iterator[Experiment]:
    torch.manual_seed(0)
    cfg = small_experiment(request.param, tmp_path_factory.mktemp("experiment"))
    runner = Runner.from_cfg(cfg)
    runner.model.init_weights()
    runner.optim_wrapper = runner.build_optim_wrapper(cfg.optim_wrapper)
    yield Experiment(request.param, cfg, runner)


def with_experiments(names: Iterable[str]) -> pytest.MarkDecorator:
    """Run a test with each of these configs built; the tests of a config share what is built.

    One of each method runs with the official packages too, and the others are slow: they differ in
    what is compared with the recipes.
    """
    params = [
        pytest.param(name, marks=pytest.mark.official if name in METHODS else pytest.mark.slow)
        for name in names
    ]
    return pytest.mark.parametrize("experiment", params, indirect=True, scope="module")


@with_experiments(TRAINED)
def test_one_training_step(experiment):
    """A batch of the config's own loader gives a finite loss that reaches every parameter."""
    runner = experiment.runner
    before = {name: value.detach().clone() for name, value in runner.model.named_parameters()}
    runner.model.train()
    batch = next(iter(runner.train_loop.dataloader))
    assert len(batch["inputs"]) == 2
    gradients = {}
    for name, parameter in runner.model.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: gradients.update({name: p.grad.isfinite().all().item()})
        )
    depth = {"backbone": 3}  # backbone.network.0: every stage, every downsampling
    parts = {name: ".".join(name.split(".")[: depth.get(name.split(".")[0], 2)]) for name in before}
    # Deformable attention begins to look at its queries in the second step: in the first, the
    # gradient of DINO's level_embed is zero.
    for _ in range(2 if experiment.cfg.model.type == "DINO" else 1):
        losses = runner.model.train_step(batch, runner.optim_wrapper)
        assert all(torch.isfinite(value).all() for value in losses.values())
        assert losses["loss"] > 0
        # a parameter without gradient would stop distributed training
        assert gradients == dict.fromkeys(before, True)
        gradients.clear()
    moved = {
        parts[name] for name, p in runner.model.named_parameters() if not p.equal(before[name])
    }
    assert moved == set(parts.values())


@with_experiments(SMALLEST)
def test_a_batch_without_an_object_or_a_labeled_pixel(experiment):
    """Its losses are finite and reach every parameter, else several processes would not go on."""
    runner = experiment.runner
    runner.model.train()
    runner.optim_wrapper.zero_grad()
    # an infinite sampler can be asked once
    loader = runner.train_loop.dataloader
    batch = loader.collate_fn([loader.dataset[i] for i in range(2)])
    for sample in batch["data_samples"]:
        if "gt_instances" in sample:
            sample.gt_instances = sample.gt_instances[:0]
        else:
            sample.gt_sem_seg.data.fill_(255)
    data = runner.model.data_preprocessor(batch, training=True)
    loss, terms = runner.model.parse_losses(runner.model(**data, mode="loss"))
    loss.backward()
    assert all(value.isfinite() for value in terms.values())
    for name, parameter in runner.model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@with_experiments(TRAINED)
def test_hooks(experiment):
    """Each hook of the config is at work."""
    cfg = experiment.cfg
    hooks = {type(hook).__name__ for hook in experiment.runner.hooks}
    wanted = [hook for hook in cfg.default_hooks.values() if hook] + cfg.get("custom_hooks", [])
    assert {hook["type"] for hook in wanted} <= hooks


def check_prediction(cfg: Config, sample: Any) -> None:
    """A prediction is in the size of the file, complete and in range."""
    assert tuple(sample.ori_shape) == VAL_SHAPE
    if cfg.default_scope == "mmdet":
        predicted = sample.pred_instances
        assert 0 < len(predicted) <= values(cfg.model.test_cfg, *MAX_PER_IMAGE)[-1]
        if "segm" in cfg.test_evaluator.metric:
            assert tuple(predicted.masks.shape[1:]) == VAL_SHAPE
        assert predicted.bboxes.min() >= 0
        assert predicted.bboxes[:, 2].max() <= VAL_SHAPE[1]
        assert predicted.bboxes[:, 3].max() <= VAL_SHAPE[0]
        assert predicted.labels.max() < values(cfg.model, *CLASSES)[0]
        # Mask2Former's are chosen by class first, and weighed by their masks then
        assert (predicted.scores.diff() <= 0).all() or cfg.model.type == "Mask2Former"
    else:
        predicted = sample.pred_sem_seg.data
        assert tuple(predicted.shape[-2:]) == VAL_SHAPE
        assert predicted.min() >= 0 and predicted.max() < cfg.model.decode_head.num_classes


@with_experiments(TRAINED)
def test_prediction_and_metrics(experiment):
    cfg, runner = experiment.cfg, experiment.runner
    runner.model.eval()
    loop = runner.val_loop
    (batch,) = loop.dataloader
    with torch.no_grad():
        (sample,) = runner.model.val_step(batch)
    check_prediction(cfg, sample)
    loop.evaluator.process(data_samples=[sample], data_batch=batch)
    metrics = loop.evaluator.evaluate(1)
    assert all(np.isfinite(value) for value in metrics.values())
    # what the best checkpoint is chosen by must be among what is measured
    best = cfg.default_hooks.checkpoint.get("save_best", "auto")
    assert best == "auto" or best in metrics
    if cfg.default_scope == "mmdet":
        assert {f"coco/{kind}_mAP" for kind in cfg.test_evaluator.metric} <= set(metrics)
    else:
        assert "mIoU" in metrics


@with_experiments(name for name in SMALLEST if name.startswith("segmentation"))
def test_whole_image_with_sides_rounded_up(experiment):
    """An image of 50 x 60 is enlarged to 64 x 77, in proportion, then to multiples of 32."""
    (batch,) = experiment.runner.val_loop.dataloader
    assert batch["inputs"][0].shape == (3, 64, 96)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.official if name in METHODS else pytest.mark.slow)
        for name in SMALLEST
    ],
)
def test_prediction_with_augmentation(name, tmp_path):
    cfg = small_experiment(name, tmp_path)
    enable_tta(cfg)
    runner = Runner.from_cfg(cfg)
    # DINO has parameters that are whatever the memory held until then
    runner.model.module.init_weights()
    runner.model.eval()
    (batch,) = runner.test_loop.dataloader
    views = [len(transforms) for transforms in cfg.tta_pipeline[-1].transforms]
    assert len(batch["inputs"]) == np.prod(views) > 1
    with torch.no_grad():
        (sample,) = runner.model.test_step(batch)
    check_prediction(Config(dict(cfg, model=cfg.model.module)), sample)
    runner.test_loop.evaluator.process(data_samples=[sample], data_batch=batch)
    assert all(np.isfinite(value) for value in runner.test_loop.evaluator.evaluate(1).values())


RATIOS = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]


def logits_of(model: nn.Module, view: np.ndarray) -> Tensor:
    """Logits (1, classes, H / 4, W / 4) of an image (H, W, 3) as cv2 reads it."""
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    pixels = ((view[:, :, ::-1] - mean) / std).transpose(2, 0, 1)
    return model.decode_head(model.backbone(torch.tensor(pixels[None]).float()))


def mean_of_views(model: nn.Module, path: str, long: int, short: int) -> Tensor:
    """Probabilities (classes, H, W) of an image: the mean over sizes, each as it is and mirrored.

    A size is the largest in proportion whose sides are at most `long` and `short` times its ratio.
    """
    image = read_image(path)
    height, width = image.shape[:2]
    total: Any = 0
    for ratio in RATIOS:
        factor = min(long * ratio / max(height, width), short * ratio / min(height, width))
        sides = [int(side * factor + 0.5) for side in (width, height)]
        resized = cv2.resize(image, sides)
        resized = cv2.resize(resized, [-(-side // 32) * 32 for side in sides])
        for mirrored in (False, True):
            view = resized[:, ::-1] if mirrored else resized
            logits = interpolate(logits_of(model, view), view.shape[:2], mode="bilinear")
            logits = logits.flip(-1) if mirrored else logits
            logits = interpolate(logits, (height, width), mode="bilinear")
            total = total + logits[0].softmax(dim=0)
    return total / (2 * len(RATIOS))


@pytest.mark.official
@pytest.mark.parametrize(
    "name",
    [
        "segmentation/upernet_fcvit_tiny_ade20k.py",
        pytest.param("segmentation/upernet_fcvit_s12_80k_cityscapes.py", marks=pytest.mark.slow),
    ],
)
def test_segmentations_are_merged_by_mean_probability(name, tmp_path):
    """With the recipe's scales divided by 16, as a plain loop over the views has it."""
    torch.manual_seed(0)
    cfg = small_experiment(name, tmp_path)
    sizes = load(name).tta_pipeline[-1].transforms[0]
    long, short = RECIPES[FAMILIES[name][0]]["test_resize"]["scale"]
    assert [size.scale for size in sizes] == [(long * ratio, short * ratio) for ratio in RATIOS]
    for size, small in zip(sizes, cfg.tta_pipeline[-1].transforms[0], strict=True):
        small.scale = tuple(side // 16 for side in size.scale)
    enable_tta(cfg)
    runner = Runner.from_cfg(cfg)
    model = runner.model.module.eval()
    (batch,) = runner.test_loop.dataloader
    path = batch["data_samples"][0][0].img_path
    with torch.no_grad():
        # untrained, a model says the same everywhere: raise the differences to certainty
        logits, classifier = logits_of(model, read_image(path)), model.decode_head.conv_seg
        classifier.bias -= logits.mean(dim=(0, 2, 3))
        for parameter in classifier.parameters():
            parameter *= 5 / logits.std(dim=(0, 2, 3)).mean()
        (sample,) = runner.model.test_step(batch)
        expected = mean_of_views(model, path, long // 16, short // 16)
    best, second = expected.topk(2, dim=0).values
    clear = best - second > 1e-4
    assert clear.float().mean() > 0.98 and expected.argmax(dim=0).unique().numel() > 5
    assert sample.pred_sem_seg.data.squeeze()[clear].equal(expected.argmax(dim=0)[clear])
