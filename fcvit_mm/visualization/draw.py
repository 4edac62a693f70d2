"""Draw over images, (H, W, 3), BGR, 0 to 255, with OpenMMLab's visualizers."""

import math
import warnings
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import VISUALIZERS
from torch import Tensor

from .figures import rc_context

Array = np.ndarray

# A box that touches the border is drawn well enough.
warnings.filterwarnings("ignore", message=r"Warning: The (bbox|polygon|text) is out of bounds")

# The longer side, in pixels, from which a name drawn by OpenMMLab's visualizers can be read.
READABLE = 512


def build_visualizer(cfg: Config, dataset_meta: dict[str, Any]) -> Any:
    """Build the visualizer of a config without writers; dataset_meta: classes, palette (RGB)."""
    settings = dict(cfg.visualizer, vis_backends=None)
    # MMEngine finds visualizers by name, and a Runner may have made one
    settings["name"] = f"fcvit_mm {id(dataset_meta)}"
    visualizer = VISUALIZERS.build(settings)
    visualizer.dataset_meta = dataset_meta
    return visualizer


def draw(visualizer: Any, image: Array, sample: Any, ground_truth: bool = False) -> Array:
    """Draw the predictions of a data sample, or its ground truth, over its enlarged image."""
    enlarged, sample = enlarge(image), sample.clone()
    k = len(enlarged) // len(image)
    kind = "gt" if ground_truth else "pred"
    if f"{kind}_instances" in sample:
        found = sample.get(f"{kind}_instances").clone()
        # ground truth may come as MMDetection's HorizontalBoxes, and as BitmapMasks
        found.bboxes = getattr(found.bboxes, "tensor", found.bboxes) * k
        if "masks" in found:
            masks = found.masks
            masks = masks if isinstance(masks, Tensor) else torch.from_numpy(masks.to_ndarray())
            found.masks = _repeat(masks, k)
        setattr(sample, f"{kind}_instances", found)
    if f"{kind}_sem_seg" in sample:
        labels = sample.get(f"{kind}_sem_seg")
        setattr(sample, f"{kind}_sem_seg", type(labels)(data=_repeat(labels.data, k)))
    # a detector's visualizer has a threshold of its own
    options: dict[str, Any] = {"pred_score_thr": 0.0} if "pred_instances" in sample else {}
    options |= {"draw_gt": ground_truth, "draw_pred": not ground_truth}
    # a name may have a dollar sign, which begins a formula
    with rc_context({"text.parse_math": False}):
        visualizer.add_datasample("image", enlarged[..., ::-1], sample, **options)
    return visualizer.get_image()[..., ::-1]


def enlarge(image: Array) -> Array:
    """Enlarge an image by the least whole factor that brings its longer side to `READABLE`."""
    k = max(1, math.ceil(READABLE / max(image.shape[:2])))
    return cv2.resize(image, None, fx=k, fy=k, interpolation=cv2.INTER_CUBIC) if k > 1 else image


def _repeat(maps: Tensor, k: int) -> Tensor:
    return maps.repeat_interleave(k, 1).repeat_interleave(k, 2)


def visible(inputs: Tensor) -> Array:
    """Convert an image that a pipeline packed, (3, H, W); stretch a normalized one to 0 to 255."""
    image = inputs.permute(1, 2, 0).double().numpy(force=True)
    if inputs.dtype != torch.uint8:
        low, high = image.min(), image.max()
        image = (image - low) / max(high - low, 1e-12) * 255
    return image.round().astype(np.uint8)
