"""Write a short config for a dataset of one's own: what `fcvit init` does."""

import json
import os
from dataclasses import dataclass

import torch

from ..datasets.own_data import OwnData
from ..models.arch import get_arch
from ..utils.errors import ConfigError
from ..utils.options import SCRATCH_LAYER_SCALE

# Longest size of images by default, in pixels: with a GPU, and without.
SIZES = {"detection": (640, 320), "segmentation": (512, 256), "classification": (224, 224)}
# Images of a batch: the most that a GPU gets, and those of a CPU.
BATCHES = {"detection": (16, 2), "segmentation": (16, 4), "classification": (128, 16)}
# GB that an image of the GPU's default size takes in a training of tiny or s12, roughly.
GIGABYTES = {"detection": 1.5, "segmentation": 1.0, "classification": 0.15}
# Iterations of a training with few images, with a GPU and without; the epochs for that.
ITERATIONS, EPOCHS = (3000, 300), (12, 300)
# Learning rates of AdamW for batches of eight images; others have the square root of the ratio.
LR, SCRATCH_LR, LR_BATCH = 1e-4, 2e-3, 8


@dataclass(frozen=True)
class Choices:
    """What a user may choose in `fcvit init`; None: as data and machine suggest."""

    arch: str | None = None
    size: int | None = None
    epochs: int | None = None
    from_scratch: bool = False
    ema: bool = False
    accumulate: int = 1


@dataclass(frozen=True)
class Plan:
    """The values of a config; batch: images of a step of one process."""

    arch: str
    size: int
    batch: int
    epochs: int
    iterations: int
    lr: float
    workers: int
    is_small: bool
    from_scratch: bool
    ema: bool
    accumulate: int


def make_plan(data: OwnData, choices: Choices) -> Plan:
    """Choose what fits the data and this machine.

    Raises:
        ConfigError: the size is no multiple of 32.
    """
    if choices.size and choices.size % 32:
        raise ConfigError(f"--size {choices.size} must be a multiple of 32, the largest stride")
    has_gpu = torch.cuda.is_available()
    which = 0 if has_gpu else 1
    arch = choices.arch or ("s12" if has_gpu else "tiny")
    largest = SIZES[data.task][which]
    size = choices.size or min(largest, max(64, -(-round(data.side) // 32) * 32))
    batch = BATCHES[data.task][which]
    if has_gpu:
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        each = GIGABYTES[data.task] * (size / SIZES[data.task][0]) ** 2
        each *= 1 if arch in ("tiny", "s12") else 2
        batch = min(batch, max(2, int(0.7 * memory / each)))
    batch = min(batch, data.train)
    fewest, most = EPOCHS
    wanted = round(ITERATIONS[which] * batch / data.train)
    epochs = choices.epochs or min(most, max(fewest, wanted))
    lr = SCRATCH_LR if choices.from_scratch else LR
    return Plan(
        arch,
        size,
        batch,
        epochs,
        iterations=epochs * -(-data.train // batch),
        lr=float(f"{lr * (batch * choices.accumulate / LR_BATCH) ** 0.5:.1g}"),
        workers=min(4, os.cpu_count() or 1),
        is_small=data.task == "detection" and not has_gpu,
        from_scratch=choices.from_scratch,
        ema=choices.ema,
        accumulate=choices.accumulate,
    )


def method_of(data: OwnData) -> str:
    """Return the name of the method that a config is for."""
    if data.task == "detection":
        return "Mask R-CNN" if data.masks else "Faster R-CNN"
    return "Semantic FPN" if data.task == "segmentation" else "classifier"


def text_of(data: OwnData, plan: Plan) -> str:
    """Return the text of a config."""
    base = f"{data.task}_small" if plan.is_small else data.task
    # not before a tenth of the training is over
    warm_up = max(1, min(500, plan.iterations // 10))
    interval = -(-plan.epochs // 10)
    steps = f", accumulative_counts={plan.accumulate}" if plan.accumulate > 1 else ""
    decay = f'dict(type="CosineAnnealingLR", eta_min=0.0, end={plan.epochs})'
    lines = [
        f"# {method_of(data)} with FCViT-{plan.arch} for {data.root}, as fcvit init wrote it",
        f'_base_ = "fcvit_mm::_base_/custom/{base}.py"',
        "",
        *_data_lines(data, plan),
        *_model_lines(data, plan),
        f"optim_wrapper = dict(optimizer=dict(lr={plan.lr}){steps})",
        f"train_cfg = dict(max_epochs={plan.epochs}, val_interval={interval})",
        f"default_hooks = dict(checkpoint=dict(interval={interval}))",
        f'warm_up = dict(type="LinearLR", start_factor=0.1, by_epoch=False, end={warm_up})',
        f"param_scheduler = [warm_up, {decay}]",
        f"auto_scale_lr = dict(base_batch_size={plan.batch})",
    ]
    if plan.ema:
        momentum = float(f"{min(0.02, max(0.0002, 20 / plan.iterations)):.1g}")
        hook = f'dict(type="EMAHook", momentum={momentum}, update_buffers=True)'
        lines.append(f"custom_hooks = [{hook}, *_base_.custom_hooks]")
    return "\n".join(lines) + "\n"


def _data_lines(data: OwnData, plan: Plan) -> list[str]:
    """Return the lines of a config on its data: where, how large, and in which batches."""
    size, root = plan.size, f"{data.root.as_posix()}/"
    classes = ", ".join(json.dumps(name, ensure_ascii=False) for name in data.classes)
    classes += "," if len(data.classes) == 1 else ""
    suffix = f', img_suffix="{data.suffix}"' if data.task == "segmentation" else ""
    place = json.dumps(root, ensure_ascii=False)
    lines = [
        f"classes = ({classes})",
        f"data = dict(data_root={place}, metainfo=dict(classes=classes){suffix})",
    ]
    if data.task == "detection":
        kind = "masks" if data.masks else "boxes"
        lines += [
            f'resize = dict(type="Resize", scale=({size}, {size}), keep_ratio=True)',
            f"train_pipeline = [_base_.read, _base_.{kind}, resize, *_base_.augment]",
            f"test_pipeline = [_base_.read, resize, _base_.{kind}, _base_.pack]",
        ]
    elif data.task == "segmentation":
        scale = f"scale=({4 * size}, {size}), keep_ratio=True"
        lines += [
            f'resize = dict(type="Resize", {scale})',
            f'jitter = dict(type="RandomResize", ratio_range=(0.5, 2.0), {scale})',
            f'crop = dict(type="RandomCrop", crop_size=({size}, {size}), cat_max_ratio=0.75)',
            "train_pipeline = [_base_.read, _base_.maps, jitter, crop, *_base_.augment]",
            "test_pipeline = [_base_.read, resize, *_base_.pack]",
        ]
    else:
        way = 'backend="pillow", interpolation="bicubic"'
        lines += [
            f'crop = dict(type="RandomResizedCrop", scale={size}, {way})',
            f'resize = dict(type="ResizeEdge", scale={round(size / 0.9)}, edge="short", {way})',
            f'center = dict(type="CenterCrop", crop_size={size})',
            "train_pipeline = [_base_.read, crop, *_base_.augment]",
            "test_pipeline = [_base_.read, resize, center, _base_.pack]",
        ]
    steps = "[resize], [center]" if data.task == "classification" else "[resize]"
    loader = f"num_workers={plan.workers}, dataset=dict(**data, pipeline="
    flips = f'dict(type="TestTimeAug", transforms=[{steps}, *_base_.flips])'
    lines += [
        f"tta_pipeline = [_base_.read, {flips}]",
        f"train_dataloader = dict(batch_size={plan.batch}, {loader}train_pipeline))",
        f"val_dataloader = test_dataloader = dict({loader}test_pipeline))",
    ]
    if data.task == "detection":
        file = json.dumps(f"{root}annotations/val.json", ensure_ascii=False)
        metric = "" if data.masks else ', metric=["bbox"]'
        lines.append(f"val_evaluator = test_evaluator = dict(ann_file={file}{metric})")
        lines += [] if data.masks else ['tta_model = dict(type="DetTTAModel")']
    return lines


def _model_lines(data: OwnData, plan: Plan) -> list[str]:
    """Return the lines of a config on its model: initial weights, channels and classes."""
    channels, n = [*get_arch(plan.arch).dims], len(data.classes)
    weights = f'init_cfg=dict(checkpoint="pretrained/fcvit_{plan.arch}.pth")'
    if plan.from_scratch:
        weights = f"init_cfg=None, layer_scale_init={SCRATCH_LAYER_SCALE}"
    backbone = f'backbone=dict(arch="{plan.arch}", {weights})'
    neck = f"neck=dict(in_channels={channels})"
    if data.task == "classification":
        head = f"head=dict(num_classes={n}, in_channels={channels[-1]})"
        parts = [backbone, f"data_preprocessor=dict(num_classes={n}), {head}"]
    elif data.task == "segmentation":
        head = f"decode_head=dict(num_classes={n})"
        parts = [backbone, neck, f"data_preprocessor=dict(size=({plan.size}, {plan.size})), {head}"]
    elif data.masks:
        heads = f"bbox_head=dict(num_classes={n}), mask_head=dict(num_classes={n})"
        parts = [backbone, neck, f"roi_head=dict({heads})"]
    else:
        heads = f"bbox_head=dict(num_classes={n}), mask_head=None, mask_roi_extractor=None"
        parts = [f'type="FasterRCNN", {backbone}', neck, f"roi_head=dict({heads})"]
    return ["model = dict(", *(f"    {part}," for part in parts), ")"]
