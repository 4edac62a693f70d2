"""Predict for a large image tile by tile, each as if it were an image of its own, and join that.

The tiles overlap. An object that a border cuts is found in part by several tiles, and whether two
parts are of one object shows where both tiles look: there they cover the same pixels. Non-maximum
merging, which compares whole parts instead, leaves a long object in pieces, since these have little
in common, and joins a small object with a large one next to it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import supervision as sv
import torch

from ..utils.errors import ConfigError
from .result import Result

if TYPE_CHECKING:
    from .predictor import Predictor

# Left, top, right, bottom, in pixels.
Tile = tuple[int, int, int, int]

# Least intersection over union, within what two tiles share, of parts of one object.
AGREEMENT = 0.5


def cut(height: int, width: int, size: int, overlap: float) -> list[Tile]:
    """Return the square tiles that cover an image, as MMSegmentation's sliding windows do.

    Args:
        size: side of a tile in pixels; tiles of a smaller image are smaller.
        overlap: of neighbors, relative to their side; those at the right and at the bottom share
            more, so that they end with the image.
    """
    stride = max(1, round(size * (1 - overlap)))
    rows, columns = ([*range(0, side - size, stride), max(0, side - size)]
                     for side in (height, width))  # fmt: skip
    return [(x, y, min(x + size, width), min(y + size, height)) for y in rows for x in columns]


def predict(
    predictor: "Predictor",
    image: np.ndarray,
    size: int,
    overlap: float,
    threshold: float,
    batch_size: int,
) -> Result:
    """Predict for an image (H, W, 3), RGB, tile by tile.

    Args:
        size, overlap: see `cut`.
        threshold: least score of a part of an object.
        batch_size: most tiles that the model gets at once.

    Raises:
        ConfigError: the model is a classifier, or there is no such size or overlap.
    """
    if predictor.task == "classification":
        raise ConfigError("a classifier sees the whole image; detectors and segmentors alone "
                          "predict in tiles")  # fmt: skip
    if size < 1:
        raise ConfigError(f"the size of tiles is {size}, not at least 1")
    if not 0 < overlap < 1:
        raise ConfigError(f"the overlap of tiles is {overlap}, not between 0 and 1")
    height, width = image.shape[:2]
    tiles = cut(height, width, size, overlap)
    found = _predict_each(predictor, image, tiles, batch_size)
    if predictor.task == "segmentation":
        semantic = _decide(predictor.model, found, (height, width))
        return Result(image, predictor.classes, predictor.palette, semantic=semantic)
    parts = []
    for (left, top, right, bottom), sample in found:
        crop = image[top:bottom, left:right]
        part = Result.from_sample(crop, sample, predictor.classes, predictor.palette)
        parts.append(part.select(threshold))
    return join(image, tiles, parts)


def _predict_each(
    predictor: "Predictor", image: np.ndarray, tiles: Sequence[Tile], batch_size: int
) -> Iterator[tuple[Tile, Any]]:
    """Predict for the tiles in batches; yield each with its data sample."""
    for start in range(0, len(tiles), batch_size):
        batch = tiles[start : start + batch_size]
        crops = [image[top:bottom, left:right, ::-1] for left, top, right, bottom in batch]
        yield from zip(batch, predictor.predict_samples(crops), strict=True)


def _decide(model: Any, found: Iterator[tuple[Tile, Any]], size: tuple[int, int]) -> np.ndarray:
    """Return the class of each pixel, (H, W), by the mean of what the tiles there give."""
    total, count = torch.zeros(1, 1, 1), torch.zeros(size)
    for (left, top, right, bottom), sample in found:
        logits = sample.seg_logits.data.float()
        if len(logits) == 1:
            # of one channel, MMSegmentation gives the probability
            logits = logits.logit(eps=1e-6)
        if total.shape[1:] != size:
            total = torch.zeros(len(logits), *size)
        total[:, top:bottom, left:right] += logits
        count[top:bottom, left:right] += 1
    (decided,) = model.postprocess_result((total / count)[None])
    return decided.pred_sem_seg.data[0].long().numpy()


def join(image: np.ndarray, tiles: Sequence[Tile], parts: Sequence[Result]) -> Result:
    """Return what a detector found in an image, (H, W, 3), from what it found in each tile.

    Of an object that several tiles found, box and mask are the union and the score is the best.
    """
    moved = [np.asarray(part.boxes) + np.tile(tile[:2], 2)
             for tile, part in zip(tiles, parts, strict=True)]  # fmt: skip
    boxes = np.concatenate(moved).astype(np.float32)
    scores = np.concatenate([np.asarray(part.scores) for part in parts])
    labels = np.concatenate([np.asarray(part.labels) for part in parts])
    origin = np.repeat(np.arange(len(tiles)), [len(part) for part in parts])

    groups = {i: [i] for i in range(len(scores))}
    for i, j in _links(tiles, parts, boxes, scores, labels, origin):
        # the surest come first, and a tile shows an object once
        if not np.isin(origin[groups[i]], origin[groups[j]]).any():
            joined = groups[i] + groups[j]
            groups.update(dict.fromkeys(joined, joined))
    chosen = [list(group) for group in dict.fromkeys(map(tuple, groups.values()))]
    chosen.sort(key=lambda group: -scores[group].max())

    masks = None
    if parts[0].masks is not None:
        local = [mask for part in parts for mask in np.asarray(part.masks)]
        masks = np.zeros((len(chosen), *image.shape[:2]), bool)
        for whole, group in zip(masks, chosen, strict=True):
            for i in group:
                left, top, right, bottom = tiles[origin[i]]
                whole[top:bottom, left:right] |= local[i]
    corners = [[*boxes[g, :2].min(0), *boxes[g, 2:].max(0)] for g in chosen]
    return replace(
        parts[0],
        image=image,
        boxes=np.array(corners, np.float32).reshape(-1, 4),
        scores=np.array([scores[group].max() for group in chosen], np.float32),
        labels=np.array([labels[group[0]] for group in chosen], np.int64),
        masks=masks,
    )


def _links(
    tiles: Sequence[Tile],
    parts: Sequence[Result],
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    origin: np.ndarray,
) -> list[tuple[int, int]]:
    """Return pairs of parts of one object, the surest first."""
    links = []
    for a, b in combinations(range(len(tiles)), 2):
        left, top = np.maximum(tiles[a], tiles[b])[:2]
        right, bottom = np.minimum(tiles[a], tiles[b])[2:]
        if left >= right or top >= bottom:
            continue
        rows, columns = np.flatnonzero(origin == a), np.flatnonzero(origin == b)
        shared = (int(left), int(top), int(right), int(bottom))
        if parts[a].masks is None:
            boxes_a, boxes_b = (boxes[k].clip(shared[:2] * 2, shared[2:] * 2)
                                for k in (rows, columns))  # fmt: skip
            agreement = sv.box_iou_batch(boxes_a, boxes_b)
        else:
            masks_a, masks_b = (_crop(tiles[t], parts[t], shared) for t in (a, b))
            agreement = sv.mask_iou_batch(masks_a, masks_b)
        agreement = agreement * (labels[rows, None] == labels[columns])
        for i, j in np.argwhere(agreement >= AGREEMENT):
            pair = int(rows[i]), int(columns[j])
            links.append((agreement[i, j] * scores[[*pair]].min(), *pair))
    return [(i, j) for _, i, j in sorted(links, key=lambda link: -link[0])]


def _crop(tile: Tile, part: Result, shared: Tile) -> np.ndarray:
    """Return the masks of a tile's part within some pixels of the image."""
    left, top, right, bottom = np.subtract(shared, tile[:2] * 2)
    return np.asarray(part.masks)[:, top:bottom, left:right]
