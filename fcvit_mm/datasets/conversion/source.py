"""Find images and annotations in a folder, and hold what supervision has read of them."""

import os
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np
import supervision as sv
from supervision.dataset.formats.coco import detections_to_coco_annotations

from ...utils.errors import DatasetError, first_line, name_failure
from ...visualization.images import IMAGES
from ..checks.images import Pixels, read_header
from ..checks.report import Report, listed
from ..formats import FOREIGN, NAMES, SUFFIXES, recognize

Object = tuple[str, dict[str, Any]]
# Words in the names of folders and COCO's files that say which split is in them.
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test",
          "val": "val", "valid": "val", "validation": "val"}  # fmt: skip


class Sample(NamedTuple):
    """An image with its objects: of each its class and its annotation in COCO's format, no ids.

    split: train, val or test, where the source says so. source: the file of its annotations.
    """

    image: Path
    size: Pixels
    objects: list[Object]
    split: str | None
    source: Path


# What a reader returns: the classes in the order that the source gives them, if any; the samples.
Found = tuple[list[str], Iterator[Sample]]


class Source:
    """A folder of images and annotations."""

    def __init__(self, folder: Path, report: Report) -> None:
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise DatasetError(f"{folder} {what}: name the folder of images and annotations")
        self.folder, self.report = folder, report
        self.files = [
            path
            for path in sorted(folder.rglob("*"))
            if path.is_file()
            and not any(
                part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts
            )
        ]
        self.images = [path for path in self.files if path.suffix.lower() in IMAGES]
        self._by_name = defaultdict(list)
        for path in self.images:
            self._by_name[path.name].append(path)
            self._by_name[path.stem].append(path)

    def annotations(self, kind: str) -> tuple[str, list[Path]]:
        """Return the format, one of `NAMES`, and its files; `kind` is one, too, or auto."""
        held: dict[str | None, list[Path]] = defaultdict(list)
        for path in self.files:
            if path.suffix.lower() in SUFFIXES:
                with name_failure(f"{path} can't be read"):
                    held[recognize(path)].append(path)
        known = [name for name in NAMES if name in held and kind in ("auto", name)]
        if len(known) > 1:
            kinds = ", ".join(f"{NAMES[name]} ({held[name][0].name})" for name in known)
            raise DatasetError(
                f"{self.folder} holds annotations in several formats: {kinds}; choose one by "
                "--format"
            )
        if known:
            return known[0], held[known[0]]
        for name, remedy in FOREIGN.items():
            if name in held:
                raise DatasetError(f"{held[name][0]} is {remedy}")
        wanted = NAMES.get(kind, ", ".join(NAMES.values()))
        names = listed([path.name for path in held[None]])
        unknown = f"; there are {names}, which are in an unknown format" if names else ""
        raise DatasetError(f"{self.folder} holds no annotations ({wanted}){unknown}")

    def has(self, name: str) -> bool:
        """Tell whether there is an image of that name, with or without its ending."""
        return name in self._by_name

    def find(self, annotation: Path, *names: str) -> Path:
        """Return the image that a file of annotations calls by the first of these names it has."""
        for name in names:
            name = name.replace("\\", "/")  # as Windows writes it
            direct = Path(os.path.normpath(annotation.parent / name))
            if direct.suffix.lower() in IMAGES and direct.is_file():
                return direct
            found = self._by_name.get(PurePosixPath(name).name, [])
            split = self.split(annotation, with_name=True)
            near = [path for path in found if self.split(path) == split]
            if len(near or found) == 1:
                return (near or found)[0]
            if found:
                which = listed([str(path) for path in found])
                raise DatasetError(f"{annotation}: several images are named {name} ({which})")
        raise DatasetError(f"{annotation}: its image {names[0]} is not in {self.folder}")

    def split(self, path: Path, with_name: bool = False) -> str | None:
        """Return the split that the folders of a file, or its name too, speak of."""
        if not path.is_relative_to(self.folder):
            return None
        place = path.relative_to(self.folder)
        words = re.findall("[a-z]+", str(place if with_name else place.parent).lower())
        found = {SPLITS[word] for word in words if word in SPLITS}
        return found.pop() if len(found) == 1 else None


@contextmanager
def reading(path: object) -> Iterator[None]:
    """Name a file in whatever goes wrong inside; numbers that are none or too large are errors."""
    with name_failure(f"{path} can't be read"), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # NumPy's
        yield


def image_size(path: Path) -> Pixels:
    """Return width and height of an image as it is loaded; a DatasetError if it can't be."""
    try:
        return read_header(str(path))[0]
    except Exception as error:  # PIL's readers raise errors of many classes
        raise DatasetError(f"{path} can't be read as an image: {first_line(error)}") from error


def check_size(annotation: Path, image: Path, size: Pixels, annotated: Sequence[Any]) -> None:
    """Refuse annotations of an image that has been scaled or rotated since."""
    with name_failure(f"{annotation}: the size of its image can't be read"):
        width, height = (round(float(value or 0)) for value in annotated)
    if width and height and (width, height) != size:
        raise DatasetError(
            f"{annotation} is for an image of {width}x{height} pixels, while {image} has "
            f"{size[0]}x{size[1]}: restore the image or annotate it anew"
        )


def as_objects(found: sv.Detections, names: Mapping[int, str]) -> list[Object]:
    """Convert what supervision has read; `names` are those of its classes, by number."""
    if found.class_id is None or not len(found):
        return []
    # else what has holes or several parts would become a crowd, which is not learned
    found.data.setdefault("iscrowd", np.zeros(len(found), int))
    with warnings.catch_warnings():
        # of outlines too thin for a polygon, whose boxes are kept
        warnings.simplefilter("ignore")
        annotations, _ = detections_to_coco_annotations(found, 1, 1, approximation_percentage=0)
    objects = []
    for number, one in zip(found.class_id.tolist(), annotations, strict=True):
        box = [round(float(value), 2) for value in one["bbox"]]
        kept = {"bbox": box, "area": round(float(one["area"]), 2), "iscrowd": one["iscrowd"]}
        outline = one["segmentation"]
        if isinstance(outline, list):
            outline = [[round(float(value), 2) for value in part] for part in outline]
        if outline:
            kept["segmentation"] = outline
        if not outline:
            kept["area"] = round(box[2] * box[3], 2)
        elif found.mask is not None:  # else the source gives it
            kept["area"] = sum(cv2.contourArea(np.float32(p).reshape(-1, 2)) for p in outline)
        objects.append((names[number], kept))
    return objects
