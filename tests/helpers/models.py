"""Models with random weights, one per toolbox, and the smallest backbone for any config."""

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.infer import BaseInferencer
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import save_checkpoint

from fcvit_mm.datasets import shapes
from helpers import ROOT

CONFIGS = {
    "mmdet": ROOT / "configs/detection/mask_rcnn_fcvit_tiny_shapes.py",
    "mmseg": ROOT / "configs/segmentation/semantic_fpn_fcvit_tiny_shapes.py",
    "mmpretrain": ROOT / "configs/classification/fcvit_tiny_shapes.py",
}

META = {
    "mmdet": {"classes": shapes.CLASSES, "palette": shapes.PALETTE},
    "mmseg": {"classes": shapes.SEMANTIC_CLASSES, "palette": shapes.SEMANTIC_PALETTE},
    "mmpretrain": {"classes": shapes.CLASSES},
}


def saved(scope: str, path: Path, with_classes: bool = True) -> dict:
    """Save a model with random weights as a training does; returns its weights."""
    cfg = Config.fromfile(CONFIGS[scope])
    init_default_scope(scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    meta = {"dataset_meta": META[scope]} if with_classes else {}
    save_checkpoint({"state_dict": model.state_dict(), "meta": meta}, str(path))
    return model.state_dict()


def inferencer(scope: str, checkpoint: Path) -> BaseInferencer:
    config = str(CONFIGS[scope])
    if scope == "mmdet":
        from mmdet.apis import DetInferencer

        return DetInferencer(config, str(checkpoint), device="cpu")
    if scope == "mmseg":
        from mmseg.apis import MMSegInferencer

        return MMSegInferencer(config, str(checkpoint), device="cpu")
    from mmpretrain import ImageClassificationInferencer

    return ImageClassificationInferencer(config, str(checkpoint), device="cpu")


def make_smallest(model: Any) -> None:
    """Give a config's model the least FCViT there is."""
    model.backbone.arch = dict(layers=(1,) * 4, dims=(8, 16, 16, 32), mlp_ratios=(2,) * 4)
    if "neck" in model and "in_channels" in model.neck:
        model.neck.in_channels = list(model.backbone.arch["dims"])
    else:
        model.head.in_channels = model.backbone.arch["dims"][-1]
