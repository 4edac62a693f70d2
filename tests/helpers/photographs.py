"""Photographs with hand-drawn outlines, arranged as labeling tools leave them."""

import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from helpers import ROOT

FOLDER = ROOT / "tests/data/photographs"
CLASSES = ["cat", "cup", "person", "rocket"]
# of the tools that write them
BOXES = ("voc", "yolo_boxes")
OUTLINES = ("labelme", "yolo_polygons", "cvat", "label_studio")


class Shape(NamedTuple):
    """An object as it was drawn."""

    name: str
    points: list[tuple[float, float]]

    @property
    def box(self) -> tuple[float, float, float, float]:
        x, y = zip(*self.points, strict=True)
        return min(x), min(y), max(x), max(y)


def drawn() -> dict[str, list[Shape]]:
    """Return the objects of each image, by the name of the image without its ending."""
    found = {}
    for path in sorted((FOLDER / "labelme").glob("*.json")):
        shapes = json.loads(path.read_text())["shapes"]
        found[path.stem] = [Shape(s["label"], [*map(tuple, s["points"])]) for s in shapes]
    return found


def arrange(kind: str, folder: Path) -> Path:
    """Lay out images and annotations as a tool does; return the folder."""
    places = {
        "voc": ("JPEGImages", "Annotations"),
        "labelme": (".", "."),
        "yolo_boxes": ("images", "labels"),
        "yolo_polygons": ("images", "labels"),
        "cvat": ("images/default", "annotations"),
        "label_studio": ("images", "."),
    }
    images, annotations = (folder / place for place in places[kind])
    for place in (images, annotations):
        place.mkdir(parents=True, exist_ok=True)
    names = {path.name: path.name for path in (FOLDER / "images").iterdir()}
    if kind == "cvat":
        shutil.copy(FOLDER / "cvat.json", annotations / "instances_default.json")
    elif kind == "label_studio":
        text = (FOLDER / "label_studio.json").read_text()
        (annotations / "result.json").write_text(text)
        # the tool puts a number before the names of uploaded files
        names = {name[9:]: name for name in re.findall(r"images/(\S+?)\"", text)}
    else:
        for path in (FOLDER / kind).iterdir():
            shutil.copy(path, annotations / path.name)
    if kind.startswith("yolo"):
        shutil.copy(FOLDER / "data.yaml", folder)
    for name, copy in names.items():
        shutil.copy(FOLDER / "images" / name, images / copy)
    return folder


def write_copy(path: Path, copy: Path) -> None:
    """Write an image anew, of another quality and size."""
    with Image.open(path) as image:
        image.resize((image.width * 3 // 4, image.height * 3 // 4)).save(copy, quality=60)
