"""Draw ground truth and predictions of a demonstration side by side."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..apis.result import Result
from ..visualization.draw import enlargement
from ..visualization.figures import make_panels, save_figure
from ..visualization.images import convert_image

# Of predictions, to be drawn and to be counted.
MIN_SCORE = 0.5


def draw_grid(path: Path, meta: dict[str, Any], samples: Sequence[Any], title: str) -> None:
    """Draw the ground truth next to the prediction for each data sample, two samples per row.

    meta: classes and palette.
    """
    rows = math.ceil(len(samples) / 2)
    height, width = samples[0].ori_shape
    figure, grid = make_panels(rows, 4, (13.2, 3.3 * rows * height / width + 0.9))
    for axes in grid.flat:
        axes.axis("off")
    for axes, head in zip(grid[0], ("ground truth", "prediction") * 2, strict=True):
        axes.set_title(head, fontsize=14)
    pairs = grid.reshape(-1, 2)
    for pair, sample in zip(pairs, samples, strict=False):
        image = convert_image(sample.img_path)
        for axes, kind in zip(pair, ("gt", "pred"), strict=True):
            result = Result.from_sample(image, sample, **meta, kind=kind)
            axes.imshow(result.select(MIN_SCORE).draw(scale=enlargement(image)))
    figure.suptitle(title, fontsize=16)
    save_figure(figure, path)


def draw_row(path: Path, meta: dict[str, Any], sample: Any, title: str) -> str:
    """Draw the lowest row of coins with ground truth and predictions; return a line of counts."""
    image = convert_image(sample.img_path)
    objects = Result.from_sample(image, sample, **meta, kind="gt")
    predicted = Result.from_sample(image, sample, **meta).select(MIN_SCORE)
    figure, grid = make_panels(3, 1, (9, 6.6))
    drawn = {"image": image} | {
        head: result.draw(scale=enlargement(image))
        for head, result in (("ground truth", objects), ("prediction", predicted))
    }
    for axes, (head, shown) in zip(grid[:, 0], drawn.items(), strict=True):
        axes.imshow(shown)
        axes.set_title(head, fontsize=10)
        axes.axis("off")
    figure.suptitle(title, fontsize=12)
    save_figure(figure, path, dpi=130)
    found = count_found(objects.masks, predicted.masks)
    return (
        f"{found} of {len(objects)} coins of the lowest row found, "
        f"{len(predicted) - found} other detections"
    )


def count_found(objects: Any, predicted: Any) -> int:
    """Count the masks (N, H, W) that have an IoU of at least 0.5 with one of (M, H, W)."""
    shared = (objects[:, None] & predicted).sum((2, 3))
    joint = (objects[:, None] | predicted).sum((2, 3))
    return int((shared >= 0.5 * joint).any(1).sum())
