"""Look at a dataset of one's own, laid out as docs/custom_data.md says."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from ..utils.config import IGNORED
from ..utils.errors import ConfigError, name_failure
from ..visualization.images import IMAGES

LAYOUT = (
    "docs/custom_data.md shows the layout, and fcvit convert_data makes it of Pascal VOC, YOLO, "
    "LabelMe and of other exports in COCO's format (with --label-maps for segmentation)"
)
# The class that label maps of `fcvit convert_data` have where there is no object.
BACKGROUND = "background"
# How many files tell the size of all images, or the values of all label maps.
LOOKS = 200


@dataclass(frozen=True)
class OwnData:
    """What a folder holds; side: median in pixels, of a detector the longer, else the shorter."""

    task: str
    root: Path
    classes: tuple[str, ...]
    train: int
    val: int
    side: float
    masks: bool = False
    suffix: str = ""
    notes: tuple[str, ...] = ()


def look_at(root: Path, task: str) -> OwnData:
    """Find out what a folder holds, laid out as docs/custom_data.md says.

    Raises:
        ConfigError: it is laid out in another way.
    """
    if not root.is_dir():
        raise ConfigError(f"{root} is no folder; name the one that holds your data")
    looks = {"detection": _look_at_coco, "segmentation": _look_at_maps}
    return looks.get(task, _look_at_folders)(root)


def _look_at_coco(root: Path) -> OwnData:
    train, val = (_read_coco(root / f"annotations/{split}.json") for split in ("train", "val"))
    objects = [one for one in train["annotations"] if not one.get("iscrowd")]
    used = {one["category_id"] for one in objects}
    names = {one["id"]: one["name"] for one in train["categories"]}
    classes = tuple(name for key, name in names.items() if key in used)
    if not classes:
        raise ConfigError(f"{root}/annotations/train.json has no object of any category")
    unused = [name for key, name in names.items() if key not in used]
    notes = [f"left out, as no training image has it: {name}" for name in unused]
    masks = [bool(one.get("segmentation")) for one in objects]
    if any(masks) and not all(masks):
        notes.append(f"{masks.count(False)} of {len(masks)} objects have no outline: no masks")
    sides = [max(one["width"], one["height"]) for one in train["images"]]
    return OwnData(
        "detection", root, classes, len(train["images"]), len(val["images"]), median(sides),
        masks=all(masks), notes=tuple(notes),
    )  # fmt: skip


def _read_coco(path: Path) -> dict[str, list[dict[str, Any]]]:
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; {LAYOUT}")
    with name_failure(f"{path} is no file in COCO's format", f"; {LAYOUT}"):
        content = json.loads(path.read_text("utf-8"))
        wanted = {"images": ("width", "height"), "categories": ("id", "name"),
                  "annotations": ("category_id",)}  # fmt: skip
        for key, fields in wanted.items():
            if not all(field in one for one in content[key] for field in fields):
                raise ValueError(f"each of its {key} must have {' and '.join(fields)}")
    if not content["images"]:
        raise ConfigError(f"{path} has no images")
    return content


def _look_at_maps(root: Path) -> OwnData:
    images = {split: _images(root / f"images/{split}") for split in ("train", "val")}
    maps = {split: sorted((root / f"label_maps/{split}").rglob("*.png")) for split in images}
    for split, found in maps.items():
        if not found:
            raise ConfigError(f"{root}/label_maps/{split} has no label maps (*.png); {LAYOUT}")
    suffixes = {path.suffix for paths in images.values() for path in paths}
    if len(suffixes) > 1:
        raise ConfigError(
            f"{root}/images has files of several kinds ({', '.join(sorted(suffixes))}); a "
            "segmentor's must all have the same ending: convert them"
        )
    classes, notes = _map_classes(root, maps["train"])
    return OwnData(
        "segmentation", root, classes, len(images["train"]), len(images["val"]),
        _side(images["train"]), suffix=suffixes.pop(), notes=notes,
    )  # fmt: skip


def _map_classes(root: Path, maps: Sequence[Path]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the classes of label maps in the order of their values, and notes."""
    named, objects = root / "classes.txt", root / "annotations/train.json"
    if named.is_file():
        lines = (line.strip() for line in named.read_text("utf-8").splitlines())
        return tuple(line for line in lines if line), ()
    if objects.is_file():
        # fcvit convert_data has drawn its objects
        names = [one["name"] for one in _read_coco(objects)["categories"]]
        return (BACKGROUND, *(name for name in names if name != BACKGROUND)), ()
    values = _values(maps)
    if len(values) < 2:
        raise ConfigError(
            f"{root}/label_maps/train: no class but {values}; 255 is ignored, so number your "
            "classes from 0 on"
        )
    classes = tuple(f"class_{value}" for value in range(values[-1] + 1))
    return classes, (f"no {named} with a name per line, in the order of the values",)


def _values(maps: Sequence[Path]) -> list[int]:
    """Return the classes that occur in label maps, in some of many."""
    found: set[int] = set()
    for path in maps[:: -(-len(maps) // LOOKS)]:
        with name_failure(f"{path} can't be read as a label map"), Image.open(path) as image:
            found.update(np.unique(np.asarray(image)).tolist())
    return sorted(found - {IGNORED})


def _look_at_folders(root: Path) -> OwnData:
    names = {}
    for split in ("train", "val"):
        folders = [path for path in root.glob(f"{split}/*") if path.is_dir()]
        names[split] = tuple(sorted(path.name for path in folders))
        if len(folders) < 2:
            raise ConfigError(f"{root}/{split} has not one folder per class; {LAYOUT}")
    if names["train"] != names["val"]:
        other = sorted({*names["train"]} ^ {*names["val"]})
        raise ConfigError(
            f"{root}: the classes in train/ and val/ must be the same; only one has "
            f"{', '.join(other)}"
        )
    train, val = (_images(root / split) for split in ("train", "val"))
    return OwnData(
        "classification", root, names["train"], len(train), len(val), _side(train)
    )  # fmt: skip


def _images(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES)
    if not found:
        raise ConfigError(f"{folder} has no images ({' '.join(IMAGES)}); {LAYOUT}")
    return found


def _side(images: Sequence[Path]) -> float:
    """Return the median of the shorter sides of images, of some of many."""
    sides = []
    for path in images[:: -(-len(images) // LOOKS)]:
        with name_failure(f"{path} can't be read as an image"), Image.open(path) as image:
            sides.append(min(image.size))
    return median(sides)
