"""Build the models of configs, and run them on noise at a chosen size."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.structures import InstanceData, PixelData
from PIL import Image
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..apis.model import build_model
from ..utils.config import iter_leaf_datasets, task_of
from ..utils.errors import ConfigError
from ..visualization.images import IMAGES

Size = tuple[int, int]  # height, width

# Width to height of an image that keeps its ratio when it is resized. With COCO's (1333, 800) it
# has the 1280x800 pixels at which papers count.
RATIO = (8, 5)
# Detectors pad images to multiples of it.
DIVISOR = 32
# The steps of a pipeline that decide on the size, with the key of theirs that has it.
RESIZING = {"Resize": "scale", "ResizeEdge": "scale", "Pad": "size", "CenterCrop": "crop_size"}


def default_size(cfg: Config) -> Size:
    """Return the size of the images that a config's test pipeline makes.

    Where images keep their ratio, for a segmentor that of the crops that it is trained on, else of
    an image of `RATIO`; where they keep their size, that of the dataset's first image.

    Raises:
        ConfigError: an unknown default_scope, or neither pipeline nor dataset tells the size.
    """
    task_of(cfg)  # or there is no such scope
    loader = cfg.get("test_dataloader") or {}
    datasets = [node for _, node in iter_leaf_datasets(loader.get("dataset"), "")]
    size = None
    for step in datasets[0].get("pipeline") or () if datasets else ():
        given = step.get(RESIZING.get(step["type"]))
        if given is None:
            continue
        width, height = (given, given) if isinstance(given, int) else given
        size = (height, width)
        if step.get("keep_ratio"):
            size = _crop_size(cfg) or _fit(*size)
    size = size or _crop_size(cfg) or _first_size(datasets)
    if size is None:
        raise ConfigError(
            f"{cfg.filename}: its test pipeline does not resize images, and its dataset is not "
            "there: give their --size HEIGHT WIDTH"
        )
    return size


def _fit(height: int, width: int) -> Size:
    """Return the size, padded, of an image of `RATIO` that is resized to a scale."""
    ratio = min(max(height, width) / RATIO[0], min(height, width) / RATIO[1])
    width, height = (-(-int(side * ratio) // DIVISOR) * DIVISOR for side in RATIO)
    return height, width


def _crop_size(cfg: Config) -> Size | None:
    """Return the size of a segmentor's crops; None for other models."""
    model = cfg.get("model")
    preprocessor = (model.get("data_preprocessor") if isinstance(model, dict) else None) or {}
    size = preprocessor.get("size")
    return tuple(size) if size else None


def _first_size(datasets: list[dict[str, Any]]) -> Size | None:
    """Return the size of the first image file of datasets; None if there is none."""
    for dataset in datasets:
        prefix = dataset.get("data_prefix") or ""
        if isinstance(prefix, dict):
            prefix = prefix.get("img") or prefix.get("img_path") or ""
        folder = Path(dataset.get("data_root") or "", prefix)
        found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGES)
        if path := min(found, default=None):
            with suppress(OSError), Image.open(path) as image:
                return image.height, image.width
    return None


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
