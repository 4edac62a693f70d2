"""What a model found in one image, as NumPy arrays, whatever the task and the toolbox."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import numpy as np
import supervision as sv
import torch

from ..utils.config import IGNORED
from ..utils.errors import ConfigError
from ..visualization.draw import COLOR_BY, draw

Array = np.ndarray

# Instead of the number of a track, of an object that belongs to none.
UNTRACKED = -1


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What a model found in one image; arrays on the CPU, None where the task has no such thing.

    A detector gives boxes, scores, labels and, if it segments, masks; a segmentor gives semantic; a
    classifier gives scores and labels of all classes. The best come first.

    Attributes:
        image: (H, W, 3), RGB, uint8.
        classes: names, in the order of labels.
        palette: one color per class, RGB, 0 to 255.
        boxes: (N, 4), float32: left, top, right, bottom in pixels of the image.
        scores: (N,), float32, 0 to 1.
        labels: (N,), int64, indices of classes.
        masks: (N, H, W), bool.
        semantic: (H, W), int64, the class of each pixel; 255 where `select` took it away.
        track_ids: (N,), int64, the same for the same object in all frames of a video; -1 for one
            that belongs to no track, such as one seen in a single frame.
    """

    image: Array
    classes: tuple[str, ...]
    palette: Sequence[tuple[int, ...]]
    boxes: Array | None = None
    scores: Array | None = None
    labels: Array | None = None
    masks: Array | None = None
    semantic: Array | None = None
    track_ids: Array | None = None

    @classmethod
    def from_sample(
        cls,
        image: Array,
        sample: Any,
        classes: tuple[str, ...],
        palette: Sequence[tuple[int, ...]],
        kind: str = "pred",
    ) -> "Result":
        """Convert a data sample of MMDetection, MMSegmentation or MMPretrain.

        Args:
            image: (H, W, 3), RGB, uint8.
            sample: at the image's size.
            kind: pred, or gt for the ground truth, which has no scores.
        """
        found = sample.get(f"{kind}_instances")
        fields: dict[str, Any]
        if found is not None:
            # ground truth may come as MMDetection's HorizontalBoxes and BitmapMasks
            boxes = getattr(found.bboxes, "tensor", found.bboxes)
            fields = {"boxes": boxes.float(), "labels": found.labels}
            if "scores" in found:
                fields["scores"] = found.scores.float()
            if "masks" in found:
                masks = found.masks
                masks = masks.to_ndarray() if hasattr(masks, "to_ndarray") else masks
                fields["masks"] = torch.as_tensor(masks).bool()
        elif f"{kind}_sem_seg" in sample:
            fields = {"semantic": sample.get(f"{kind}_sem_seg").data[0].long()}
        elif kind == "gt":
            fields = {"labels": sample.gt_label}
        else:
            scores = sample.pred_score.float()
            fields = {"scores": scores, "labels": torch.arange(len(scores))}
        if "scores" in fields:
            order = fields["scores"].argsort(descending=True, stable=True)
            fields = {key: value[order] for key, value in fields.items()}
        arrays = {key: value.numpy(force=True) for key, value in fields.items()}
        return cls(image, classes, palette, **arrays)

    @property
    def task(self) -> str:
        """detection, segmentation or classification."""
        if self.semantic is not None:
            return "segmentation"
        return "classification" if self.boxes is None else "detection"

    def __len__(self) -> int:
        """Return the number of objects, of classes of a classifier, or of those in a label map."""
        return len(self._labels())

    def __repr__(self) -> str:
        """Return task, number of what was found, and size, without the arrays."""
        height, width = self.image.shape[:2]
        return f"Result({self.task}, {len(self)} found, {width}x{height})"

    def _labels(self) -> Array:
        """Return the labels; of a label map the classes that occur, the largest first."""
        if self.labels is not None:
            return self.labels
        values, counts = np.unique(np.asarray(self.semantic), return_counts=True)
        values = values[np.argsort(-counts, kind="stable")]
        return values[values != IGNORED]

    def select(self, threshold: float = 0.0, classes: Sequence[str] | None = None) -> "Result":
        """Return another result that holds only some of what was found.

        Args:
            threshold: least score, 0 to 1; no matter for a label map.
            classes: names of those to keep (default: all); the other pixels of a label map
                become 255.

        Raises:
            ConfigError: the model has no such class.
        """
        wanted = labels_of(self.classes, classes)
        if self.semantic is not None:
            kept = np.where(np.isin(self.semantic, wanted), self.semantic, IGNORED)
            return replace(self, semantic=kept)
        chosen = np.isin(self._labels(), wanted)
        if self.scores is not None:
            chosen &= self.scores >= threshold
        rows = ("boxes", "scores", "labels", "masks", "track_ids")
        found = {key: getattr(self, key) for key in rows}
        return replace(self, **{k: v[chosen] for k, v in found.items() if v is not None})

    def to_supervision(self) -> sv.Detections | sv.Classifications:
        """Return `supervision.Detections`, of a classifier `supervision.Classifications`.

        Of a label map each class that occurs is a detection without a confidence: its mask and the
        box around it. `data["class_name"]` has the names.
        """
        if self.task == "classification":
            return sv.Classifications(self._labels(), self.scores)
        return self._detections()

    def _detections(self) -> sv.Detections:
        labels = self._labels()
        names: Any = {"class_name": np.array([self.classes[label] for label in labels], str)}
        if self.boxes is not None:
            return sv.Detections(
                self.boxes, self.masks, self.scores, labels, self.track_ids, data=names
            )
        masks: Any = np.asarray(self.semantic) == labels[:, None, None]
        boxes = sv.mask_to_xyxy(masks, "exclusive").astype(np.float32)
        return sv.Detections(boxes, masks, class_id=labels, data=names)

    def draw(self, color_by: str = "class", scale: float = 1.0) -> Array:
        """Draw what was found over a copy of the image; of a classifier the best class.

        Args:
            color_by: class: every object of a class has the same color, in every image and tool;
                instance: neighbors have different ones.
            scale: size of what is returned, relative to the image's.

        Returns:
            (round(scale * H), round(scale * W), 3), RGB, uint8.
        """
        if color_by not in COLOR_BY:
            raise ConfigError(f"color_by is {color_by!r}, not one of {', '.join(COLOR_BY)}")
        if not scale > 0:
            raise ConfigError(f"scale is {scale}, not greater than 0")
        labels, is_detector = self._labels(), self.task == "detection"
        if self.task == "classification":
            labels = labels if self.scores is None else labels[:1]
            found = sv.Detections(np.zeros((len(labels), 4), np.float32), class_id=labels)
        else:
            found = self._detections()
        texts = [self._text(i, label) for i, label in enumerate(labels)]
        return draw(self.image, found, texts, self.palette, color_by, scale, is_detector)

    def _text(self, i: int, label: int) -> str:
        text = self.classes[label]
        if self.track_ids is not None and self.track_ids[i] != UNTRACKED:
            text = f"#{self.track_ids[i]} {text}"
        return text if self.scores is None else f"{text} {self.scores[i]:.2f}"

    def to_table(self) -> list[dict[str, Any]]:
        """Return a row per object or class, the best or largest first, as for pandas.DataFrame.

        Of a detector: class, score, left, top, right, bottom in pixels and, where there are any,
        pixels of the mask and track_id. Of a segmentor: class, pixels, percent of the image. Of a
        classifier: class, score.
        """
        rows = []
        for i, label in enumerate(self._labels()):
            row: dict[str, Any] = {"class": self.classes[label]}
            if self.scores is not None:
                row["score"] = float(self.scores[i])
            if self.boxes is not None:
                sides = ("left", "top", "right", "bottom")
                row |= zip(sides, self.boxes[i].tolist(), strict=True)
            if self.masks is not None:
                row["pixels"] = int(self.masks[i].sum())
            if self.track_ids is not None and self.track_ids[i] != UNTRACKED:
                row["track_id"] = int(self.track_ids[i])
            if self.semantic is not None:
                row["pixels"] = int(np.sum(self.semantic == label))
                row["percent"] = 100 * row["pixels"] / self.semantic.size
            rows.append(row)
        return rows

    def to_coco(self, image_id: int = 1, first_id: int = 1) -> list[dict[str, Any]]:
        """Return annotations in COCO's format (https://cocodataset.org/#format-data).

        Each has id, image_id, category_id (the label + 1), bbox (left, top, width, height), area,
        iscrowd and, where there are any, score, segmentation as compressed RLE, and track_id. Of a
        label map each class that occurs is an annotation.

        Args:
            first_id: of the annotations, which count from it on.

        Raises:
            ConfigError: a classifier finds no objects.
        """
        if self.task == "classification":
            raise ConfigError("a classifier finds no objects, which COCO's format is for")
        found, annotations = self._detections(), []
        labels = self._labels().tolist()
        for i, (left, top, right, bottom) in enumerate(found.xyxy.astype(float).tolist()):
            annotation: dict[str, Any] = {
                "id": first_id + i,
                "image_id": image_id,
                "category_id": labels[i] + 1,
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "iscrowd": 0,
            }
            if found.confidence is not None:
                annotation["score"] = float(found.confidence[i])
            if found.mask is not None:
                mask = np.asarray(found.mask[i])
                annotation["area"] = int(mask.sum())
                code = sv.mask_to_rle(mask, compressed=True)
                annotation["segmentation"] = {"size": list(mask.shape), "counts": code}
            if found.tracker_id is not None and found.tracker_id[i] != UNTRACKED:
                annotation["track_id"] = int(found.tracker_id[i])
            annotations.append(annotation)
        return annotations


def labels_of(classes: Sequence[str], names: Sequence[str] | None) -> list[int]:
    """Return the labels of some classes, or of all; a ConfigError for an unknown one."""
    if names is None:
        # names may occur twice
        return list(range(len(classes)))
    for name in names:
        if name not in classes:
            (nearest,) = get_close_matches(name, classes, n=1, cutoff=0)
            raise ConfigError(f"the model has no class {name!r}; did you mean {nearest!r}?")
    return [classes.index(name) for name in names]


def coco_content(
    classes: Sequence[str], images: Sequence[dict], annotations: Sequence[dict]
) -> dict[str, Any]:
    """Return the content of a file in COCO's format, of images and `Result.to_coco` of each."""
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
    return {"images": images, "categories": categories, "annotations": annotations}
