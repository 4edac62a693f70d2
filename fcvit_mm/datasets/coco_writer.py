"""Datasets in COCO format: annotations made from masks, folders written whole or not at all.

Shared by the example datasets (`shapes`, `coins`). Coordinates follow COCO: pixels, the origin at
the top left corner of the top left pixel, boxes as (x, y, width, height). Needs NumPy and OpenCV
alone. Format: https://cocodataset.org/#format-data.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..utils.errors import DatasetError

SEGMENTATIONS = ("polygon", "rle")


STAMP = "parameters.json"


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """The outlines of a mask along the edges of its pixels.

    Args:
        mask: (H, W), bool. Pixels that touch at a corner only count as separate.

    Returns:
        One (K, 2) integer array of corners (x, y) for each outline: clockwise on the screen around
        a part of the mask, anticlockwise around a hole in it.
    """
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    # A pixel's side is part of the outline where its neighbor there is outside. Directions
    # 0 to 3 are right, down, left, up; the mask lies to the right of the direction of travel.
    sides = (
        (~padded[:-2, 1:-1], (0, 0)),
        (~padded[1:-1, 2:], (1, 0)),
        (~padded[2:, 1:-1], (1, 1)),
        (~padded[1:-1, :-2], (0, 1)),
    )
    ahead: dict[tuple[int, int], list[int]] = {}
    for direction, (outside, (dx, dy)) in enumerate(sides):
        ys, xs = np.nonzero(inside & outside)
        for start in zip((xs + dx).tolist(), (ys + dy).tolist(), strict=True):
            ahead.setdefault(start, []).append(direction)

    steps = ((1, 0), (0, 1), (-1, 0), (0, -1))
    found = []
    while ahead:
        point = next(iter(ahead))
        direction = -1
        corners = []
        while point in ahead:
            ways = ahead[point]
            # Two ways on mean two pixels that touch at a corner: turning right keeps them apart.
            right = (direction + 1) % 4
            onward = right if right in ways and direction >= 0 else ways[0]
            ways.remove(onward)
            if not ways:
                del ahead[point]
            if onward != direction:
                corners.append(point)
            direction = onward
            point = (point[0] + steps[direction][0], point[1] + steps[direction][1])
        found.append(np.array(corners))
    return found


def _is_hole(outline: np.ndarray) -> bool:
    x, y = outline[:, 0], outline[:, 1]
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) < 0


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed RLE of a (H, W) bool mask: runs of 0 and 1 in turn, column by column."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {"size": list(mask.shape), "counts": counts.tolist()}


def annotation(
    mask: np.ndarray, category_id: int, segmentation: str = "polygon", iscrowd: bool = False
) -> dict[str, Any]:
    """An object's annotation, without the ids that its file gives it.

    Args:
        mask: (H, W), bool, at least one pixel: the visible part of the object.
        category_id: from 1, as in COCO.
        segmentation: 'polygon': outlines along the pixels' edges, one for each part, and RLE only
            where the mask has a hole, which COCO's polygons cannot say; 'rle': always RLE.
        iscrowd: a region to ignore, always stored as RLE, as in COCO.
    """
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(xs[0]), int(ys[0])
    shape: Any = None
    if segmentation == "polygon" and not iscrowd:
        parts = outlines(mask)
        if not any(_is_hole(part) for part in parts):
            shape = [part.ravel().tolist() for part in parts]
    return {
        "category_id": category_id,
        "bbox": [x, y, int(xs[-1]) + 1 - x, int(ys[-1]) + 1 - y],
        "area": int(mask.sum()),
        "iscrowd": int(iscrowd),
        "segmentation": run_lengths(mask) if shape is None else shape,
    }


def write_image(path: Path, image: np.ndarray) -> None:
    """Writes (H, W) grey or (H, W, 3) RGB, uint8, as PNG."""
    if image.ndim == 3:
        image = image[..., ::-1]
    if not cv2.imwrite(str(path), image, [cv2.IMWRITE_PNG_COMPRESSION, 4]):
        raise OSError(f"cannot write {path}")


def write_instances(
    path: Path,
    classes: Sequence[str],
    samples: Iterable[tuple[str, tuple[int, int], list[dict[str, Any]]]],
) -> None:
    """Writes a COCO file of images, each (file name, (width, height), annotations)."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (file_name, (width, height), found) in enumerate(samples, start=1):
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for one in found:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **one})
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, separators=(",", ":")))


def write_whole(
    out: Path, parameters: dict[str, Any], write: Callable[[Path], None], files: Sequence[str] = ()
) -> bool:
    """Writes a folder whole or not at all, and keeps one that is already there.

    Args:
        out: the folder.
        parameters: what the content follows from; kept in the folder.
        write: fills the empty folder that it is handed.
        files: of these, relative to `out`, all must be there for a folder to be kept; else it is
            written anew.

    Returns:
        Whether it was written: False where `out` already held the same dataset.

    Raises:
        DatasetError: `out` is a file, or a folder with something else in it, such as a dataset of
            other parameters.
    """
    stamp = json.dumps(parameters, indent=1, sort_keys=True) + "\n"
    if out.exists() and not out.is_dir():
        raise DatasetError(f"{out} is a file: name a folder to write the dataset to")
    if out.is_dir() and any(out.iterdir()):
        held = out / STAMP
        if not held.is_file():
            raise DatasetError(
                f"{out} holds something other than a generated dataset (it has no {STAMP}): "
                "name a folder that is new or empty"
            )
        if held.read_text() != stamp:
            raise DatasetError(
                f"{out} holds a dataset of other parameters, see {held}: remove it or name "
                "another folder"
            )
        if all((out / name).is_file() for name in files):
            return False
    out.parent.mkdir(parents=True, exist_ok=True)
    # A sibling, because renaming is atomic only within one file system.
    scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        fresh = scratch / "new"
        fresh.mkdir()
        write(fresh)
        (fresh / STAMP).write_text(stamp)
        if out.exists():
            os.rename(out, scratch / "old")
        os.rename(fresh, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return True
