"""Draw ground truth and predictions of a demonstration side by side, by OpenMMLab's visualizers."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor
from torchvision.ops import nms

from ..datasets import coins
from ..visualization.draw import draw
from ..visualization.figures import make_panels, save_figure
from ..visualization.images import read_image

# Of predictions, to be drawn and to be counted.
MIN_SCORE = 0.5


def select(sample: Any) -> Any:
    """Leave out the predictions of a detector below `MIN_SCORE`."""
    if "pred_instances" in sample:
        sample = sample.clone()
        sample.pred_instances = sample.pred_instances[sample.pred_instances.scores >= MIN_SCORE]
    return sample


def draw_grid(path: Path, visualizer: Any, samples: Sequence[Any], title: str) -> None:
    """Draw the ground truth next to the prediction for each data sample, two samples per row."""
    rows = math.ceil(len(samples) / 2)
    height, width = samples[0].ori_shape
    figure, grid = make_panels(rows, 4, (13.2, 3.3 * rows * height / width + 0.9))
    for axes in grid.flat:
        axes.axis("off")
    for axes, head in zip(grid[0], ("ground truth", "prediction") * 2, strict=True):
        axes.set_title(head, fontsize=14)
    pairs = grid.reshape(-1, 2)
    for pair, sample in zip(pairs, samples, strict=False):
        image = read_image(sample.img_path)
        for axes, is_truth in zip(pair, (True, False), strict=True):
            axes.imshow(draw(visualizer, image, select(sample), is_truth)[..., ::-1])
    figure.suptitle(title, fontsize=16)
    save_figure(figure, path)


def stitch(samples: Sequence[Any], region: coins.Box, kind: str) -> InstanceData:
    """Join the objects of overlapping tiles to objects of the region they were cut from.

    What touches a side of its tile inside the region is cut off there and left out: the coin lies
    whole in another tile. Of boxes that overlap by more than an IoU of 0.5 the best stays.

    Args:
        samples: data samples of MMDetection; their files' names say where the tiles lie.
        region: (left, top, right, bottom) in the image.
        kind: 'gt_instances' or 'pred_instances'.
    """
    left, top, right, bottom = region
    parts = []
    for sample in samples:
        x, y = (int(number) for number in Path(sample.img_path).stem.split("-"))
        height, width = sample.ori_shape
        found = sample.get(kind)
        # ground truth may come as MMDetection's HorizontalBoxes and BitmapMasks
        boxes: Tensor = getattr(found.bboxes, "tensor", found.bboxes)
        masks = found.masks
        masks = masks if isinstance(masks, Tensor) else torch.from_numpy(masks.to_ndarray())
        # a box may end half a pixel before the side that cuts its object
        low = [1 if x > left else -math.inf, 1 if y > top else -math.inf]
        high = [
            width - 1 if x + width < right else math.inf,
            height - 1 if y + height < bottom else math.inf,
        ]
        whole = (boxes[:, :2] >= boxes.new_tensor(low)).all(1)
        whole &= (boxes[:, 2:] <= boxes.new_tensor(high)).all(1)
        margins = (x - left, right - x - width, y - top, bottom - y - height)
        part = InstanceData(
            bboxes=boxes + boxes.new_tensor([x - left, y - top] * 2),
            masks=torch.nn.functional.pad(masks.bool(), margins),
            labels=found.labels,
            scores=found.get("scores", boxes.new_ones(len(boxes))),
        )
        parts.append(part[whole])
    joined = InstanceData.cat(parts)
    return joined[nms(joined.bboxes, joined.scores, iou_threshold=0.5)]


def count_found(objects: InstanceData, predicted: InstanceData) -> int:
    """Count the objects that have a mask with an IoU of at least 0.5 among the predictions."""
    shared = (objects.masks[:, None] & predicted.masks).sum((2, 3))
    joint = (objects.masks[:, None] | predicted.masks).sum((2, 3))
    return int((shared >= 0.5 * joint).any(1).sum())


def draw_row(path: Path, visualizer: Any, data: Path, samples: Sequence[Any], title: str) -> str:
    """Draw the lowest row of coins with ground truth and predictions; return a line of counts."""
    region = coins.REGIONS["test"]
    row = BaseDataElement()
    row.gt_instances = objects = stitch(samples, region, "gt_instances")
    objects.pop("scores")  # which would be drawn
    row.pred_instances = predicted = stitch([*map(select, samples)], region, "pred_instances")
    image = read_image(data / "row.png")
    figure, grid = make_panels(3, 1, (9, 6.6))
    drawn = {
        "image": image,
        "ground truth": draw(visualizer, image, row, ground_truth=True),
        "prediction": draw(visualizer, image, row),
    }
    for axes, (head, shown) in zip(grid[:, 0], drawn.items(), strict=True):
        axes.imshow(shown[..., ::-1])
        axes.set_title(head, fontsize=10)
        axes.axis("off")
    figure.suptitle(title, fontsize=12)
    save_figure(figure, path, dpi=130)
    found = count_found(objects, predicted)
    return (
        f"{found} of {len(objects)} coins of the lowest row found, "
        f"{len(predicted) - found} other detections"
    )
