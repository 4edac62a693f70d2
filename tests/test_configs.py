"""Every config is complete, says what its recipe says, trains a step and predicts."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import Runner
from PIL import Image
from torch import nn

from fcvit_mm.runtime import adapt, enable_tta

CONFIGS = Path(__file__).parents[1] / "configs"
LEAVES = sorted(
    str(path.relative_to(CONFIGS))
    for task in ("detection", "segmentation")
    for path in (CONFIGS / task).glob("*.py")
)
ARCHS = ("tiny", "s12", "s24", "s48")
# The published recipes' figures. A value that depends on the arch is a dict by arch, "*" for the
# others.
RECIPES = json.loads((Path(__file__).parent / "data" / "recipes.json").read_text())
PUBLISHED = {name.format(arch=arch): (name, arch) for name in RECIPES for arch in ARCHS}
SIBLINGS = [name for name, (_, arch) in PUBLISHED.items() if arch != "s12"]
ROOTS = [name for name, (_, arch) in PUBLISHED.items() if arch == "s12"]


def load(name: str) -> Config:
    return Config.fromfile(CONFIGS / name)


def test_every_family_is_complete():
    """All published configs exist, and each one on COCO or ADE20K has a recipe to be held to."""
    assert set(PUBLISHED) <= set(LEAVES)
    assert {name for name in LEAVES if name.endswith(("_coco.py", "_ade20k.py"))} == set(PUBLISHED)


@pytest.mark.parametrize("name", LEAVES)
def test_survives_dumping(name, tmp_path):
    """The copy that MMEngine puts beside a run's results is the same config."""
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
    family, arch = PUBLISHED[name]
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


def differences(a: Any, b: Any, path: str = "") -> set[str]:
    """The dotted paths at which two configs differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        return {
            found
            for key in a.keys() | b.keys()
            for found in differences(a.get(key), b.get(key), f"{path}.{key}" if path else key)
        }
    return set() if a == b else {path}


# ------------------------------------------------------------------------------ the recipes


def only(steps: list[dict], *types: str) -> dict:
    """The one step of a pipeline, or the one scheduler, of these types."""
    (found,) = [step for step in steps if step["type"] in types]
    return found


def resize(steps: list[dict]) -> dict:
    return dict(only(steps, "Resize", "RandomResize"))


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
    assert multi_step.by_epoch and multi_step.end == cfg.train_cfg.max_epochs
    return {"epochs": multi_step.milestones, "factor": multi_step.gamma}


def poly(cfg: Config) -> dict:
    scheduler = only(cfg.param_scheduler, "PolyLR")
    assert not scheduler.by_epoch and scheduler.end == cfg.train_cfg.max_iters
    assert scheduler.begin == (warmup(cfg) or {"iterations": 0})["iterations"]
    return {"power": scheduler.power, "to": scheduler.eta_min}


def fpn(cfg: Config) -> dict | None:
    if "neck" not in cfg.model:
        return None
    neck = dict(cfg.model.neck)
    assert neck.pop("type") == "FPN"
    return neck


def head(cfg: Config) -> dict:
    head = cfg.model.decode_head
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


def no_decay_on(cfg: Config) -> list[str]:
    rules = cfg.optim_wrapper.get("paramwise_cfg", {})
    if not rules:
        return []
    assert rules == {"norm_decay_mult": 0.0, "custom_keys": {"rescale_": {"decay_mult": 0.0}}}
    return ["norms"]


def rois_classes(cfg: Config) -> list[int]:
    return [cfg.model.roi_head[head].num_classes for head in ("bbox_head", "mask_head")]


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
    "precision": lambda cfg: {"AmpOptimWrapper": cfg.optim_wrapper.dtype}[cfg.optim_wrapper.type],
    "loss_scale": lambda cfg: cfg.optim_wrapper.loss_scale,
    "clip_grad": lambda cfg: cfg.optim_wrapper.get("clip_grad"),
    "gpus": lambda cfg: cfg.auto_scale_lr.base_batch_size / cfg.train_dataloader.batch_size,
    "pictures_per_gpu": lambda cfg: cfg.train_dataloader.batch_size,
    "duration": duration,
    "warmup": warmup,
    "flip": lambda cfg: only(cfg.train_dataloader.dataset.pipeline, "RandomFlip").prob,
    "fpn": fpn,
    "train_resize": lambda cfg: resize(cfg.train_dataloader.dataset.pipeline),
    "test_resize": lambda cfg: resize(cfg.test_dataloader.dataset.pipeline),
    "pictures_per_gpu_in_test": lambda cfg: cfg.test_dataloader.batch_size,
}
DETECTION_READERS = READERS | {
    "num_classes": rois_classes,
    "steps": steps,
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


@pytest.mark.parametrize("name", PUBLISHED)
def test_follows_its_recipe(name):
    family, arch = PUBLISHED[name]
    recipe, cfg = for_arch(RECIPES[family], arch), load(name)
    readers = DETECTION_READERS if cfg.default_scope == "mmdet" else SEGMENTATION_READERS
    assert set(recipe) == set(readers), "each figure must be checked, and each check has a figure"
    assert as_json({key: read(cfg) for key, read in readers.items()}) == recipe
    assert cfg.model.backbone.arch == arch
    assert cfg.model.backbone.init_cfg == dict(
        type="Pretrained", checkpoint=f"pretrained/fcvit_{arch}.pth"
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_evaluation_is_the_same_in_training_and_test(name):
    cfg = load(name)
    assert cfg.val_dataloader == cfg.test_dataloader
    assert cfg.val_evaluator == cfg.test_evaluator
    assert cfg.auto_scale_lr.enable is False


# Learning rates by iteration. MMEngine's schedulers reach the last value of a phase at its last
# iteration, so a phase of n iterations has n - 1 steps. 117,266 pictures of COCO's train2017 have
# annotations: 3,665 iterations an epoch with 32 each.
EPOCH = 3665
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


# ------------------------------------------------------------- a step, and a prediction


SIZE = 64
VAL_SHAPE = (50, 60)  # resized to 64 x 77: neither side of the file is a multiple of 32


def innermost(dataset: ConfigDict) -> ConfigDict:
    while "dataset" in dataset:
        dataset = dataset.dataset
    return dataset


def shrink(node: Any) -> None:
    """Scale pictures to 64 pixels, in place: at the recipe's sizes a step would take minutes."""
    if isinstance(node, dict):
        for key in ("crop_size", "size"):
            if node.get(key) is not None:
                node[key] = (SIZE, SIZE)
        if "scale" in node:
            node["scale"] = (2 * SIZE, SIZE)
    for child in node.values() if isinstance(node, dict) else node:
        if isinstance(child, dict | list | tuple):
            shrink(child)


def write_pictures(dataset_cfg: ConfigDict, root: Path, shape: tuple[int, int], n: int) -> None:
    """Write n pictures of two rectangles where a data set of a config will look for them."""
    dataset_cfg.data_root = str(root)
    # Asking the data set itself where it looks keeps this true for any layout.
    dataset = DATASETS.build(ConfigDict(dataset_cfg, lazy_init=True, pipeline=[]))
    height, width = shape
    boxes = [(4, 6, 24, 30), (30, 20, 20, 24)]  # x, y, width, height
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (n, height, width, 3), dtype=np.uint8)
    labels = np.zeros((height, width), np.uint8)
    for category, (x, y, w, h) in enumerate(boxes, start=1):
        labels[y : y + h, x : x + w] = category
        pictures[:, y : y + h, x : x + w] //= 2 * category
    suffix = getattr(dataset, "img_suffix", ".jpg")
    for i, picture in enumerate(pictures):
        directory = Path(dataset.data_prefix.get("img") or dataset.data_prefix["img_path"])
        directory.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(directory / f"{i}{suffix}")
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
    """A config with small pictures of its own instead of its data, and without its weights."""
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
    if cfg.default_scope == "mmdet":
        # an untrained head scores each class alike, below the recipe's threshold
        cfg.model.test_cfg.rcnn.score_thr = 0.0
        cfg.model.test_cfg.rpn.max_per_img = 50
    write_pictures(innermost(cfg.train_dataloader.dataset), root / "train", (SIZE, SIZE), 2)
    for task in ("val", "test"):
        dataset = innermost(cfg[f"{task}_dataloader"].dataset)
        write_pictures(dataset, root / "val", VAL_SHAPE, 1)
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

    FCViT-tiny's run with the official packages too: the packages do not see the arch.
    """
    params = [
        pytest.param(name, marks=[pytest.mark.official] if "_tiny_" in name else [])
        for name in names
    ]
    return pytest.mark.parametrize("experiment", params, indirect=True, scope="module")


@with_experiments(LEAVES)
def test_necks_channels_are_the_backbones(experiment):
    model = experiment.runner.model
    channels = list(model.backbone.out_channels)
    reader = model.neck if model.with_neck else model.decode_head
    assert list(reader.in_channels) == channels
    if hasattr(model, "auxiliary_head"):
        assert model.auxiliary_head.in_channels == channels[model.auxiliary_head.in_index]


@with_experiments(PUBLISHED)
def test_weight_decay(experiment):
    """Parameters go without weight decay where the recipe says so, and nowhere else."""
    recipe, model = RECIPES[PUBLISHED[experiment.name][0]], experiment.runner.model
    decay = {
        id(parameter): group["weight_decay"]
        for group in experiment.runner.optim_wrapper.param_groups
        for parameter in group["params"]
    }
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.GroupNorm | nn.modules.batchnorm._BatchNorm)
        for parameter in module.parameters()
    }
    for name, parameter in model.named_parameters():
        # the similarity is normalised without a module
        is_norm = id(parameter) in norms or "rescale" in name
        spared = is_norm and "norms" in recipe["no_decay_on"]
        assert decay[id(parameter)] == (0.0 if spared else recipe["weight_decay"]), name


@with_experiments(LEAVES)
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
    losses = runner.model.train_step(batch, runner.optim_wrapper)
    assert all(torch.isfinite(value).all() for value in losses.values())
    assert losses["loss"] > 0
    # a parameter without gradient would stop distributed training
    assert gradients == dict.fromkeys(before, True)
    moved = {name for name, p in runner.model.named_parameters() if not p.equal(before[name])}
    depth = {"backbone": 3}  # backbone.network.0: every stage, every downsampling
    parts = {name: ".".join(name.split(".")[: depth.get(name.split(".")[0], 2)]) for name in before}
    assert {parts[name] for name in moved} == set(parts.values())


@with_experiments(LEAVES)
def test_schedules_and_hooks(experiment):
    """The schedulers run on the built optimiser, and each hook of the config is at work."""
    cfg, runner = experiment.cfg, experiment.runner
    schedulers = runner.build_param_scheduler(cfg.param_scheduler)
    assert len(schedulers) == len(cfg.param_scheduler)
    for scheduler in schedulers:
        scheduler.step()
    hooks = {type(hook).__name__ for hook in runner.hooks}
    wanted = [hook for hook in cfg.default_hooks.values() if hook] + cfg.get("custom_hooks", [])
    assert {hook["type"] for hook in wanted} <= hooks


def check_prediction(cfg: Config, sample: Any) -> None:
    """A prediction is in the size of the file, complete and in range."""
    assert tuple(sample.ori_shape) == VAL_SHAPE
    if cfg.default_scope == "mmdet":
        predicted = sample.pred_instances
        assert 0 < len(predicted) <= 100
        assert tuple(predicted.masks.shape[1:]) == VAL_SHAPE
        assert predicted.bboxes.min() >= 0
        assert predicted.bboxes[:, 2].max() <= VAL_SHAPE[1]
        assert predicted.bboxes[:, 3].max() <= VAL_SHAPE[0]
        assert predicted.labels.max() < cfg.model.roi_head.bbox_head.num_classes
        assert (predicted.scores.diff() <= 0).all()
    else:
        predicted = sample.pred_sem_seg.data
        assert tuple(predicted.shape[-2:]) == VAL_SHAPE
        assert predicted.min() >= 0 and predicted.max() < cfg.model.decode_head.num_classes


@with_experiments(LEAVES)
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
        assert {"coco/bbox_mAP", "coco/segm_mAP"} <= set(metrics)
    else:
        assert "mIoU" in metrics


@with_experiments(name for name in PUBLISHED if name.startswith("segmentation"))
def test_whole_picture_with_sides_rounded_up(experiment):
    """A picture of 50 x 60 is enlarged to 64 x 77, in proportion, then to multiples of 32."""
    (batch,) = experiment.runner.val_loop.dataloader
    assert batch["inputs"][0].shape == (3, 64, 96)


@pytest.mark.official
@pytest.mark.parametrize("name", [name for name, (_, arch) in PUBLISHED.items() if arch == "tiny"])
def test_prediction_with_augmentation(name, tmp_path):
    cfg = small_experiment(name, tmp_path)
    enable_tta(cfg)
    runner = Runner.from_cfg(cfg)
    runner.model.eval()
    (batch,) = runner.test_loop.dataloader
    views = [len(transforms) for transforms in cfg.tta_pipeline[-1].transforms]
    assert len(batch["inputs"]) == np.prod(views) > 1
    with torch.no_grad():
        (sample,) = runner.model.test_step(batch)
    check_prediction(Config(dict(cfg, model=cfg.model.module)), sample)
    runner.test_loop.evaluator.process(data_samples=[sample], data_batch=batch)
    assert all(np.isfinite(value) for value in runner.test_loop.evaluator.evaluate(1).values())
