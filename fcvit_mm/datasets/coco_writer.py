"""Write datasets in COCO's format (https://cocodataset.org/#format-data), whole or not at all."""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..utils.errors import DatasetError

STAMP = "parameters.json"


def outlines(mask: np.ndarray) -> list[np.ndarray] | None:
    """Trace the outlines of a mask, (H, W), bool, along the edges of its pixels.

    Returns:
        The corners (x, y) of each part, (K, 2), int; None if one has a hole, which COCO's polygons
        can't express.
    """
    # OpenCV's contours connect the centers of pixels. In a mask enlarged twofold those at the
    # border lie half a pixel inside of the edge, and rounding moves them onto it.
    doubled = mask.astype(np.uint8).repeat(2, 0).repeat(2, 1)
    found, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if (hierarchy[0, :, 3] >= 0).any():
        return None
    corners = [(contour[:, 0] + 1) // 2 for contour in found]
    return [points[(points != np.roll(points, 1, axis=0)).any(1)] for points in corners]


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Return COCO's uncompressed RLE of a (H, W) mask: runs of 0 and 1 in turn, by columns."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {"size": list(mask.shape), "counts": counts.tolist()}


def annotation(mask: np.ndarray, category_id: int, iscrowd: bool = False) -> dict[str, Any]:
    """Make the annotation of an object by what is visible of it, (H, W), bool; without ids.

    It is stored as polygons, or as RLE where it has a hole or is a crowd, a region to ignore.
    """
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    parts = None if iscrowd else outlines(mask)
    return {
        "category_id": category_id,
        "bbox": [x, y, width, height],
        "area": int(mask.sum()),
        "iscrowd": int(iscrowd),
        "segmentation": run_lengths(mask) if parts is None else [p.ravel().tolist() for p in parts],
    }


def write_instances(
    path: Path,
    classes: Sequence[str],
    samples: Iterable[tuple[str, tuple[int, int], list[dict[str, Any]]]],
) -> None:
    """Write a COCO file of images, each (file name, (width, height), annotations)."""
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


@contextmanager
def write_folder(out: Path) -> Iterator[Path]:
    """Give an empty folder to fill; at the end it becomes `out`, and after an error it is gone.

    Raises:
        DatasetError: `out` is a file, or a folder that is not empty.
    """
    if out.exists() and not out.is_dir():
        raise DatasetError(f"{out} is a file: name a folder to write the dataset to")
    if out.is_dir() and any(out.iterdir()):
        raise DatasetError(f"{out} is not empty: name a folder that is new or empty")
    out.parent.mkdir(parents=True, exist_ok=True)
    # A sibling, because renaming is atomic only within one file system.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        fresh = Path(scratch, "new")
        fresh.mkdir()
        yield fresh
        if out.exists():
            out.rmdir()
        fresh.rename(out)


def write_whole(out: Path, parameters: dict[str, Any], write: Callable[[Path], None]) -> bool:
    """Write a folder whole or not at all; return whether: False where it is already there.

    Args:
        parameters: what the content follows from; kept in the folder.
        write: fills the empty folder that it is handed.

    Raises:
        DatasetError: `out` is a file, or a folder with something else in it, such as a dataset of
            other parameters.
    """
    stamp = json.dumps(parameters, indent=1, sort_keys=True) + "\n"
    held = out / STAMP
    if held.is_file():
        if held.read_text() != stamp:
            raise DatasetError(
                f"{out} holds a dataset of other parameters, see {held}: remove it or name "
                "another folder"
            )
        return False
    with write_folder(out) as fresh:
        write(fresh)
        (fresh / STAMP).write_text(stamp)
    return True
