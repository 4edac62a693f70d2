"""Check annotation files in COCO's instances format: https://cocodataset.org/#format-data."""

import difflib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.errors import first_line
from ..formats import FOREIGN, NAMES, recognize
from .images import File, Pixels
from .label_maps import check_counts
from .report import SHOWN, Problem, Report, listed

LISTS = ("images", "categories", "annotations")


def _is_integer(value: Any) -> bool:
    return type(value) is int  # no bool


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -1e12 < value < 1e12  # no NaN, and NumPy can hold it


def _is_id(value: Any) -> bool:
    return type(value) is str or (_is_integer(value) and abs(value) < 2**53)  # kept as float64


# What the entries of each list must hold.
FIELDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "images": {
        "id": _is_id,
        "file_name": lambda value: isinstance(value, str),
        "width": lambda value: _is_integer(value) and 0 < value < 1e6,
        "height": lambda value: _is_integer(value) and 0 < value < 1e6,
    },
    "categories": {"id": _is_integer, "name": lambda value: isinstance(value, str)},
    "annotations": {
        "id": lambda value: _is_id(value) and _is_integer(value),
        "image_id": _is_id,
        "category_id": _is_integer,
        "bbox": lambda value: (
            isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))
        ),
        "area": _is_number,
        "iscrowd": lambda value: value in (0, 1),
    },
}
LAYOUT = "docs/custom_data.md shows the layout"
# Of a polygon, in pixels: pycocotools keeps all of its outline, in C's int, or ends the process.
FARTHEST, LONGEST = 1e6, 2e6
Flaw = tuple[str, str, bool]  # what is wrong, remedy, whether it is an error
UNREADABLE: Flaw = ("annotations whose segmentation is neither a list of polygons nor RLE",
                    "write [[x1, y1, x2, y2, ...], ...]", True)  # fmt: skip
TOO_FAR: Flaw = ("annotations whose polygons are too long or too far outside to be drawn",
                 "correct their coordinates, which are to lie in the image", True)  # fmt: skip


def check_coco(
    dataset: Any, where: str, report: Report, masks: bool, evaluators: dict[str, dict]
) -> list[File]:
    """Check the annotation file of a `CocoDataset`, built lazily; returns its images.

    masks: whether its pipeline loads them.
    """
    path = dataset.ann_file
    # one that is only predicted for, such as COCO's test images
    has_labels = not any(evaluator.get("format_only") for evaluator in evaluators.values())
    content = _read(path, report, LISTS if has_labels else LISTS[:2])
    if content is None:
        return []
    unread = () if evaluators else ("iscrowd",)  # the evaluation alone needs it
    sound = {key: _sound_entries(content[key], key, path, report, unread) for key in LISTS}
    _check_categories(path, sound["categories"], dataset.metainfo["classes"], where, report)
    images = sound["images"]
    kept = np.ones(len(images), bool)
    if has_labels:
        image = _check_objects(dataset, sound, report, masks, bool(evaluators))
        kept = _kept(dataset, images, image)
        if images and not kept.any():
            remedy = f"correct the errors above or set {where}.filter_cfg=None"
            report.error(path, "no images are left by the filter_cfg", remedy)
    prefix = dataset.data_prefix.get("img") or ""
    return [
        File(os.path.join(prefix, i["file_name"]), (i["width"], i["height"]), left_out=not is_kept)
        for i, is_kept in zip(images, kept, strict=True)
    ]


def _read(path: str, report: Report, wanted: Sequence[str]) -> dict[str, list] | None:
    """Read the lists of an annotation file; None where it has not got them."""
    try:
        content = json.loads(Path(path).read_text("utf-8"), object_hook=_shorten)
    except (OSError, ValueError, RecursionError) as error:
        if not _report_format(path, report):
            report.error(path, f"is not JSON ({first_line(error)})", "write or download it anew")
        return None
    content = content if isinstance(content, dict) else {}
    missing = [key for key in wanted if not isinstance(content.get(key), list)]
    if missing and not _report_format(path, report):
        keys = ", ".join(map(repr, content)) or "none"
        what = f"no list of {' and of '.join(missing)} (its keys: {keys})"
        report.error(path, what, f"COCO's instances format is needed; {LAYOUT}")
    if missing:
        return None
    return {key: content[key] if key in wanted else [] for key in LISTS}


def _report_format(path: str, report: Report) -> bool:
    """Report an annotation file, or a folder of some, in the format of a labeling tool."""
    try:
        kind = recognize(Path(path))
    except (OSError, ValueError):
        return False
    if kind in FOREIGN:
        report.error(path, "is " + FOREIGN[kind], "then name its JSON file")
    elif kind in NAMES and kind != "coco":
        report.error(path, f"is {NAMES[kind]}", "fcvit convert_data makes COCO's JSON of it")
    else:
        return False
    return True


def _sound_entries(
    entries: list, key: str, path: str, report: Report, unread: Sequence[str]
) -> list[dict]:
    """Return those entries that hold what `FIELDS` says and have an id of their own."""
    fields = [(name, is_sound) for name, is_sound in FIELDS[key].items() if name not in unread]
    sound, ids = [], set()
    for index, entry in enumerate(entries):
        example = f"{key}[{index}]"
        if not isinstance(entry, dict):
            report.error(path, f"{key} that are no objects", LAYOUT, example)
            continue
        if _is_id(entry.get("id")):
            example += f" (id {entry['id']})"
        flawed = [name for name, is_sound in fields if not is_sound(entry.get(name))]
        if flawed:
            what = f"{key} without {flawed[0]}, or with one that can't be read"
            report.error(path, what, LAYOUT, example)
        elif entry["id"] in ids:
            report.error(path, f"ids that several of its {key} have", "give each its own", example)
        else:
            ids.add(entry["id"])
            sound.append(entry)
    return sound


def _check_categories(
    path: str, categories: list[dict], classes: Sequence[str], where: str, report: Report
) -> None:
    """Compare a config's classes with the categories of an annotation file, by name."""
    names = [category["name"] for category in categories]

    def set_classes(names: Sequence[str]) -> str:
        few = repr(tuple(names)) if len(names) <= 10 else f"({listed([*map(repr, names)])}, ...)"
        return f"set {where}.metainfo=dict(classes={few})"

    counts = Counter(names)
    for name, count in counts.items():
        if count > 1:
            remedy = "join them or give each its own"
            report.error(path, "categories of the same name", remedy, repr(name))
    missing = [name for name in classes if name not in counts]
    known = listed([*map(repr, names)], 10) or "none"
    for place, name in enumerate(missing):
        # of many not all are shown
        near = difflib.get_close_matches(str(name), names, n=1) if place < SHOWN else []
        hint = f" (nearest: {near[0]!r})" if near else ""
        what = f"classes that are no category of {path}, which has {known}"
        report.error(where, what, set_classes(names), f"{name!r}{hint}")
    in_file = [name for name in counts if name in set(classes)]
    if not missing and in_file != list(classes):
        # MMDetection numbers the labels as the file lists them
        what = f"classes in another order than the categories of {path}, which numbers them"
        report.error(where, what, set_classes(in_file))
    ids = [category["id"] for category in categories]
    if ids != sorted(ids):
        # MMDetection reads the file's order, and COCO's evaluation has that of the ids
        remedy = "sort them, or a test prints each AP with the name of another class"
        report.warn(path, "categories that are not in the order of their ids", remedy)


def _check_objects(
    dataset: Any, content: dict[str, list[dict]], report: Report, masks: bool, is_evaluated: bool
) -> np.ndarray:
    """Check annotations against images and categories.

    Returns:
        The places in the list of images of those with an object of a class.
    """
    path, classes = dataset.ann_file, dataset.metainfo["classes"]
    images, categories, annotations = (content[key] for key in LISTS)

    # From here on in columns: COCO has 860,000 annotations.
    places = {image["id"]: place for place, image in enumerate(images)}
    numbers = {name: number for number, name in enumerate(classes)}
    labels = {category["id"]: numbers.get(category["name"], -1) for category in categories}
    n = len(annotations)
    image = np.fromiter((places.get(a["image_id"], -1) for a in annotations), np.int64, n)
    label = np.fromiter((labels.get(a["category_id"], -2) for a in annotations), np.int64, n)
    boxes = np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4)
    area = np.fromiter((a["area"] for a in annotations), np.float64, n)
    # a last row for the images that do not exist
    sizes = np.array([(i["width"], i["height"]) for i in images] + [(0, 0)], np.float64)[image]

    corners = np.clip(boxes[:, :2], 0, None), np.minimum(boxes[:, :2] + boxes[:, 2:], sizes)
    visible = (corners[1] > corners[0]).all(1) & (boxes[:, 2:] >= 1).all(1) & (area > 0)
    used = (image >= 0) & (label >= 0) & visible
    for wrong, key, what, remedy, is_error in (
        (image < 0, "image_id", "annotations whose image_id is no image's id",
         "add those images or remove the annotations", True),
        (label == -2, "category_id", "annotations whose category_id is no category's id",
         "correct the ids or add those categories to the file", True),
        ((image >= 0) & ~visible, "bbox",
         "annotations smaller than a pixel or wholly outside of their image", "they are left out",
         False),
    ):  # fmt: skip
        for annotation in (annotations[i] for i in np.flatnonzero(wrong)):
            example = f"id {annotation['id']} ({key} {annotation[key]})"
            report.add(Problem(path, what, remedy, example, is_error))
    if masks:
        # the evaluation reads the masks of what is left out in training, too
        for i in np.flatnonzero((image >= 0) & (label >= 0) if is_evaluated else used):
            size = images[image[i]]["width"], images[image[i]]["height"]
            flaw = _segmentation_flaw(annotations[i].get("segmentation"), size, is_evaluated)
            if flaw:
                what, remedy, is_error = flaw
                report.add(Problem(path, what, remedy, f"id {annotations[i]['id']}", is_error))

    names = [category["name"] for category in categories]
    for name in names:
        if name not in numbers:
            remedy = "their annotations are left out"
            report.warn(path, "categories that are in no class", remedy, repr(name))
    counts = np.bincount(label[used], minlength=len(classes))
    check_counts(path, classes, counts, report, set(classes) - set(names))
    report.labeled, report.unit = int(used.sum()), "objects"
    return image[(image >= 0) & (label >= 0)]


def _segmentation_flaw(segmentation: Any, size: Pixels, is_evaluated: bool) -> Flaw | None:
    """Return what is wrong with an annotation's mask, which `_shorten` has shortened."""
    if not segmentation:
        what = "annotations without a segmentation, while masks are to be learned"
        return what, "add each one's outline, or train a detector without masks", True
    if isinstance(segmentation, dict):
        fills = segmentation.get("counts") == size[0] * size[1]
        if fills and segmentation.get("size") == [size[1], size[0]]:
            return None
        what = "annotations whose RLE is of another size than its image, or does not fill it"
        return what, 'write {"size": [height, width], "counts": ...} anew', True
    if not isinstance(segmentation, list):
        return segmentation if isinstance(segmentation, tuple) else UNREADABLE
    if is_evaluated and segmentation[0] < 6:
        what = "annotations whose first polygon has less than three points"
        return what, "the evaluation can't read it: write three points or more, or remove it", True
    if not any(length >= 6 and length % 2 == 0 for length in segmentation):
        what = "annotations whose polygons have less than three points"
        return what, "they are ignored", False
    return None


def outline_flaw(segmentation: Any, size: Pixels) -> Flaw | None:
    """Return what is wrong with an annotation's mask, of which pycocotools would make noise."""
    node = json.loads(json.dumps({"segmentation": segmentation}), object_hook=_shorten)
    return _segmentation_flaw(node["segmentation"], size, True)


def _shorten(node: dict) -> dict:
    """Keep of a mask, which may be large, the sum of its runs or the length of each polygon."""
    if "counts" in node:
        runs: Any = _runs(node["counts"]) if isinstance(node["counts"], str) else node["counts"]
        is_sound = isinstance(runs, list) and all(_is_integer(run) and run >= 0 for run in runs)
        node["counts"] = sum(runs) if is_sound else None
    if isinstance(polygons := node.get("segmentation"), list):
        if not all(isinstance(p, list) and {*map(type, p)} <= {int, float} for p in polygons):
            node["segmentation"] = UNREADABLE
        else:
            sound = all(map(_can_be_drawn, polygons))
            node["segmentation"] = [*map(len, polygons)] if sound else TOO_FAR
    return node


def _can_be_drawn(polygon: list) -> bool:
    if not all(-FARTHEST < value < FARTHEST for value in polygon):
        return False  # NaN, too
    if not polygon or len(polygon) * (max(polygon) - min(polygon)) < LONGEST:
        return True
    points = np.reshape(polygon[: len(polygon) // 2 * 2], (-1, 2))
    return np.abs(points - np.roll(points, 1, axis=0)).max(1).sum() < LONGEST


def _runs(counts: str) -> list[int] | None:
    """Return the runs of a compressed RLE, as COCO's maskApi.c reads them; None if it could not."""
    # Five bits per character from 48 on, the lowest first; the sixth says that more follow. From
    # the fourth run on what is written is the difference from the one before the last.
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return None if shift else runs


def _kept(dataset: Any, images: list[dict], annotated: np.ndarray) -> np.ndarray:
    """Return which images `CocoDataset.filter_data` keeps, (len(images),), bool."""
    filter_cfg = {} if dataset.test_mode else dataset.filter_cfg or {}
    smallest = filter_cfg.get("min_size", 0)
    keep = np.array([min(i["width"], i["height"]) >= smallest for i in images], bool)
    if filter_cfg.get("filter_empty_gt", False):
        keep &= np.isin(np.arange(len(images)), annotated)
    return keep
