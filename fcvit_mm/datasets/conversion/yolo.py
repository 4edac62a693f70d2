"""Read YOLO's txt files, with the data.yaml of Ultralytics or without."""

import re
from pathlib import Path
from typing import Any

import yaml
from supervision.dataset.formats.yolo import yolo_annotations_to_detections

from ...utils.errors import DatasetError, name_failure
from ...visualization.images import IMAGES
from .source import SPLITS, Found, Sample, Source, as_objects, image_size, reading


def read_yolo(source: Source, files: list[Path]) -> Found:
    """Return classes and samples; `files` are all txt that look like YOLO's."""
    names, entries, has_keypoints = _read_data_yaml(source)
    images = _yolo_images(source, entries)
    labels = {image: _label_of(image) for image in images}
    used = {*labels.values()}
    for path in files:
        if path not in used and not source.has(path.stem):
            raise DatasetError(f"{path}: no image of that name is in {source.folder}")
    if not any(labels.values()):
        raise DatasetError(f"{source.folder}: no image has a YOLO txt in labels/ or next to it")
    found = (
        _yolo_sample(image, split, labels[image], names, has_keypoints)
        for image, split in images.items()
    )
    return [*names.values()], found


def _yolo_sample(
    image: Path, split: str | None, label: Path | None, names: dict[int, str], has_keypoints: bool
) -> Sample:
    size = image_size(image)
    if label is None:  # nothing to be seen, as Ultralytics has it
        return Sample(image, size, [], split, image)
    with reading(label):
        lines = [line.split() for line in label.read_text("utf-8-sig").splitlines()]
        lines = [line[:5] if has_keypoints else line for line in lines if line]
        outlined = any(len(line) > 6 for line in lines)
        found = yolo_annotations_to_detections([*map(" ".join, lines)], size, outlined)
    for word, *_ in lines:
        if int(float(word)) not in names:
            raise DatasetError(
                f"{label}: class {word} is unknown; {min(names)} to {max(names)} have names"
            )
    if found.xyxy.max(initial=0) > 2 * max(size):
        raise DatasetError(
            f"{label}: its coordinates are pixels, while YOLO's are fractions of the image's sides"
        )
    return Sample(image, size, as_objects(found, names), split, label)


def _read_data_yaml(source: Source) -> tuple[dict[int, str], dict[str, list[Path]], bool]:
    """Return the classes by number, the files and folders of each split, and whether of poses."""
    for path in source.files:
        if path.suffix not in (".yaml", ".yml"):
            continue
        with name_failure(f"{path} can't be read"):
            content = yaml.safe_load(path.read_text("utf-8"))
        if not isinstance(content, dict) or "names" not in content:
            continue
        with name_failure(f"{path}: its names are neither a list nor numbered"):
            named = content["names"]
            named = named if isinstance(named, dict) else dict(enumerate([*named]))
            names = {int(number): str(named[number]) for number in sorted(named, key=int)}
        entries = {
            SPLITS[key]: [_resolve(path, content, str(one)) for one in _as_list(content[key])]
            for key in ("train", "val", "valid", "test")
            if content.get(key)
        }
        return names, entries, "kpt_shape" in content
    for path in source.files:  # as Label Studio and CVAT write them
        if path.name in ("classes.txt", "obj.names"):
            lines = path.read_text("utf-8").splitlines()
            return dict(enumerate(line.strip() for line in lines if line.strip())), {}, False
    raise DatasetError(
        f"{source.folder} holds YOLO txt, but no data.yaml or classes.txt that names the classes"
    )


def _as_list(entry: Any) -> list[Any]:
    return entry if isinstance(entry, list) else [entry]


def _resolve(path: Path, content: dict, entry: str) -> Path:
    """Return where a split of a data.yaml lies; some tools write one ../ too many."""
    places = (
        path.parent / str(content.get("path") or "") / entry,
        path.parent / entry,
        path.parent / re.sub(r"^(\.\./)+", "", entry),
    )
    for place in places:
        if place.exists():
            return place
    raise DatasetError(f"{path}: {entry} does not exist")


def _yolo_images(source: Source, entries: dict[str, list[Path]]) -> dict[Path, str | None]:
    if not entries:
        return {path: source.split(path) for path in source.images}
    images: dict[Path, str | None] = {}
    for split, places in entries.items():
        for place in places:
            if place.is_dir():
                inside = [
                    path for path in sorted(place.rglob("*")) if path.suffix.lower() in IMAGES
                ]
            else:
                names = place.read_text("utf-8").split("\n")
                inside = [source.find(place, name.strip()) for name in names if name.strip()]
            # some name the same images twice: these are for training
            images |= {path: split for path in inside if images.get(path) != "train"}
    return images


def _label_of(image: Path) -> Path | None:
    """Return the YOLO txt of an image: in labels/ where it is in images/, or next to it."""
    places = [image.with_suffix(".txt")]
    parts = [*image.parts]
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        places.insert(0, Path(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt"))
    return next((place for place in places if place.is_file()), None)
