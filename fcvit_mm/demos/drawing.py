"""Draw ground truth and predictions of a demonstration side by side, by OpenMMLab's visualizers."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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


def draw_row(path: Path, visualizer: Any, sample: Any, title: str) -> str:
    """Draw the lowest row of coins with ground truth and predictions; return a line of counts."""
    sample, image = select(sample), read_image(sample.img_path)
    figure, grid = make_panels(3, 1, (9, 6.6))
    drawn = {
        "image": image,
        "ground truth": draw(visualizer, image, sample, ground_truth=True),
        "prediction": draw(visualizer, image, sample),
    }
    for axes, (head, shown) in zip(grid[:, 0], drawn.items(), strict=True):
        axes.imshow(shown[..., ::-1])
        axes.set_title(head, fontsize=10)
        axes.axis("off")
    figure.suptitle(title, fontsize=12)
    save_figure(figure, path, dpi=130)
    objects = torch.from_numpy(sample.gt_instances.masks.to_ndarray()).bool()
    predicted = sample.pred_instances.masks
    found = count_found(objects, predicted)
    return (
        f"{found} of {len(objects)} coins of the lowest row found, "
        f"{len(predicted) - found} other detections"
    )


def count_found(objects: Tensor, predicted: Tensor) -> int:
    """Count the masks (N, H, W) that have an IoU of at least 0.5 with one of (M, H, W)."""
    shared = (objects[:, None] & predicted).sum((2, 3))
    joint = (objects[:, None] | predicted).sum((2, 3))
    return int((shared >= 0.5 * joint).any(1).sum())
