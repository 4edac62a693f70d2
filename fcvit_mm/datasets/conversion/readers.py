"""Read the annotations of labeling tools: Pascal VOC, YOLO, LabelMe and COCO.

supervision parses the content of the files. What is here puts it together with its images, and
names the file where something is wrong.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import defusedxml.ElementTree
from rich.console import Console
from rich.progress import Progress
from supervision.dataset.formats.coco import (
    coco_annotations_to_detections,
    group_coco_annotations_by_image_id,
)
from supervision.dataset.formats.labelme import SUPPORTED_SHAPE_TYPES, labelme_shapes_to_detections
from supervision.dataset.formats.pascal_voc import detections_from_xml_obj

from ...utils.errors import DatasetError, name_failure
from ..checks.report import Report, listed
from ..formats import NAMES
from .source import Found, Sample, Source, as_objects, check_size, image_size, reading
from .yolo import read_yolo


def read(
    folder: Path, kind: str, report: Report, console: Console | None = None
) -> tuple[list[str], list[Sample]]:
    """Read all annotations of a folder.

    Args:
        kind: a key of `NAMES`, or auto.
        report: takes warnings.
        console: where to show the progress; nowhere if None.

    Returns:
        The classes, and a sample per image.

    Raises:
        DatasetError: something can't be read; the message names the file.
    """
    source = Source(folder, report)
    kind, files = source.annotations(kind)
    readers = {"voc": _read_voc, "yolo": read_yolo, "labelme": _read_labelme, "coco": _read_coco}
    classes, found = readers[kind](source, files)
    samples: dict[Path, Sample] = {}
    with Progress(console=console, disable=console is None, transient=True) as progress:
        task = progress.add_task("reading", total=None)
        for sample in found:
            key = sample.image.resolve()
            if key in samples:
                raise DatasetError(
                    f"{sample.image} is annotated in both {samples[key].source} and "
                    f"{sample.source}: keep one"
                )
            samples[key] = sample
            progress.advance(task)
    if kind in ("voc", "labelme"):  # their tools write no file for what was not looked at
        for path in source.images:
            if path.resolve() not in samples:
                what = "images without annotations, which are left out"
                report.warn(folder, what, "annotate them or remove them", path.name)
    named = {name for sample in samples.values() for name, _ in sample.objects}
    if not named:
        raise DatasetError(f"{folder}: there are no objects in its {NAMES[kind]}")
    # two numbers may have the same name
    return [*dict.fromkeys(classes)] or sorted(named), list(samples.values())


def _read_voc(source: Source, files: list[Path]) -> Found:
    splits = {
        stem: split
        for split in ("train", "val", "test")
        for path in source.folder.rglob(f"ImageSets/Main/{split}.txt")
        for stem in path.read_text("utf-8").split()
    }
    return [], (_voc_sample(source, path, splits.get(path.stem)) for path in files)


def _voc_sample(source: Source, path: Path, split: str | None) -> Sample:
    with reading(path):
        root = defusedxml.ElementTree.parse(path).getroot()
    # what the file says of its image's name may be older than the name, or lack the ending
    names = [root.findtext("filename") or "", path.stem]
    image = source.find(path, *sorted(names, key=lambda name: Path(name).stem != path.stem))
    size = image_size(image)
    sides = [root.findtext(f"size/{side}") for side in ("width", "height")]
    check_size(path, image, size, sides)
    with reading(path):
        found, names = detections_from_xml_obj(root, [], size)
    objects = as_objects(found, dict(enumerate(names)))
    return Sample(image, size, objects, split or source.split(image), path)


def _read_labelme(source: Source, files: list[Path]) -> Found:
    # where there are polygons, rectangles are outlines, too, in whatever file
    outlined = any('"polygon"' in path.read_text("utf-8-sig") for path in files)
    return [], (_labelme_sample(source, path, outlined) for path in files)


def _labelme_sample(source: Source, path: Path, outlined: bool) -> Sample:
    content = json.loads(path.read_text("utf-8-sig"))
    image = source.find(path, str(content.get("imagePath") or path.stem), path.stem)
    size = image_size(image)
    check_size(path, image, size, [content.get("imageWidth"), content.get("imageHeight")])
    with reading(path):
        for i, shape in enumerate(content["shapes"], 1):
            if not str(shape.get("label") or "").strip():
                raise DatasetError(f"shape {i} has no label; give it the name of a class")
        kinds = [shape["shape_type"] for shape in content["shapes"]]
        shapes = [s for s in content["shapes"] if s["shape_type"] in SUPPORTED_SHAPE_TYPES]
        names = sorted({str(shape["label"]) for shape in shapes})
        numbers = {name: i for i, name in enumerate(names)}
        found = labelme_shapes_to_detections(shapes, numbers, size, outlined)
    for kind in kinds:
        if kind not in SUPPORTED_SHAPE_TYPES:
            what = "shapes other than polygons and rectangles, which are left out"
            source.report.warn(source.folder, what, "draw polygons", f"{path.name} ({kind})")
    objects = as_objects(found, dict(enumerate(names)))
    return Sample(image, size, objects, source.split(image), path)


def _read_coco(source: Source, files: list[Path]) -> Found:
    contents = {path: json.loads(path.read_text("utf-8-sig")) for path in files}
    classes: dict[str, None] = {}
    for path, content in contents.items():
        with name_failure(f"{path}: its categories can't be read"):
            classes |= dict.fromkeys(str(one["name"]) for one in content["categories"])
    found = (one for item in contents.items() for one in _coco_samples(source, *item))
    return [*classes], found


def _coco_samples(source: Source, path: Path, content: dict) -> Iterator[Sample]:
    with reading(path):
        names = {one["id"]: str(one["name"]) for one in content["categories"]}
        of_image = group_coco_annotations_by_image_id(content["annotations"])
        unknown = {one["category_id"] for one in content["annotations"]} - {*names}
        ids = {image["id"] for image in content["images"]}
    for what, wrong in (("category_id", unknown), ("image_id", of_image.keys() - ids)):
        if wrong:
            known = listed([*map(str, sorted(wrong, key=str))])
            raise DatasetError(f"{path}: annotations of an unknown {what} ({known})")
    for image in content["images"]:
        with name_failure(f"{path}: an entry of its images can't be read"):
            name, sides = str(image["file_name"]), (image.get("width"), image.get("height"))
        file = source.find(path, name)
        size = image_size(file)
        check_size(path, file, size, sides)
        with reading(f"{path}: an annotation of {name}"):
            found = coco_annotations_to_detections(of_image.get(image["id"], []), size, False)
            objects = as_objects(found, names)
        split = source.split(path, with_name=True) or source.split(file)
        yield Sample(file, size, objects, split, path)
