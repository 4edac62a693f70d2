"""Confusion matrices of detections and pixels: a row per true class, a column per predicted one.

A detector's matrix ends with a row of false alarms and a column of missed objects. MMDetection's
script counts boxes of saved predictions, in one process, without masks and crowds.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor

from ..utils.config import IGNORED
from ..utils.errors import ConfigError
from ..utils.files import write_json
from ..visualization.figures import Figure, make_panels, save_figure

Array = np.ndarray
BACKGROUND = "background"
# The most classes whose counts are written into their cells.
COUNTED = 12


def regions_of(part: Any, masks: bool) -> Any:
    """Return the boxes of instances, (N, 4), left, top, width, height, or their masks as RLE."""
    if masks:
        from pycocotools import mask as coco_mask

        found = part["masks"]
        # ground truth is MMDetection's BitmapMasks or PolygonMasks
        found = found.cpu().numpy() if isinstance(found, Tensor) else found.to_ndarray()
        return [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in found]
    # ground truth may be MMDetection's HorizontalBoxes
    boxes = getattr(part["bboxes"], "tensor", part["bboxes"]).double().cpu().numpy()
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)


def overlaps(regions: Any, others: Any, of_first: bool = False) -> Array:
    """Return the IoU of each pair of regions (N, M), or the share of the first in the second."""
    from pycocotools import mask as coco_mask

    if not len(regions) or not len(others):
        return np.zeros((len(regions), len(others)))
    # so COCO's evaluation asks how much of a detection lies in a crowd; 0 / 0 for empty ones
    return np.nan_to_num(coco_mask.iou(regions, others, [of_first] * len(others)))


@METRICS.register_module()
class ConfusionMatrix(BaseMetric):
    """Write a confusion matrix, as an evaluator of MMEngine's, for a config or the tool.

    In the order of their scores, detections take the object with which they overlap most, of
    whatever class, as long as it is free and the IoU reaches the threshold. One that takes none is
    a false alarm, unless it lies in a crowd or another ignored region.

    Args:
        out: path without an ending; .json gets the matrix and the metrics per class, .png the plot.
        score_threshold: least score of a detection, 0 to 1.
        iou_threshold: least IoU of a detection with its object, 0 to 1.
        masks: compare the masks of detections, not their boxes.
    """

    default_prefix = "confusion"

    def __init__(
        self,
        out: str,
        score_threshold: float = 0.3,
        iou_threshold: float = 0.5,
        masks: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.out = out
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self.masks = masks

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count one batch of data samples, as MMEngine hands them over."""
        for sample in data_samples:
            n = len(self.dataset_meta["classes"])
            if "pred_instances" in sample:
                true, predicted = self._match_objects(sample, n)
                n += 1
            else:
                true, predicted = self._match_pixels(sample)
            counts = np.bincount(true * n + predicted, minlength=n * n)
            # One result per image: MMEngine drops those that a distributed sampler repeats. Few
            # cells of one are not 0.
            cells = np.flatnonzero(counts)
            self.results.append((n, cells, counts[cells]))

    def _match_pixels(self, sample: dict) -> tuple[Array, Array]:
        """Return the true and the predicted class of each pixel that is not ignored."""
        for key, what in (
            ("pred_sem_seg", "the model predicts neither objects nor label maps"),
            ("gt_sem_seg", "the test pipeline loads no label maps; add LoadAnnotations to it"),
        ):
            if key not in sample:
                raise ConfigError(f"no confusion matrix: {what}")
        true, predicted = (
            sample[key]["data"].cpu().numpy().astype(np.int64)
            for key in ("gt_sem_seg", "pred_sem_seg")
        )
        known = true != IGNORED
        return true[known], predicted[known]

    def _match_objects(self, sample: dict, background: int) -> tuple[Array, Array]:
        """Return the true and the predicted class of each match, false alarm and missed object."""
        found, ground_truth = sample["pred_instances"], sample["gt_instances"]
        key = "masks" if self.masks else "bboxes"
        if key not in found:
            raise ConfigError(f"no confusion matrix: the model predicts no {key}")
        if key not in ground_truth:
            raise ConfigError(
                f"no confusion matrix: the test pipeline loads no {key}; add "
                "dict(type='LoadAnnotations', with_bbox=True, with_mask=True) behind its Resize"
            )
        scores = found["scores"].cpu()
        order = scores.argsort(descending=True, stable=True)
        order = order[scores[order] >= self.score_threshold]
        regions = regions_of({key: found[key].cpu()[order]}, self.masks)
        iou = overlaps(regions, regions_of(ground_truth, self.masks))
        ignored = regions_of(sample["ignored_instances"], self.masks)
        cover = overlaps(regions, ignored, of_first=True)
        true_labels = ground_truth["labels"].tolist()
        free = np.ones(len(true_labels), bool)
        pairs = []
        for i, label in enumerate(found["labels"].cpu()[order].tolist()):
            row = np.where(free, iou[i], -1.0)
            if row.max(initial=-1) >= self.iou_threshold:
                best = row.argmax()
                free[best] = False
                pairs.append((true_labels[best], label))
            elif not any(cover[i] >= self.iou_threshold):
                pairs.append((background, label))
        pairs += [(true_labels[i], background) for i in np.flatnonzero(free)]
        true, predicted = np.array(pairs, np.int64).reshape(-1, 2).T
        return true, predicted

    def compute_metrics(self, results: list[tuple[int, Array, Array]]) -> dict[str, float]:
        """Write the files; return the mean of the diagonal of the normalized matrix."""
        n = results[0][0]
        matrix = np.zeros((n, n), np.int64)
        for _, cells, counts in results:
            matrix.flat[cells] += counts
        classes = self.dataset_meta["classes"]
        names, rows = [*classes, BACKGROUND][:n], class_metrics(matrix, classes)
        content = {"classes": names, "rows": "ground truth", "columns": "prediction",
                   "matrix": matrix.tolist(), "by_class": rows}  # fmt: skip
        write_json(Path(f"{self.out}.json"), content, None)
        save_figure(draw(matrix, names), Path(f"{self.out}.png"))
        recalls = [row["recall"] for row in rows if row["recall"] is not None]
        return {"mean_recall": float(np.mean(recalls)) if recalls else float("nan")}


def class_metrics(matrix: Array, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return precision, recall and IoU of each class; None for 0 / 0."""
    rows = []
    for i, name in enumerate(classes):
        right, true, said = int(matrix[i, i]), int(matrix[i].sum()), int(matrix[:, i].sum())
        rows.append(
            {
                "class": name,
                "precision": right / said if said else None,
                "recall": right / true if true else None,
                "iou": right / (true + said - right) if true + said else None,
            }
        )
    return rows


def draw(matrix: Array, names: Sequence[str]) -> Figure:
    """Plot a matrix whose rows are divided by their sums."""
    n, few = len(names), len(names) <= COUNTED
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(max(4.0, (0.62 if few else 0.16) * n), 26.0)
    figure, ((axes,),) = make_panels(1, 1, (side + 1.2, side))
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    size = 9 if few else 6
    axes.set_xticks(range(n), names, rotation=90 if n > 4 else 30, fontsize=size)
    axes.set_yticks(range(n), names, fontsize=size)
    axes.set(xlabel="prediction", ylabel="ground truth")
    for i, j in np.ndindex(n, n) if few else ():
        color = "white" if shares[i, j] > 0.5 else "black"
        text = _short(int(matrix[i, j]))
        axes.text(j, i, text, ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    return figure


def _short(count: int) -> str:
    for least, unit, name in ((10**9, 10**9, "G"), (10**6, 10**6, "M"), (10**4, 1000, "k")):
        if count >= least:
            return f"{count / unit:.3g}{name}"
    return str(count)
