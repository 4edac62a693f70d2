"""Count what a model takes for what, of detections and of pixels.

One row per true class, one column per predicted one. A detector's matrix has one more of each: what
was missed is in the last column, false alarms in the last row. MMPretrain has a metric like it for
classifiers; MMDetection's script counts boxes of saved predictions, in one process, without masks
and crowds.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor

from .. import engine
from ..utils.cli import writing
from ..utils.config import IGNORED, task_of
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


def count_detections(
    matrix: Array,
    labels: Array,
    true_labels: Array,
    iou: Array,
    ignored: Array,
    threshold: float,
) -> None:
    """Add the detections of one image to a matrix (n + 1, n + 1), in place.

    In the order of their scores, detections take the object with which they overlap most, of
    whatever class, as long as it is free and the IoU reaches the threshold. One that takes none is
    a false alarm, unless it lies in an ignored region; objects that none takes are missed.

    Args:
        labels: (N,), of the detections, best first.
        true_labels: (M,), of the objects.
        iou: (N, M).
        ignored: (N,), bool, whether a detection lies in a crowd or another ignored region.
        threshold: 0 to 1.
    """
    background = len(matrix) - 1
    free = np.ones(len(true_labels), bool)
    for label, row, in_ignored in zip(labels, iou, ignored, strict=True):
        row = np.where(free, row, -1.0)
        best = int(row.argmax()) if len(row) else -1
        if best >= 0 and row[best] >= threshold:
            free[best] = False
            matrix[true_labels[best], label] += 1
        elif not in_ignored:
            matrix[background, label] += 1
    np.add.at(matrix, (true_labels[free], background), 1)


def count_pixels(matrix: Array, labels: Array, true_labels: Array) -> None:
    """Add label maps of one shape to a matrix (n, n), in place, without pixels to ignore."""
    n = len(matrix)
    known = true_labels != IGNORED
    pairs = true_labels[known].astype(np.int64) * n + labels[known].astype(np.int64)
    matrix += np.bincount(pairs, minlength=n * n).reshape(n, n)


@METRICS.register_module()
class ConfusionMatrix(BaseMetric):
    """Write a confusion matrix, as an evaluator of MMEngine's, for a config or the tool.

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
        self.out = Path(out)
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self.masks = masks

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count one batch of data samples, as MMEngine hands them over."""
        for sample in data_samples:
            detector = "pred_instances" in sample
            n = len(self.dataset_meta["classes"]) + detector
            matrix = np.zeros((n, n), np.int64)
            if detector:
                self._count_detections(matrix, sample)
            else:
                self._count_pixels(matrix, sample)
            # One result per image: MMEngine drops those that a distributed sampler repeats. Few
            # cells of one are not 0.
            cells = np.flatnonzero(matrix)
            self.results.append((n, cells, matrix.flat[cells]))

    def _count_pixels(self, matrix: Array, sample: dict) -> None:
        for key, what in (
            ("pred_sem_seg", "the model predicts neither objects nor label maps"),
            ("gt_sem_seg", "the test pipeline loads no label maps; add LoadAnnotations to it"),
        ):
            if key not in sample:
                raise ConfigError(f"no confusion matrix: {what}")
        keys = ("pred_sem_seg", "gt_sem_seg")
        count_pixels(matrix, *(sample[key]["data"].squeeze(0).cpu().numpy() for key in keys))

    def _count_detections(self, matrix: Array, sample: dict) -> None:
        found, ground_truth, ignored = (
            sample[key] for key in ("pred_instances", "gt_instances", "ignored_instances")
        )
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
        first = regions_of({key: found[key].cpu()[order]}, self.masks)
        cover = overlaps(first, regions_of(ignored, self.masks), of_first=True)
        count_detections(
            matrix,
            found["labels"].cpu()[order].numpy(),
            ground_truth["labels"].cpu().numpy(),
            overlaps(first, regions_of(ground_truth, self.masks)),
            np.asarray((cover >= self.iou_threshold).any(1)),
            self.iou_threshold,
        )

    def compute_metrics(self, results: list[tuple[int, Array, Array]]) -> dict[str, float]:
        """Write the files; return the mean of the diagonal of the normalized matrix."""
        matrix = total(results)
        names = [*self.dataset_meta["classes"], BACKGROUND][: len(matrix)]
        rows = class_metrics(matrix, names)
        content = {"classes": names, "rows": "ground truth", "columns": "prediction",
                   "matrix": matrix.tolist(), "by_class": rows}  # fmt: skip
        write_json(self.out.with_name(f"{self.out.name}.json"), content, None)
        save_figure(draw(matrix, names), self.out.with_name(f"{self.out.name}.png"))
        recalls = [row["recall"] for row in rows if row["recall"] is not None]
        return {"mean_recall": float(np.mean(recalls)) if recalls else float("nan")}


def total(results: Sequence[tuple[int, Array, Array]]) -> Array:
    """Add up matrices (n, n), each given as n, its flat places that are not 0, their values."""
    n = results[0][0]
    matrix = np.zeros(n * n, np.int64)
    for _, cells, counts in results:
        matrix[cells] += counts
    return matrix.reshape(n, n)


def class_metrics(matrix: Array, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return precision, recall and IoU of each class but the background; None for 0 / 0."""
    rows = []
    for i, name in enumerate(names):
        if name == BACKGROUND and i == len(names) - 1:
            continue
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
    n = len(names)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(max(4.0, 0.62 * n if n <= COUNTED else 0.16 * n), 26.0)
    figure, ((axes,),) = make_panels(1, 1, (side + 1.2, side))
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    size = 9 if n <= COUNTED else 6
    axes.set_xticks(range(n), names, rotation=90 if n > 4 else 30, fontsize=size)
    axes.set_yticks(range(n), names, fontsize=size)
    axes.set(xlabel="prediction", ylabel="ground truth")
    for i, j in np.ndindex(n, n) if n <= COUNTED else ():
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


def run(
    cfg: Config,
    checkpoint: str,
    out: Path,
    score_threshold: float = 0.3,
    iou_threshold: float = 0.5,
    masks: bool = False,
) -> None:
    """Test a checkpoint by a config, as tools/test.py does, and write its confusion matrix.

    Args:
        cfg: of a detector or segmentor.
        checkpoint: path or URL.
        out, score_threshold, iou_threshold, masks: see `ConfusionMatrix`.

    Raises:
        ConfigError, CheckpointError: as `engine.test`; or a classifier, or boxes, masks or label
            maps are missing, or `out` can't be written.
    """
    task = task_of(cfg)
    if task == "classification":
        raise ConfigError(
            f"{cfg.filename} is a classifier; MMPretrain's ConfusionMatrix in test_evaluator "
            "makes its matrix"
        )
    if masks and task != "detection":
        raise ConfigError(f"--masks: {cfg.filename} is not of a model with masks of objects")
    cfg.load_from = checkpoint
    metric = dict(type="ConfusionMatrix", _scope_="mmengine", out=str(out), masks=masks)
    metric |= dict(score_threshold=score_threshold, iou_threshold=iou_threshold)
    evaluators = cfg.test_evaluator
    evaluators = evaluators if isinstance(evaluators, list | tuple) else [evaluators]
    # the first, so that it says what the others need as well
    cfg.test_evaluator = [metric, *evaluators]
    with writing(f"--out {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        engine.test(cfg)
