"""Checks of the datasets that a config names: what would stop a training or spoil it unnoticed.

A training on damaged data fails late, or not at all: MMDetection leaves out objects whose category
is in no class, OpenCV fills the missing part of a truncated image with grey. Here every dataset
of a config is read once beforehand, and all that is wrong is collected in a `Report`, each problem
with its file and its remedy.

Three kinds of datasets are known: COCO's instances format (MMDetection's `CocoDataset`), label
maps (MMSegmentation's `BaseSegDataset` and the classes built on it), and any other that lists
images, such as MMPretrain's folders, of which the images alone are checked. Each dataset is
built by its own class, without its pipeline, so that it says itself where its files lie and which
classes it has.

Format of COCO: https://cocodataset.org/#format-data.
"""

import difflib
import json
import os
import stat
import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from threading import Lock
from typing import IO, Any, NamedTuple

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image, ImageFile, UnidentifiedImageError
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ...checkpoint.reader import is_url
from ...utils.config import iter_config_dicts, iter_leaf_datasets

# Where the rotation of an image is noted, and the values that exchange its sides.
EXIF_ORIENTATION = 0x0112


SIDEWAYS = (5, 6, 7, 8)


# The last bytes of a complete file. One that ends otherwise may still be complete: it is decoded.
END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


# What OpenCV reads, too; for a few of its other formats PIL starts programs, such as Ghostscript.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "SUN", "TIFF", "WEBP")


# Images with more pixels than this are decoded one at a time: PIL refuses those above 1.8e8, and
# a small file may be one of that size.
LARGE = 25_000_000


_large = Lock()


# Parts of a model whose num_classes is not the dataset's: proposals have one class, and stuff has
# its own.
OTHER_CLASSES = ("backbone", "rpn_head", "semantic_head")


# How many examples of a problem a sentence has.
SHOWN = 3


LAYOUT = "see docs/custom_data.md for the layout"


Pixels = tuple[int, int]  # width, height


class Problem(NamedTuple):
    """What is wrong somewhere and what to do; an error stops a training, a warning does not."""

    what: str
    remedy: str
    is_error: bool = True


NOT_AN_OBJECT = Problem("entries that are no objects", f"write them anew; {LAYOUT}")


NO_IMAGE_ID = Problem("images without an id", "give each one an integer of its own")


NO_FILE_NAME = Problem("images without a file_name", "add the name of each one's file")


NO_SIZE = Problem("images without width and height", "add both, in pixels")


NO_CATEGORY_ID = Problem("categories without an id", "give each one an integer of its own")


NO_NAME = Problem("categories without a name", "add each one's name")


NO_ID = Problem("annotations without an id", "give each one an integer of its own")


NO_IMAGE = Problem("annotations without an image_id", "add the id of each one's image")


NO_CATEGORY = Problem("annotations without a category_id", "add the id of each one's category")


NO_BBOX = Problem(
    "annotations without a bbox of four numbers", "give each one [x, y, width, height] in pixels"
)


NO_AREA = Problem("annotations without an area", "add it, in pixels")


NO_ISCROWD = Problem(
    "annotations without iscrowd, which the evaluation needs", 'add "iscrowd": 0 to each one'
)


NO_SEGMENTATION = Problem(
    "annotations without a segmentation, while masks are to be learned",
    "add each one's outline, or train a detector without masks",
)


NO_POLYGONS = Problem(
    "annotations whose segmentation is neither a list of polygons nor RLE",
    "write [[x1, y1, x2, y2, ...], ...]",
)


NO_RLE = Problem(
    "annotations whose RLE has no counts or is of another size than its image",
    'write {"size": [height, width], "counts": ...}',
)


WRONG_RLE = Problem(
    "annotations whose RLE is not of as many pixels as its image",
    "write its counts anew; what is decoded would be whatever was in memory",
)


FEW_POINTS = Problem(
    "annotations whose polygons have less than three points", "they are ignored", is_error=False
)


SHORT_POLYGON = Problem(
    "annotations whose first polygon has less than three points, which the evaluation can't read",
    "write three points or more, or remove it",
)


NO_EXTENT = Problem(
    "annotations smaller than a pixel or wholly outside of their image",
    "they are left out",
    is_error=False,
)


WRONG_IMAGE = Problem(
    "annotations whose image_id is no image's id", "add those images or remove the annotations"
)


WRONG_CATEGORY = Problem(
    "annotations whose category_id is no category's id",
    "correct the ids or add those categories to the file",
)


MISSING_IMAGE = Problem("images that do not exist", "put them there or set data_prefix")


BROKEN_IMAGE = Problem("images that can't be read", "replace these files")


WRONG_SIZE = Problem(
    "images of another size than their annotations say",
    "correct width and height, and the boxes if the images were scaled",
)


THIN_IMAGE = Problem(
    "images of which the pipeline makes a side of one pixel, which can't be flipped, or of none",
    "crop or remove them; a detector leaves them out of training by filter_cfg=dict(min_size=...)",
)


DEEP_IMAGE = Problem("images that OpenCV does not read", "store 8 bits a channel")


SIXTEEN_BITS = Problem(
    "images of 16 bits a channel, of which the upper 8 are used",
    "where their values do not fill the 16, spread them over 8 bits",
    is_error=False,
)


ALPHA = Problem(
    "images with transparency, which is ignored",
    "what is stored under transparent pixels is seen; remove the transparency to choose it",
    is_error=False,
)


MISSING_MAP = Problem(
    "images without label map", "add the label maps, remove the images or set seg_map_suffix"
)


MISSING_IMAGE_OF_MAP = Problem(
    "label maps without image",
    "put the images there, remove the label maps, set img_suffix, which is the same for all "
    "images, or list the images in an ann_file",
)


BROKEN_MAP = Problem("label maps that can't be read", "replace these files")


COLOUR_MAP = Problem(
    "label maps in color", "store the index of each pixel's class in a single channel"
)


THIN_MAP = Problem(
    "label maps with a side of one pixel, which MMSegmentation does not read",
    "enlarge or remove them and their images",
)


WRONG_MAP_SIZE = Problem(
    "label maps of another size than their images", "make both of the same size"
)


@dataclass
class Report:
    """What was found in a dataset.

    name: its loader and place in the config. images, classes: the numbers. labelled: how many
    objects or pixels, that is the unit, are of a class and will be used.
    """

    name: str
    images: int = 0
    classes: int = 0
    labelled: int = 0
    unit: str = ""
    _found: dict[tuple[str, Problem], list[str]] = field(default_factory=dict)

    def add(self, where: object, problem: Problem, example: str = "") -> None:
        """Note a problem with what is at `where`, a file or a key; the example is a part of it."""
        examples = self._found.setdefault((str(where), problem), [])
        if example:
            examples.append(example)

    def _sentences(self, is_error: bool) -> list[str]:
        sentences = [
            f"{where}: {problem.what}{_listed(examples)}; {problem.remedy}"
            for (where, problem), examples in self._found.items()
            if problem.is_error == is_error
        ]
        # names come from files of any origin: each sentence is to be one line that can be printed
        return [
            "".join(c if c.isprintable() else repr(c)[1:-1] for c in sentence)
            for sentence in sentences
        ]

    @property
    def errors(self) -> list[str]:
        """A sentence for each error, the first ones of each named."""
        return self._sentences(True)

    @property
    def warnings(self) -> list[str]:
        """A sentence for each warning."""
        return self._sentences(False)


def _listed(examples: Sequence[str], shown: int = SHOWN) -> str:
    if not examples:
        return ""
    more = f" and {len(examples) - shown} more" if len(examples) > shown else ""
    return f": {', '.join(examples[:shown])}{more}"


def image_size(path: str, decode: bool = False) -> Pixels:
    """The size of an image as it is loaded, its EXIF rotation applied.

    Args:
        path: a file.
        decode: decode the image, which finds most damage inside. Otherwise its header and the
            mark at its end are read, which takes some 0.1 ms and finds what is not an image or
            is cut off.

    Raises:
        FileNotFoundError: no such file.
        Exception: no image or a damaged one; PIL's readers raise errors of many classes.
    """
    return _read_header(path, decode)[0]


def _read_header(path: str, decode: bool) -> tuple[Pixels, list[Problem]]:
    """An image's size, see `image_size`, and what OpenCV makes of its pixels unasked."""
    with open_image(path) as (file, image):
        # a look at the info first: asking for EXIF makes PIL decode some formats
        sideways = "exif" in image.info and image.getexif().get(EXIF_ORIENTATION) in SIDEWAYS
        size = image.size[::-1] if sideways else image.size
        # PIL's mode of a color image is RGB whatever its depth; the tile says what is stored
        stored = str(image.tile[0][3]) if image.tile else ""
        findings = {
            DEEP_IMAGE: image.format == "TIFF" and image.mode in ("I", "F"),
            SIXTEEN_BITS: ";16" in stored,
            ALPHA: image.has_transparency_data,
        }
        mark = END_MARKS.get(image.format or "")
        if mark is not None and not decode:
            file.seek(-len(mark), os.SEEK_END)
            decode = file.read() != mark
            file.seek(0)
        if decode or mark is None:
            load(image)
    return size, [problem for problem, found in findings.items() if found]


@contextmanager
def open_image(path: str) -> Iterator[tuple[IO[bytes], ImageFile.ImageFile]]:
    """An image of one of `FORMATS`, and its file.

    Raises:
        OSError: no file, such as a pipe, which is waited for without end.
        Exception: see `image_size`.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("not a file")
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    with open(path, "rb") as file, Image.open(file, formats=formats) as image:
        yield file, image


def load(image: Image.Image) -> None:
    """Decode an image, a large one by itself."""
    with _large if image.width * image.height > LARGE else nullcontext():
        image.load()


def _reason(error: Exception) -> str:
    """Why a file can't be read, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return (str(error) or type(error).__name__).splitlines()[0]


class _File(NamedTuple):
    """An image to be checked: its size as annotated, its label map, and whether the dataset
    leaves it out, as too small or without objects."""

    path: str
    size: Pixels | None = None
    label_map: str | None = None
    left_out: bool = False


Findings = list[tuple[str, Problem, str]]  # where, what, example


class _Pipeline(NamedTuple):
    """What a pipeline asks of an image's sides: the least of them after the resizing, and the
    sizes that an image is fitted into, its proportions kept."""

    least: int
    scales: list[Pixels]

    @classmethod
    def of(cls, steps: list[dict]) -> "_Pipeline":
        """Read from the steps of a config."""
        # an image one pixel wide is flipped to an array that PyTorch refuses
        least = 2 if any("Flip" in str(step.get("type")) for step in steps) else 1
        scales = []
        for step in steps:
            ratio = min(step.get("ratio_range") or [1])
            for scale in [step.get("scale"), *(step.get("scales") or [])]:
                if step.get("keep_ratio") and isinstance(scale, list | tuple):
                    scales.append((int(max(scale) * ratio), int(min(scale) * ratio)))
        return cls(least, scales)

    def suits(self, size: Pixels) -> bool:
        """Whether enough is left of an image of this size."""
        long, short = max(size), min(size)
        # as mmcv.imrescale rounds
        return all(
            int(short * min(scale[0] / long, scale[1] / short) + 0.5) >= self.least
            for scale in self.scales or [(long, short)]
        )


def _check_file(
    file: _File, decode: bool, pipeline: _Pipeline
) -> tuple[Findings, np.ndarray | None]:
    """Read an image and its label map; the latter's number of pixels with each value."""
    folder, name = os.path.split(file.path)
    findings: Findings = []
    size: Pixels | None = None
    try:
        size, problems = _read_header(file.path, decode)
        findings += [(folder, problem, name) for problem in problems]
    except FileNotFoundError:
        findings.append((folder, MISSING_IMAGE, name))
    except Exception as error:
        findings.append((folder, BROKEN_IMAGE, f"{name} ({_reason(error)})"))
    if size and file.size and size != file.size:
        text = "{} ({}x{}, annotated {}x{})".format(name, *size, *file.size)
        findings.append((folder, WRONG_SIZE, text))
    if size and not file.left_out and not pipeline.suits(size):
        findings.append((folder, THIN_IMAGE, "{} ({}x{})".format(name, *size)))
    if file.label_map is None:
        return findings, None

    map_folder, map_name = os.path.split(file.label_map)
    try:
        with open_image(file.label_map) as (_, image):
            load(image)
            # as MMSegmentation reads it: indices of a palette stay indices
            labels = np.array(image).squeeze()
    except FileNotFoundError:
        return [*findings, (map_folder, MISSING_MAP, f"{name} (no {map_name})")], None
    except Exception as error:
        return [*findings, (map_folder, BROKEN_MAP, f"{map_name} ({_reason(error)})")], None
    if labels.ndim != 2:
        problem = COLOUR_MAP if labels.ndim > 2 else THIN_MAP
        return [*findings, (map_folder, problem, map_name)], None
    if size and size != labels.shape[::-1]:
        text = "{} ({}x{}, image {}x{})".format(map_name, *labels.shape[::-1], *size)
        findings.append((map_folder, WRONG_MAP_SIZE, text))
    if labels.dtype != np.uint8:
        # 256 stands for everything that a byte can't hold
        labels = np.where((labels < 0) | (labels > 255), 256, labels).astype(np.uint16)
    return findings, np.bincount(labels.ravel(), minlength=257)


def _is_number(value: Any) -> bool:
    # type() leaves out bool, the bounds leave out NaN and what NumPy can't hold
    return type(value) in (int, float) and -1e12 < value < 1e12


def _read_coco(path: str, report: Report, has_labels: bool) -> dict[str, list] | None:
    """The lists of an annotation file, or None where it has not got them."""
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        what = f"is not JSON ({_reason(error)})"
        report.add(path, Problem(what, "write or download it anew"))
        return None
    wanted = ["images", "categories"] + (["annotations"] if has_labels else [])
    missing = [
        key
        for key in wanted
        if not isinstance(content, dict) or not isinstance(content.get(key), list)
    ]
    if missing:
        held = ", ".join(map(repr, content)) if isinstance(content, dict) else "none, it is a list"
        what = f"no list of {' and of '.join(missing)} (its keys: {held or 'none'})"
        report.add(path, Problem(what, f"COCO's instances format is needed, {LAYOUT}"))
        return None
    return {key: content.get(key, []) for key in ("images", "categories", "annotations")}


def _image_flaw(image: Any) -> Problem | None:
    if not isinstance(image, dict):
        return NOT_AN_OBJECT
    if type(image.get("id")) not in (int, str):
        return NO_IMAGE_ID
    if not isinstance(image.get("file_name"), str):
        return NO_FILE_NAME
    sides = image.get("width"), image.get("height")
    return None if all(type(side) is int and 0 < side < 1e6 for side in sides) else NO_SIZE


def _category_flaw(category: Any) -> Problem | None:
    if not isinstance(category, dict):
        return NOT_AN_OBJECT
    if type(category.get("id")) is not int:
        return NO_CATEGORY_ID
    return None if isinstance(category.get("name"), str) else NO_NAME


def _annotation_flaw(annotation: Any, is_evaluated: bool) -> Problem | None:
    if not isinstance(annotation, dict):
        return NOT_AN_OBJECT
    if type(annotation.get("id")) is not int:
        return NO_ID
    if type(annotation.get("image_id")) not in (int, str):
        return NO_IMAGE
    if type(annotation.get("category_id")) is not int:
        return NO_CATEGORY
    box = annotation.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        return NO_BBOX
    if not _is_number(annotation.get("area")):
        return NO_AREA
    if is_evaluated and annotation.get("iscrowd") not in (0, 1):
        return NO_ISCROWD
    return None


def _segmentation_flaw(segmentation: Any, size: Pixels, is_evaluated: bool) -> Problem | None:
    if not segmentation:
        return NO_SEGMENTATION
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        if not isinstance(counts, list | str) or segmentation.get("size") != [size[1], size[0]]:
            return NO_RLE
        runs = _runs(counts) if isinstance(counts, str) else counts
        sound = all(type(run) is int and run >= 0 for run in runs)
        return None if sound and sum(runs) == size[0] * size[1] else WRONG_RLE
    if not isinstance(segmentation, list):
        return NO_POLYGONS
    for polygon in segmentation:
        if not isinstance(polygon, list) or not {*map(type, polygon)} <= {int, float}:
            return NO_POLYGONS
    if is_evaluated and len(segmentation[0]) < 6:
        return SHORT_POLYGON
    if not any(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in segmentation):
        return FEW_POINTS
    return None


def _runs(counts: str) -> list[int]:
    """The runs of a compressed RLE, as `rleFrString` of COCO's maskApi.c reads them.

    Five bits a character from 48 on, the lowest first; the sixth says that more follow. From the
    fourth run on what is written is the difference from the one before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def _sound(
    entries: list, key: str, flaw: Callable[[Any], Problem | None], path: str, report: Report
) -> list[dict]:
    """Those entries of an annotation file that have no flaw and an id of their own."""
    sound, ids = [], set()
    own = Problem(f"ids that several of its {key} have", "give each one its own")
    for index, entry in enumerate(entries):
        problem = flaw(entry)
        if problem is None and entry["id"] in ids:
            problem = own
        if problem is None:
            ids.add(entry["id"])
            sound.append(entry)
        else:
            report.add(path, problem, f"{key}[{index}]" + _with_id(entry))
    return sound


def _with_id(entry: Any) -> str:
    known = isinstance(entry, dict) and type(entry.get("id")) in (int, str)
    return f" (id {entry['id']})" if known else ""


def _check_categories(
    path: str, categories: list[dict], classes: Sequence[str], where: str, report: Report
) -> None:
    """Compare a config's classes with the categories of an annotation file, by name."""
    names = [category["name"] for category in categories]
    counts = Counter(names)
    for name, count in counts.items():
        if count > 1:
            problem = Problem("categories of the same name", "join them or give each its own")
            report.add(path, problem, repr(name))
    if len(set(classes)) < len(classes):
        report.add(where, Problem("classes of the same name", _set_classes(where, names)))
        return
    missing = [name for name in classes if name not in counts]
    if missing:
        what = f"classes that are no category of {path}, which has {_names(names)}"
        problem = Problem(what, _set_classes(where, names))
        for place, name in enumerate(missing):
            # of many not all are shown
            near = difflib.get_close_matches(name, names, n=1) if place < SHOWN else []
            hint = f" (nearest: {near[0]!r})" if near else ""
            report.add(where, problem, f"{name!r}{hint}")
        return
    in_file = [name for name in counts if name in set(classes)]
    if in_file != list(classes):
        # MMDetection numbers the labels as the file lists them
        what = f"classes in another order than the categories of {path}, which numbers them"
        report.add(where, Problem(what, _set_classes(where, in_file)))


def _set_classes(where: str, names: Sequence[str]) -> str:
    """What is to be written into a config; of many names the beginning."""
    classes = repr(tuple(names)) if len(names) <= 10 else f"({_names(names[:3])}, ...)"
    return f"set {where}.metainfo=dict(classes={classes})"


def _names(names: Sequence[str]) -> str:
    return _listed([repr(name) for name in names], 10).removeprefix(": ") or "none"


def _check_coco(
    dataset: Any, where: str, report: Report, masks: bool, evaluators: dict[str, dict]
) -> list[_File]:
    """Check an annotation file; returns its images. masks: whether they are wanted."""
    path = dataset.ann_file
    # one that is only predicted for, such as COCO's test images
    has_labels = not any(evaluator.get("format_only") for evaluator in evaluators.values())
    content = _read_coco(path, report, has_labels)
    if content is None:
        return []
    classes = dataset.metainfo["classes"]
    categories = _sound(content["categories"], "categories", _category_flaw, path, report)
    images = _sound(content["images"], "images", _image_flaw, path, report)
    annotations = _sound(
        content["annotations"],
        "annotations",
        lambda annotation: _annotation_flaw(annotation, bool(evaluators)),
        path,
        report,
    )
    _check_categories(path, categories, classes, where, report)
    if not images:
        report.add(path, Problem("no images", "add them to its list of images"))
    kept = np.ones(len(images), bool)
    if has_labels:
        kept = _check_objects(
            dataset, where, report, images, categories, annotations, masks, bool(evaluators)
        )
    prefix = dataset.data_prefix.get("img") or ""
    return [
        _File(
            os.path.join(prefix, image["file_name"]),
            (image["width"], image["height"]),
            left_out=not is_kept,
        )
        for image, is_kept in zip(images, kept, strict=True)
    ]


def _check_objects(
    dataset: Any,
    where: str,
    report: Report,
    images: list[dict],
    categories: list[dict],
    annotations: list[dict],
    masks: bool,
    is_evaluated: bool,
) -> np.ndarray:
    """Check annotations against images and categories; returns which images will be used."""
    path, classes = dataset.ann_file, dataset.metainfo["classes"]

    # From here on in columns: COCO has 860,000 annotations.
    places = {image["id"]: place for place, image in enumerate(images)}
    labels = {
        category["id"]: classes.index(category["name"]) if category["name"] in classes else -1
        for category in categories
    }
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
    for wrong, problem, key in (
        (image < 0, WRONG_IMAGE, "image_id"),
        (label == -2, WRONG_CATEGORY, "category_id"),
        ((image >= 0) & ~visible, NO_EXTENT, "bbox"),
    ):
        for i in np.flatnonzero(wrong):
            annotation = annotations[i]
            report.add(path, problem, f"id {annotation['id']} ({key} {annotation[key]})")
    if masks:
        # the evaluation reads the masks of what is left out in training, too
        for i in np.flatnonzero((image >= 0) & (label >= 0) if is_evaluated else used):
            size = images[image[i]]["width"], images[image[i]]["height"]
            flaw = _segmentation_flaw(annotations[i].get("segmentation"), size, is_evaluated)
            if flaw:
                report.add(path, flaw, f"id {annotations[i]['id']}")

    for category in categories:
        if category["name"] not in classes:
            what = "categories that are in no class"
            problem = Problem(what, "their annotations are left out", is_error=False)
            report.add(path, problem, repr(category["name"]))
    counts = np.bincount(label[used], minlength=len(classes))
    unknown = set(classes) - {category["name"] for category in categories}
    _check_counts(path, classes, counts, report, unknown)
    report.labelled, report.unit = int(used.sum()), "objects"
    kept = _kept(dataset, images, image[(image >= 0) & (label >= 0)])
    if images and not kept.any():
        what = "no images are left by the filter_cfg"
        report.add(path, Problem(what, f"correct the errors above or set {where}.filter_cfg=None"))
    return kept


def _kept(dataset: Any, images: list[dict], annotated: np.ndarray) -> np.ndarray:
    """Which images `CocoDataset.filter_data` keeps, (len(images),), bool."""
    filter_cfg = {} if dataset.test_mode else dataset.filter_cfg or {}
    keep = np.ones(len(images), bool)
    if filter_cfg.get("filter_empty_gt", False):
        keep &= np.isin(np.arange(len(images)), annotated)
    smallest = filter_cfg.get("min_size", 0)
    keep &= np.array([min(image["width"], image["height"]) >= smallest for image in images], bool)
    return keep


def _check_counts(
    where: str,
    classes: Sequence[str],
    counts: np.ndarray,
    report: Report,
    unknown: Collection[str] = (),
) -> None:
    """Warn of classes that never occur; a dataset in which none does is of no use.

    unknown: classes of which more has been said.
    """
    if not counts.sum():
        report.add(where, Problem("nothing of any class", "correct classes and annotations"))
        return
    for name, count in zip(classes, counts, strict=True):
        if not count and name not in unknown:
            problem = Problem("classes that never occur", "add examples", is_error=False)
            report.add(where, problem, repr(name))


def _label_table(dataset: Any) -> np.ndarray:
    """The class that each value of a label map becomes, -1 the ignored ones, -2 none, (257,)."""
    table: np.ndarray = np.arange(257)
    if dataset.reduce_zero_label:
        table = np.where((table == 0) | (table == 255), 255, table - 1)
        table[256] = 256
    old = table.copy()
    for before, after in (dataset.label_map or {}).items():
        table[old == before] = after
    classes = len(dataset.metainfo["classes"])
    return np.where(table == dataset.ignore_index, -1, np.where(table < classes, table, -2))


class _MapCounter:
    """Adds up the values of a dataset's label maps and reports those that are no class."""

    def __init__(self, dataset: Any, where: str, steps: list[dict], report: Report) -> None:
        self.report = report
        for step in steps:
            asked = step.get("reduce_zero_label")
            if asked is not None and asked != dataset.reduce_zero_label:
                what = f"is {dataset.reduce_zero_label}, while a step of its pipeline has {asked}"
                problem = Problem(what, "remove it from the pipeline, which follows the dataset")
                report.add(f"{where}.reduce_zero_label", problem)
        self.classes = dataset.metainfo["classes"]
        self.folder = dataset.data_prefix.get("seg_map_path") or where
        self.table = _label_table(dataset)
        self.total = np.zeros(257, np.int64)
        allowed = np.flatnonzero(self.table >= 0)
        self.problem = Problem(
            f"label maps with values that are no class (its {len(self.classes)} classes are the "
            f"values {allowed.min()} to {allowed.max()}, {dataset.ignore_index} is ignored)"
            if len(allowed)
            else "label maps of no class",
            "correct the label maps or the classes; where 0 is unlabelled and classes count "
            f"from 1, set {where}.reduce_zero_label=True",
        )

    def add(self, file: _File, counts: np.ndarray) -> None:
        """Count the pixels of a label map, (257,)."""
        self.total += counts
        wrong = [int(value) for value in np.flatnonzero((self.table == -2) & (counts > 0))]
        if wrong:
            values = [
                f"{'above 255' if value == 256 else value} in {counts[value]} pixels"
                for value in wrong
            ]
            name = os.path.basename(file.label_map or "")
            text = f"{name} ({_listed(values).removeprefix(': ')})"
            self.report.add(self.folder, self.problem, text)

    def finish(self) -> None:
        """Report the number of pixels, and the classes without."""
        known = self.table >= 0
        counts = np.bincount(
            self.table[known], weights=self.total[known], minlength=len(self.classes)
        )
        self.report.labelled, self.report.unit = int(counts.sum()), "pixels"
        if self.report.images:
            _check_counts(self.folder, self.classes, counts, self.report)


def _build(node: dict, where: str, scope: str | None, report: Report) -> Any:
    """A dataset of a config without its pipeline and content; None where it can't be built."""
    metainfo = node.get("metainfo")
    classes = metainfo.get("classes") if isinstance(metainfo, dict) else None
    if isinstance(classes, str) and not Path(classes).is_file():
        what = f"the classes are one text, {classes!r}, and not several"
        remedy = f"set {where}.metainfo=dict(classes=({classes!r},)), with the comma"
        report.add(where, Problem(what, remedy))
        return None
    try:
        dataset = DATASETS.build(dict(_scope_=scope) | node | dict(lazy_init=True, pipeline=[]))
    except Exception as error:  # a config names arbitrary classes, which fail in their own ways
        # MMSegmentation's error lists all classes of both
        reason = textwrap.shorten(_reason(error), 200, placeholder=" ...")
        own = "METAINFO" in str(error)
        remedy = (
            f"set {where}.type='BaseSegDataset' for classes of your own" if own else "correct it"
        )
        report.add(where, Problem(f"can't be built ({reason})", remedy))
        return None
    classes = dataset.metainfo.get("classes") or ()
    if not all(isinstance(name, str) for name in classes):
        report.add(where, Problem("classes that are no text", "write their names"))
        return None
    return dataset


def _reads_coco(dataset: Any) -> bool:
    # by name, since mmdet need not be installed; a class for another format overrides one
    return all(
        getattr(getattr(dataset, method, None), "__qualname__", "") == f"CocoDataset.{method}"
        for method in ("load_data_list", "parse_data_info")
    )


def _check_heads(model: dict, where: str, classes: int, report: Report) -> None:
    """Compare the number of classes of every head, whatever its name, with the dataset's."""
    what = f"heads with another number of classes than the {classes} of {where}"
    for path, node in iter_config_dicts(model, "model"):
        keys = [
            key
            for key in ("num_classes", "num_things_classes", "num_stuff_classes")
            if type(node.get(key)) is int
        ]
        is_other = set(path.split(".")) & set(OTHER_CLASSES)
        if keys and not is_other and sum(node[key] for key in keys) != classes:
            held = ", ".join(f"{path}.{key} is {node[key]}" for key in keys)
            report.add("model", Problem(what, f"set them to {classes}"), held)
        weights = node.get("class_weight")
        # some losses have a weight for the background, too
        if isinstance(weights, list | tuple) and len(weights) - classes not in (0, 1):
            problem = Problem(
                f"weights of another number of classes than the {classes} of {where}",
                f"give {classes}, or {classes + 1} with one for the background",
            )
            report.add("model", problem, f"{path}.class_weight has {len(weights)}")


def _check_evaluators(
    evaluators: dict[str, dict], dataset: Any, where: str, report: Report
) -> None:
    """An evaluator that compares with another file than the dataset's fails after an epoch."""
    for path, evaluator in evaluators.items():
        given = evaluator.get("ann_file")
        if isinstance(given, str) and os.path.realpath(given) != os.path.realpath(dataset.ann_file):
            what = f"is {given}, while {where} reads {dataset.ann_file}"
            report.add(f"{path}.ann_file", Problem(what, "set it to the same file"))


def _list_files(dataset: Any, where: str, report: Report) -> list[_File]:
    """The images of a dataset of any class, with their label maps."""
    try:
        entries = dataset.load_data_list()
    except Exception as error:  # each class reads files of its own kinds
        report.add(where, Problem(f"can't be read ({_reason(error)})", "correct its files"))
        return []
    if not entries:
        folder = dataset.data_prefix.get("img_path") or dataset.data_root or where
        suffix = getattr(dataset, "img_suffix", "")
        held = sorted({path.suffix for path in Path(folder).rglob("*") if path.is_file()})
        what = f"no images that end in {suffix!r} (there are: {', '.join(held) or 'no files'})"
        report.add(folder, Problem(what, f"set {where}.img_suffix or data_prefix"))
    is_labelled = hasattr(dataset, "reduce_zero_label")
    maps = dataset.data_prefix.get("seg_map_path")
    # those that an ann_file lists are meant to be all
    if entries and is_labelled and maps and not dataset.ann_file:
        used = {os.path.normpath(entry.get("seg_map_path", "")) for entry in entries}
        for path in sorted(Path(maps).rglob(f"*{dataset.seg_map_suffix}")):
            if os.path.normpath(path) not in used:
                report.add(maps, MISSING_IMAGE_OF_MAP, path.name)
    return [
        _File(entry["img_path"], label_map=entry.get("seg_map_path") if is_labelled else None)
        for entry in entries
        if isinstance(entry.get("img_path"), str)
    ]


class _Check:
    """The checks of one dataset: of its lists when it is made, then of its files one by one."""

    def __init__(self, cfg: Config, where: str, node: dict, evaluators: dict[str, dict]) -> None:
        self.node, self.evaluators = node, evaluators
        self.report = report = Report(_name(where))
        self.files: list[_File] = []
        self.maps: _MapCounter | None = None
        steps = [step for _, step in iter_config_dicts(node.get("pipeline"))]
        self.pipeline = _Pipeline.of(steps)
        backend = (node.get("backend_args") or {}).get("backend", "local")
        places = node.get("data_root"), node.get("ann_file")
        if backend != "local" or any(is_url(str(place)) for place in places):
            problem = Problem("not on this machine", "it is not checked", is_error=False)
            report.add(where, problem)
            return
        dataset = _build(node, where, cfg.get("default_scope"), report)
        if dataset is None:
            return
        if _reads_coco(dataset):
            _check_evaluators(evaluators, dataset, where, report)
            masks = any(step.get("with_mask") for step in steps)
            self.files = _check_coco(dataset, where, report, masks, evaluators)
        else:
            self.files = _list_files(dataset, where, report)
        report.images = len(self.files)
        # after the files: those of a folder a class name their classes themselves
        classes = dataset.metainfo.get("classes")
        if not classes and hasattr(dataset, "reduce_zero_label"):
            problem = Problem("no classes", f"set {where}.metainfo=dict(classes=(...))")
            report.add(where, problem)
        elif classes:
            report.classes = len(classes)
            _check_heads(cfg.get("model") or {}, where, len(classes), report)
            if hasattr(dataset, "reduce_zero_label"):
                self.maps = _MapCounter(dataset, where, steps, report)

    def add(self, file: _File, findings: Findings, counts: np.ndarray | None) -> None:
        """Take in what was found in a file."""
        for finding in findings:
            self.report.add(*finding)
        if self.maps and counts is not None:
            self.maps.add(file, counts)

    def finish(self) -> Report:
        """The report, after all files."""
        if self.maps and self.files:
            self.maps.finish()
        return self.report


def _name(where: str) -> str:
    """What a dataset is called in a table: train, or train.datasets.1 of several."""
    return where.replace("_dataloader.dataset", "")


def check(
    cfg: Config, loaders: Sequence[str], decode: bool = False, console: Console | None = None
) -> list[Report]:
    """Check the datasets of a config, whose files and folders must exist.

    Args:
        cfg: a config.
        loaders: which of train_dataloader, val_dataloader and test_dataloader; a dataset that
            several of them use alike is checked once.
        decode: decode every image, see `image_size`; label maps always are.
        console: where to show the progress; nowhere if None.

    Returns:
        A report a dataset.
    """
    checks: list[_Check] = []
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=console is None,
    )
    with progress, ThreadPool() as pool:
        for loader in loaders:
            key = loader.replace("_dataloader", "_evaluator")
            evaluators = dict(iter_config_dicts(cfg.get(key), key))
            dataset = (cfg.get(loader) or {}).get("dataset")
            for where, node in iter_leaf_datasets(dataset, f"{loader}.dataset"):
                same = [
                    check
                    for check in checks
                    if check.node == node and [*check.evaluators.values()] == [*evaluators.values()]
                ]
                if same:
                    same[0].report.name += f", {_name(where)}"
                else:
                    checks.append(_Check(cfg, where, node, evaluators))
        for check in checks:
            task = progress.add_task(check.report.name, total=len(check.files))
            check_file = partial(_check_file, decode=decode, pipeline=check.pipeline)
            read = pool.imap(check_file, check.files, chunksize=32)
            for file, found in zip(check.files, read, strict=True):
                check.add(file, *found)
                progress.advance(task)
    return [check.finish() for check in checks]


def summary(reports: Sequence[Report]) -> Table:
    """A row a dataset: what it holds and how much is wrong with it."""
    table = Table(box=box.SIMPLE)
    table.add_column("dataset")
    for column in ("images", "labelled", "classes", "errors", "warnings"):
        table.add_column(column, justify="right")
    for report in reports:
        table.add_row(
            report.name,
            f"{report.images:,}",
            f"{report.labelled:,} {report.unit}" if report.unit else "",
            f"{report.classes:,}",
            f"{len(report.errors):,}",
            f"{len(report.warnings):,}",
        )
    return table
