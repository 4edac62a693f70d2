"""Build the models of configs, and run them on noise at a chosen size."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..apis.model import build_model
from ..utils.config import task_of

Size = tuple[int, int]  # height, width

# The size of an image, by the end of a config's name ...
SIZES: dict[str, Size] = {
    "ade20k": (512, 512),
    "cityscapes": (512, 1024),
    "coco": (800, 1280),
    "coins": (128, 128),
    "in1k": (224, 224),
    "shapes": (128, 128),
}
# ... and for other names by the toolbox.
SCOPE_SIZES = {"mmdet": "coco", "mmseg": "ade20k", "mmpretrain": "in1k"}


def default_size(cfg: Config) -> Size:
    """Return the size of a config's images; a ConfigError for an unknown default_scope."""
    task_of(cfg)  # or there is no such scope
    name = Path(cfg.filename).stem.split("_")[-1]
    return SIZES[name if name in SIZES else SCOPE_SIZES[cfg.default_scope]]


def build(cfg: Config) -> Any:
    """Build the model of a config, in evaluation mode, on the CPU, each time with the same weights.

    A two-stage detector keeps as many proposals and detections as it may, none is suppressed: what
    it computes depends on the input size alone.

    Raises:
        ConfigError: it can't be built.
    """
    cfg = cfg.copy()
    torch.manual_seed(0)
    model = cfg.get("model")
    if isinstance(model, dict):
        test_cfg: Any = model.get("test_cfg") or {}
        train_cfg: Any = model.get("train_cfg") or {}
        if "rpn" in test_cfg:
            test_cfg.rpn.nms.iou_threshold = test_cfg.rcnn.nms.iou_threshold = 1.0
            test_cfg.rcnn.score_thr = 0.0
        if "rpn_proposal" in train_cfg:
            train_cfg.rpn_proposal.nms.iou_threshold = 1.0
    return build_model(cfg).eval()


def example_samples(scope: str, size: Size, batch: int, device: torch.device) -> list[Any]:
    """Make data samples of OpenMMLab with ground truth to train on, of class 0.

    For detection four objects, boxes and masks, in the quarters of the image; for segmentation
    the class everywhere.
    """
    return [_example_sample(scope, size).to(device) for _ in range(batch)]


def _example_sample(scope: str, size: Size) -> Any:
    height, width = size
    shapes = ("img_shape", "ori_shape", "pad_shape", "batch_input_shape")
    info = dict.fromkeys(shapes, size) | {
        "scale_factor": (1.0, 1.0), "padding_size": [0, 0, 0, 0], "img_id": 0
    }  # fmt: skip
    if scope == "mmpretrain":
        from mmpretrain.structures import DataSample

        return DataSample(metainfo=info).set_gt_label(0)
    if scope == "mmseg":
        from mmseg.structures import SegDataSample

        labels = torch.zeros(1, height, width, dtype=torch.long)
        return SegDataSample(metainfo=info, gt_sem_seg=PixelData(data=labels))
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    masks = np.zeros((4, height, width), np.uint8)
    boxes, labels = torch.zeros(4, 4), torch.zeros(4, dtype=torch.long)
    for i, mask in enumerate(masks):
        top, left = i // 2 * height // 2, i % 2 * width // 2
        bottom, right = top + (height + 1) // 2, left + (width + 1) // 2
        mask[top:bottom, left:right] = 1
        boxes[i] = torch.tensor([left, top, right, bottom])
    masks = BitmapMasks(masks, height, width)
    return DetDataSample(
        metainfo=info,
        gt_instances=InstanceData(bboxes=boxes, labels=labels, masks=masks),
        ignored_instances=InstanceData(bboxes=boxes[:0], labels=labels[:0]),
    )


def run_prediction(model: nn.Module, inputs: Tensor, samples: list[Any]) -> Any:
    """Predict with a whole model of OpenMMLab, or run any other module."""
    if isinstance(model, BaseModel):
        return model(inputs, samples, mode="predict")
    return model(inputs)


def run_loss(model: nn.Module, inputs: Tensor, samples: list[Any]) -> Tensor:
    """Return a loss to call backward() of; for a backbone the sum of its outputs' means."""
    if isinstance(model, BaseModel):
        return model.parse_losses(model(inputs, samples, mode="loss"))[0]
    return torch.stack([out.mean() for out in tree_leaves(model(inputs))]).sum()
