"""Confusion matrices: what a model takes for what, of detections and of pixels.

A row a true class, a column a predicted one. A detector's matrix has one more of each: what was
missed is in the last column, false alarms in the last row.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor
from torchvision.ops import box_iou

from .. import engine
from ..engine.build import IGNORED, task_of
from ..utils.cli import writing
from ..utils.errors import ConfigError
from ..utils.files import atomic_write
from ..visualization.figures import make_panels, save_figure

Array = np.ndarray
BACKGROUND = "background"
# The most classes whose counts are written into their cells.
COUNTED = 12


# -------------------------------------------------------------------------------- counting


def overlaps(masks: Tensor, others: Tensor, of_first: bool = False) -> Tensor:
    """IoU of each pair of masks, or the share of the first that lies in the second.

    Args:
        masks, others: (N, H, W) and (M, H, W), bool.

    Returns:
        (N, M), 0 to 1.
    """
    first, second = (m.flatten(1).float() for m in (masks, others))
    shared = first @ second.mT
    whole = first.sum(1)[:, None] + (0 if of_first else second.sum(1)[None] - shared)
    return shared / whole.clamp(min=1)


def box_cover(boxes: Tensor, others: Tensor) -> Tensor:
    """The share of each box that lies in each of the others: (N, 4), (M, 4) -> (N, M)."""
    sides = torch.minimum(boxes[:, None, 2:], others[None, :, 2:]) - torch.maximum(
        boxes[:, None, :2], others[None, :, :2]
    )
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return sides.clamp(min=0).prod(2) / areas[:, None].clamp(min=1e-9)


def count_detections(
    matrix: Array,
    labels: Array,
    truth: Array,
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
        truth: (M,), labels of the objects.
        iou: (N, M).
        ignored: (N,), bool, whether a detection lies in a crowd or another ignored region.
        threshold: 0 to 1.
    """
    background = len(matrix) - 1
    free = np.ones(len(truth), bool)
    for label, row, in_ignored in zip(labels, iou, ignored, strict=True):
        row = np.where(free, row, -1.0)
        best = int(row.argmax()) if len(row) else -1
        if best >= 0 and row[best] >= threshold:
            free[best] = False
            matrix[truth[best], label] += 1
        elif not in_ignored:
            matrix[background, label] += 1
    np.add.at(matrix, (truth[free], background), 1)


def count_pixels(matrix: Array, labels: Array, truth: Array) -> None:
    """Add label maps of one shape to a matrix (n, n), in place, but where truth is `IGNORED`."""
    n = len(matrix)
    known = truth != IGNORED
    pairs = truth[known].astype(np.int64) * n + labels[known].astype(np.int64)
    matrix += np.bincount(pairs, minlength=n * n).reshape(n, n)


# ------------------------------------------------------------------------ in an evaluation


@METRICS.register_module()
class ConfusionMatrix(BaseMetric):
    """An evaluator of MMEngine's that writes a confusion matrix, for a config or the tool.

    Args:
        out: path without an ending; .json gets the matrix and figures a class, .png the plot.
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
            # A result an image: MMEngine drops those that a distributed sampler repeats. Few
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
        labels, truth = (
            sample[key]["data"].squeeze(0).cpu().numpy() for key in ("pred_sem_seg", "gt_sem_seg")
        )
        count_pixels(matrix, labels, truth)

    def _count_detections(self, matrix: Array, sample: dict) -> None:
        found, truth, ignored = (
            sample[key] for key in ("pred_instances", "gt_instances", "ignored_instances")
        )
        key = "masks" if self.masks else "bboxes"
        if key not in found:
            raise ConfigError(f"no confusion matrix: the model predicts no {key}")
        if key not in truth:
            raise ConfigError(
                f"no confusion matrix: the test pipeline loads no {key}; add "
                "dict(type='LoadAnnotations', with_bbox=True, with_mask=True) behind its Resize"
            )
        # what is ordered lies on the CPU, whatever the model ran on
        scores = found["scores"].cpu()
        order = scores.argsort(descending=True, stable=True)
        order = order[scores[order] >= self.score_threshold]
        if self.masks:
            first, second, third = (_masks(part) for part in (found, truth, ignored))
            iou = overlaps(first[order], second)
            cover = overlaps(first[order], third, of_first=True)
        else:
            first, second, third = (_boxes(part) for part in (found, truth, ignored))
            iou, cover = box_iou(first[order], second), box_cover(first[order], third)
        in_ignored = (cover >= self.iou_threshold).any(1)
        count_detections(
            matrix,
            found["labels"].cpu()[order].numpy(),
            truth["labels"].cpu().numpy(),
            iou.numpy(),
            in_ignored.numpy(),
            self.iou_threshold,
        )

    def compute_metrics(self, results: list[tuple[int, Array, Array]]) -> dict[str, float]:
        """Write the files; the mean of the diagonal of the normalized matrix is the figure."""
        matrix = total(results)
        names = [*self.dataset_meta["classes"], BACKGROUND][: len(matrix)]
        content = {
            "classes": names,
            "rows": "truth",
            "columns": "prediction",
            "matrix": matrix.tolist(),
            "by_class": figures(matrix, names),
        }
        write(content, self.out)
        recalls = [row["recall"] for row in content["by_class"] if row["recall"] is not None]
        return {"mean_recall": float(np.mean(recalls)) if recalls else float("nan")}


def total(results: Sequence[tuple[int, Array, Array]]) -> Array:
    """The sum of images' matrices (n, n): n, the flat places that are not 0, what is there."""
    n = results[0][0]
    matrix = np.zeros(n * n, np.int64)
    for _, cells, counts in results:
        matrix[cells] += counts
    return matrix.reshape(n, n)


def _boxes(part: Any) -> Tensor:
    # the truth may be MMDetection's HorizontalBoxes
    boxes = part["bboxes"]
    return getattr(boxes, "tensor", boxes).float().cpu()


def _masks(part: Any) -> Tensor:
    # the truth is MMDetection's BitmapMasks or PolygonMasks
    masks = part["masks"]
    masks = masks if isinstance(masks, Tensor) else torch.from_numpy(masks.to_ndarray())
    return masks.bool().cpu()


def figures(matrix: Array, names: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall and IoU of each class but the background, 0 to 1; None for 0 / 0."""
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


# -------------------------------------------------------------------------------- showing


def write(content: dict[str, Any], out: Path) -> None:
    """Write OUT.json and OUT.png."""
    with atomic_write(out.with_name(f"{out.name}.json")) as partial:
        partial.write_text(json.dumps(content))
    figure = draw(np.array(content["matrix"]), content["classes"])
    save_figure(figure, out.with_name(f"{out.name}.png"))


def draw(matrix: Array, names: Sequence[str]) -> Any:
    """Plot a matrix whose rows are divided by their sums; a matplotlib figure."""
    n = len(names)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(max(4.0, 0.62 * n if n <= COUNTED else 0.16 * n), 26.0)
    figure, ((axes,),) = make_panels(1, 1, (side + 1.2, side))
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    size = 9 if n <= COUNTED else 6
    axes.set_xticks(range(n), names, rotation=90 if n > 4 else 30, fontsize=size)
    axes.set_yticks(range(n), names, fontsize=size)
    axes.set(xlabel="prediction", ylabel="truth")
    if n <= COUNTED:
        for i in range(n):
            for j in range(n):
                color = "white" if shares[i, j] > 0.5 else "black"
                axes.text(j, i, _short(int(matrix[i, j])), ha="center", va="center",
                          color=color, fontsize=8)  # fmt: skip
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    return figure


def _short(count: int) -> str:
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if count >= unit:
            return f"{count / (1000 if name == 'k' else unit):.3g}{name}"
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
        ConfigError, CheckpointError: as `runtime.test`; or a classifier, or boxes, masks or label
            maps that there are not, or `out` can't be written.
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
    metric = dict(
        type="ConfusionMatrix",
        _scope_="mmengine",
        out=str(out),
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        masks=masks,
    )
    evaluators = cfg.test_evaluator
    # the first, so that it says what the others need as well
    cfg.test_evaluator = [
        metric,
        *(evaluators if isinstance(evaluators, list | tuple) else [evaluators]),
    ]
    with writing(f"--out {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        engine.test(cfg)
