"""Damaged datasets: each damage is found, named and given a remedy; sound ones pass."""

import json
import os
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image

from fcvit_mm.datasets import checks
from fcvit_mm.datasets.checks import Report, check
from fcvit_mm.datasets.checks.images import read_header
from fcvit_mm.engine.failures import naming_sample
from fcvit_mm.engine.preflight import check_files
from fcvit_mm.utils.config import iter_leaf_datasets, load_config
from fcvit_mm.utils.errors import ConfigError
from helpers import ROOT, photographs
from helpers.images import read
from helpers.tools import TASKS, load_tool

TRAIN = "data/shapes/annotations/instances_train.json"
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def reports(task: str = "detection", **options: Any) -> list[Report]:
    options = {key.replace("__", "."): value for key, value in options.items()}
    return check(load_config(str(TASKS[task]), options), LOADERS)


def only_error(found: list[Report]) -> str:
    (error,) = [error for report in found for error in report.errors]
    assert "\n" not in error
    return error


@pytest.mark.official
@pytest.mark.parametrize("task", TASKS)
def test_sound_data_pass(data, task):
    train, val = reports(task)
    assert (train.errors, val.errors) == ([], [])
    assert (train.name, val.name) == ("train", "val, test")
    assert (train.images, val.images) == (8, 4)
    if task == "detection":
        annotations = json.loads((data / "annotations/instances_train.json").read_text())
        assert train.labeled == len(annotations["annotations"]) and train.classes == 4
    else:
        assert train.labeled == 8 * 64 * 64 and train.classes == 5


# ------------------------------------------------------------------------- annotation files


def test_categories_out_of_the_order_of_their_ids_are_warned_of(data):
    """MMDetection's table of classes would have the names of others."""
    content = json.loads(Path(TRAIN).read_text())
    content["categories"].reverse()
    Path(TRAIN).write_text(json.dumps(content))
    classes = [category["name"] for category in content["categories"]]
    train, val = reports(train_dataloader__dataset__metainfo__classes=classes)
    assert (train.errors, val.warnings) == ([], []) and len(train.warnings) == 1
    assert "not in the order of their ids; sort them" in train.warnings[0]


def rename(content: dict) -> None:
    content["categories"][1]["name"] = "Square"


def rename_all(content: dict) -> None:
    for category, name in zip(content["categories"], ("bolt", "nut", "pin", "cap"), strict=True):
        category["name"] = name


def put(key: str, value: Any) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        content["annotations"][3][key] = value

    return change


def drop(key: str, entries: str = "annotations") -> Callable[[dict], None]:
    def change(content: dict) -> None:
        del content[entries][2][key]

    return change


DAMAGES: dict[str, tuple[Callable[[dict], Any], list[str]]] = {
    "another name": (
        rename,
        ["train_dataloader.dataset: classes", TRAIN, "'square' (nearest: 'Square')", "metainfo"],
    ),
    "order": (
        lambda content: content["categories"].reverse(),
        ["another order", TRAIN, "classes=('star', 'triangle', 'square', 'circle')"],
    ),
    "same name": (
        lambda content: content["categories"].append({"id": 9, "name": "star"}),
        ["categories of the same name: 'star'"],
    ),
    "category id": (put("category_id", 77), ["id 4 (category_id 77)", "correct the ids"]),
    "unknown image": (put("image_id", 1234), ["id 4 (image_id 1234)"]),
    "annotation id": (put("id", 1), ["ids that several of its annotations have", "[3] (id 1)"]),
    "image id": (
        lambda content: content["images"].append(content["images"][0]),
        ["ids that several of its images have: images[8] (id 1)"],
    ),
    "no list": (
        lambda content: content.pop("categories"),
        ["no list of categories", "'images', 'annotations'", "docs/custom_data.md"],
    ),
    "no bbox": (drop("bbox"), ["without bbox", "annotations[2] (id 3)", "custom_data.md"]),
    "short bbox": (put("bbox", [1, 2, 3]), ["without bbox, or with one that can't be read"]),
    "infinite bbox": (put("bbox", [1, 2, 3, float("inf")]), ["without bbox"]),
    "no area": (drop("area"), ["without area"]),
    "no mask": (drop("segmentation"), ["without a segmentation", "id 3"]),
    **{
        f"polygon with {name}": (
            put("segmentation", [[1, 2, 30, 4, value, 60]]),
            ["too long or too far outside to be drawn: id 4; correct their coordinates"],
        )
        for name, value in {
            "a far point": 1e11,
            "a point far on the left": -1e11,
            "NaN": float("nan"),
            "infinity": float("inf"),
            "10**400": 10**400,
        }.items()
    },
    "long polygon": (
        put("segmentation", [[1, 1, 500_000, 1, 500_000, 20] * 9]),
        ["too long or too far outside to be drawn: id 4"],
    ),
    "huge id": (put("id", 10**400), ["annotations without id, or with one", "annotations[3]"]),
    "flat polygon": (put("segmentation", [1, 2, 3, 4, 5, 6]), ["neither a list of polygons"]),
    "unfinished RLE": (
        # `0` says that there is no more, `P` that there is: COCO's code then reads on
        put("segmentation", {"size": [64, 64], "counts": "PP4P"}),
        ["does not fill it: id 4"],
    ),
    "endless number in RLE": (
        put("segmentation", {"size": [64, 64], "counts": "o" * 1_000_000}),
        ["RLE", "id 4"],
    ),
    "size of RLE": (put("segmentation", {"size": [9, 9], "counts": [81]}), ["RLE", "id 4"]),
    "no file name": (drop("file_name", "images"), ["without file_name", "images[2] (id 3)"]),
    "no height": (drop("height", "images"), ["without height"]),
    "height": (
        lambda content: content["images"][0].update(height=60),
        ["another size", "00000.png (64x64, annotated 64x60)"],
    ),
    "absent image": (
        lambda content: content["images"][0].update(file_name="absent.png"),
        ["data/shapes/images/train: images that do not exist: absent.png"],
    ),
    "entries": (lambda content: content["annotations"].append(5), ["no objects: annotations["]),
}


@pytest.mark.official
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_of_an_annotation_file_is_named(data, damage):
    change, words = DAMAGES[damage]
    path = data / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    errors = reports()[0].errors
    # an image that is lost takes its annotations with it
    rest = errors[1:]
    assert all("image_id" in error for error in rest)
    assert all(word in errors[0] for word in words), errors[0]


@pytest.mark.official
def test_classes_that_fit_no_category_are_said_and_what_they_would_lead_to(data):
    """MMDetection reads such a file without complaint; nothing is left of it."""
    path = data / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    rename_all(content)
    path.write_text(json.dumps(content))
    errors = reports()[0].errors
    assert "'circle', 'square', 'triangle' and 1 more" in errors[0]
    assert "metainfo=dict(classes=('bolt', 'nut', 'pin', 'cap'))" in errors[0]
    assert any("nothing of any class" in error for error in errors[1:])
    assert any("no images are left by the filter_cfg" in error for error in errors[1:])
    read = mmdet_dataset().load_data_list()
    assert len(read) == 8 and not any(entry["instances"] for entry in read)


def mmdet_dataset(**changes: Any) -> Any:
    node = load_config(str(TASKS["detection"])).train_dataloader.dataset
    return DATASETS.build(dict(node, _scope_="mmdet", pipeline=[], lazy_init=True) | changes)


@pytest.mark.official
@pytest.mark.parametrize("test_mode", [False, True])
@pytest.mark.parametrize(
    "filter_cfg",
    [
        None,
        {},
        dict(filter_empty_gt=True),
        dict(min_size=50),
        dict(filter_empty_gt=True, min_size=50),
    ],
    ids=str,
)
def test_what_is_used_and_left_is_what_mmdetection_uses_and_leaves(data, filter_cfg, test_mode):
    path = data / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    images, annotations = content["images"], content["annotations"]
    images[0]["height"] = images[1]["width"] = 40
    images[2]["height"] = 50
    content["categories"].append({"id": 5, "name": "moon"})
    for annotation in annotations:
        if annotation["image_id"] in (3, 4):
            annotation["category_id"] = 5
    content["annotations"] = [a for a in annotations if a["image_id"] != 5]
    annotations[0]["bbox"][2] = 0.5
    annotations[1]["bbox"][0] = -1000
    annotations[-1]["area"] = 0
    path.write_text(json.dumps(content))
    dataset = mmdet_dataset(filter_cfg=filter_cfg, test_mode=test_mode)
    dataset.data_list = dataset.load_data_list()
    assert reports()[0].labeled == sum(len(entry["instances"]) for entry in dataset.data_list)
    places = {image["id"]: place for place, image in enumerate(images)}
    annotated = [places[a["image_id"]] for a in content["annotations"] if a["category_id"] < 5]
    kept = checks.coco._kept(dataset, images, np.array(annotated))
    assert kept.sum() == len(dataset.filter_data())


def test_heads_of_other_classes_are_named_each(data):
    three: dict[str, Any] = dict(
        model__roi_head__bbox_head__num_classes=3, model__roi_head__mask_head__num_classes=80
    )
    error = reports(**three)[0].errors[0]
    assert "model.roi_head.bbox_head.num_classes is 3" in error
    assert "model.roi_head.mask_head.num_classes is 80" in error and "set them to 4" in error


@pytest.mark.parametrize(
    ("model", "wrong"),
    [
        (dict(bbox_head=dict(num_classes=4)), []),
        (dict(bbox_head=dict(num_classes=80)), ["bbox_head.num_classes is 80"]),
        (
            dict(roi_head=dict(bbox_head=[dict(num_classes=n) for n in (4, 80, 4)])),
            ["roi_head.bbox_head.1.num_classes is 80"],
        ),
        (dict(decode_head=[dict(num_classes=4), dict(num_classes=150)]), ["decode_head.1"]),
        (
            dict(panoptic_head=dict(num_things_classes=80, num_stuff_classes=0)),
            ["panoptic_head.num_things_classes is 80, model.panoptic_head.num_stuff_classes is 0"],
        ),
        (dict(panoptic_head=dict(num_things_classes=3, num_stuff_classes=1)), []),
        (dict(rpn_head=dict(num_classes=1), head=dict(num_classes=4)), []),
        (dict(head=dict(num_classes=4, loss_cls=dict(class_weight=[1.0] * 4 + [0.1]))), []),
        (
            dict(loss_cls=dict(class_weight=[1] * 81)),
            ["loss_cls.class_weight has 81; give 4, or 5"],
        ),
        (dict(module=dict(head=dict(num_classes=1000))), ["module.head.num_classes is 1000"]),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_heads_of_any_method_are_found(model, wrong):
    report = Report("train")
    checks.heads.check_heads(model, "train_dataloader.dataset", 4, report)
    assert len(report.errors) == len(wrong)
    assert all(word in report.errors[0] for word in wrong)


def test_every_config_has_heads_for_the_classes_of_its_dataset():
    """By what is checked in training: it must find the heads of every method, and be content."""
    for path in sorted((ROOT / "configs").glob("[a-z]*/*.py")):
        cfg = load_config(str(path))
        dataset = cfg.train_dataloader.dataset
        for change, is_wrong in (0, False), (1, True):
            for where, node in iter_leaf_datasets(dataset, "train_dataloader.dataset"):
                report = Report(path.name)
                built = checks.build(node, where, cfg.default_scope, report)
                # one folder per class: the classes are named when it is read
                assert report.errors == [], path.name
                classes = len(built.metainfo.get("classes") or range(4))
                checks.heads.check_heads(cfg.model, where, classes + change, report)
                assert bool(report.errors) == is_wrong, path.name


def test_one_class_without_a_comma_is_named(data):
    error = reports(train_dataloader__dataset__metainfo__classes="circle")[0].errors[0]
    assert "one text, 'circle'" in error and "classes=('circle',)" in error


@pytest.mark.parametrize("classes", [("circle", "circle"), (1, 2)], ids=str)
def test_classes_that_can_not_be_told_apart_are_named(data, classes):
    error = reports(train_dataloader__dataset__metainfo__classes=classes)[0].errors[0]
    assert re.match(r"train_dataloader\.dataset: classes (in another|that are no category)", error)


def test_of_many_classes_the_first_are_shown(data):
    classes = tuple(f"class {i}" for i in range(20_000))
    error = reports(train_dataloader__dataset__metainfo__classes=classes)[0].errors[0]
    assert "'class 0', 'class 1', 'class 2' and 19997 more" in error


def test_any_name_of_a_file_can_be_printed(data):
    path = data / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    names = ["a\nb.png", "\udc80.png", "\x00.png"]
    for image, name in zip(content["images"], names, strict=False):
        image["file_name"] = name
    path.write_text(json.dumps(content))
    errors = reports()[0].errors
    assert len(errors) == 2 and all(error.isprintable() for error in errors)
    assert "a\\nb.png" in errors[0] and "\\udc80.png" in errors[0]


@pytest.mark.parametrize(
    "change", [{"data_root": "s3://bucket/"}, {"backend_args.backend": "http"}]
)
def test_data_elsewhere_are_not_checked_and_it_is_said(data, change):
    options = {f"train_dataloader.dataset.{key}": value for key, value in change.items()}
    train = check(load_config(str(TASKS["detection"]), options), LOADERS)[0]
    assert train.errors == [] and "not on this machine" in train.warnings[0]


def test_an_evaluator_of_another_file_is_named(data):
    other = reports(val_evaluator__ann_file=TRAIN)
    error = only_error(other)
    assert error.startswith(f"val_evaluator.ann_file: is {TRAIN}")
    assert "data/shapes/annotations/instances_val.json; set it to the same file" in error


def test_what_mmdetection_leaves_out_is_a_warning(data):
    path = data / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    first, second, third, fourth = content["annotations"][:4]
    first["bbox"][2] = 0
    second["bbox"][:2] = [64, 64]
    third["segmentation"] = [[1, 1, 2, 2]]
    content["categories"].append({"id": 5, "name": "moon"})
    fourth["category_id"] = 5
    content["annotations"][4]["bbox"][2] = 1  # this one is kept
    path.write_text(json.dumps(content))
    train = reports()[0]
    assert train.errors == [] and train.labeled == len(content["annotations"]) - 3
    assert len(train.warnings) == 3
    assert "smaller than a pixel or wholly outside" in train.warnings[0]
    assert "id 1 (bbox [" in train.warnings[0] and "id 2" in train.warnings[0]
    assert "less than three points: id 3" in train.warnings[1]
    assert "categories that are in no class: 'moon'" in train.warnings[2]


def test_a_class_that_never_occurs_is_a_warning(data):
    path = data / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 3]
    path.write_text(json.dumps(content))
    train = reports()[0]
    assert train.errors == [] and "classes that never occur: 'triangle'" in train.warnings[0]


def test_the_evaluation_needs_iscrowd(data):
    path = data / "annotations/instances_val.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        del annotation["iscrowd"]
    path.write_text(json.dumps(content))
    assert "without iscrowd" in reports()[1].errors[0]
    options: dict[str, Any] = dict(val_evaluator=None, test_evaluator=None)
    assert all("iscrowd" not in str(report.errors) for report in reports(**options))


def test_predictions_alone_need_no_annotations(data):
    path = data / "annotations/instances_val.json"
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps(content))
    assert "no list of annotations" in reports()[1].errors[0]
    both: dict[str, Any] = dict(val_evaluator__format_only=True, test_evaluator__format_only=True)
    assert reports(**both)[1].errors == []


@pytest.mark.parametrize("text", ["", "{", "[1]", "5", "{}", "\xff\xfe", "[" * 100_000])
def test_what_is_no_annotation_file_is_named(data, text):
    (data / "annotations/instances_train.json").write_text(text)
    error = reports()[0].errors[0]
    assert error.startswith(f"{TRAIN}: ") and ("not JSON" in error or "no list of" in error)


FORMATS = {
    "voc/coffee.xml": "is Pascal VOC XML; fcvit convert_data makes COCO's JSON of it",
    "voc": "is Pascal VOC XML; fcvit convert_data makes",
    "yolo_boxes/coffee.txt": "is YOLO txt; fcvit convert_data makes",
    "yolo_polygons": "is YOLO txt; fcvit convert_data makes",
    "labelme/coffee.json": "is LabelMe JSON; fcvit convert_data makes",
    "images": "is not JSON (",
}


@pytest.mark.parametrize("name", FORMATS)
def test_files_of_labeling_tools_are_recognized(data, name):
    path = str(photographs.FOLDER / name)
    found = reports(train_dataloader__dataset__ann_file=path)
    assert found[0].errors[0].startswith(f"{path}: {FORMATS[name]}") and len(found[0].errors) == 1


def test_cvats_own_file_is_recognized(data):
    (data / "annotations.xml").write_text("<?xml version='1.0'?>\n<!-- <a> -->\n<annotations/>")
    error = reports(train_dataloader__dataset__ann_file="annotations.xml")[0].errors[0]
    assert "annotations.xml: is CVAT's own XML" in error and "export COCO 1.0" in error


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
@pytest.mark.parametrize("key", ["ann_file", "data_prefix.img"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_refused_unread(data, key, kind):
    """They would be waited for, or fill the memory."""
    path = Path("/dev/zero") if kind == "device" else data / "pipe"
    if kind == "pipe":
        os.mkfifo(path)
    cfg = load_config(str(TASKS["detection"]), {f"train_dataloader.dataset.{key}": str(path)})
    with pytest.raises(ConfigError, match=f"dataset: {path} is a pipe or a device; name a"):
        check_files(cfg, LOADERS)


def test_masks_of_large_images_take_little_memory(tmp_path):
    """Thirty of 9000x9000 pixels; as lists of integers they take six times the file's size."""
    path = tmp_path / "masks.json"
    mask = json.dumps({"segmentation": {"size": [9000, 9000], "counts": [8100] * 10_000}})
    annotations = ",".join([mask] * 30)
    path.write_text(f'{{"images": [], "categories": [], "annotations": [{annotations}]}}')
    tracemalloc.start()
    content = checks.coco._read(str(path), Report("train"), checks.coco.LISTS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert content is not None and len(content["annotations"]) == 30
    segmentation = content["annotations"][0]["segmentation"]
    assert checks.coco._segmentation_flaw(segmentation, (9000, 9000), True) is None
    assert peak < 3 * path.stat().st_size


# ---------------------------------------------------------------------------------- images


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


IMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "00003.png (not an image)"),
    "text": (lambda path: path.write_text("<html>404</html>"), "00003.png (not an image)"),
    "truncated": (truncate, "00003.png (image file is truncated"),
    "absent": (lambda path: path.unlink(), "do not exist: 00003.png"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "00003.png ("),
    "pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "00003.png (not a regular file)"),
    "zeros inside": (lambda path: zero(path), "00003.png ("),
    "cut inside": (lambda path: cut(path, path.read_bytes()[-12:]), "(image file is truncated"),
}


def zero(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 50] = bytes(50)
    path.write_bytes(content)


def cut(path: Path, end: bytes) -> None:
    """Leave out what is in the middle, up to the mark at the end."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + end)


@pytest.mark.official
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("damage", IMAGES)
def test_damage_of_an_image_is_named(data, task, damage):
    change, words = IMAGES[damage]
    change(data / "images/train/00003.png")
    if task == "segmentation" and damage in ("absent", "folder", "pipe"):
        # its folder is all that says what images there are, but for the label map that is left
        assert "label maps without image: 00003.png" in only_error(reports(task))
        return
    error = only_error(reports(task))
    assert error.startswith("data/shapes/images/train: images that") and words in error


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
def test_an_image_cut_anywhere_is_found(tmp_path, suffix):
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    path = tmp_path / f"image{suffix}"
    Image.fromarray(image).save(path)
    content = path.read_bytes()
    assert read_header(str(path)) == read_header(str(path), decode=True) == ((64, 48), [])
    for part in (0, 1, 2, 10, 100, len(content) // 2, len(content) * 9 // 10):
        path.write_bytes(content[:part])
        with pytest.raises((OSError, SyntaxError)):
            read_header(str(path))
    # what follows the end does no harm
    path.write_bytes(content + bytes(10))
    assert read_header(str(path)) == ((64, 48), [])


@pytest.mark.parametrize("is_smooth", [False, True])
def test_damage_inside_is_found_by_decoding(tmp_path, is_smooth):
    """Also where a decoder gives other pixels and no error, as it does of smooth images."""
    path = tmp_path / "image.png"
    image = np.random.default_rng(0).integers(0, 256, 48 * 64 * 3, dtype=np.uint8)
    image = (np.sort(image) // 8 if is_smooth else image).reshape(48, 64, 3)
    Image.fromarray(image).save(path)
    content = path.read_bytes()
    for place in range(100, len(content) - 12, len(content) // 20):
        changed = bytearray(content)
        changed[place] ^= 0x10
        path.write_bytes(changed)
        assert read_header(str(path)) == ((64, 48), [])
        with pytest.raises((OSError, SyntaxError)):
            read_header(str(path), decode=True)


KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "optimized": dict(optimize=True),
    "progressive": dict(progressive=True),
    "restarts": dict(restart_marker_rows=1),
    "full color": dict(subsampling=0, quality=95),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 48), (333, 217)], ids=str)
def test_a_jpeg_that_a_decoder_fills_with_gray_is_found(tmp_path, kind, size):
    image = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    path = tmp_path / "image.jpg"
    Image.fromarray(image).save(path, **KINDS[kind])
    whole = path.read_bytes()
    # a phone may append a film, and a thumbnail has a mark of its own
    for after in (b"", bytes(10), b"film\xff\xd9film"):
        path.write_bytes(whole + after)
        assert read_header(str(path), decode=True) == (size, [])
    for left_out in (len(whole) // 3, 200):
        path.write_bytes(whole[: -2 - left_out] + whole[-2:])
        assert read(path).shape[1::-1] == size  # OpenCV only prints a warning
        with pytest.raises(OSError, match="truncated"):
            read_header(str(path), decode=True)


def test_so_many_images_are_decoded_as_take_a_minute(data, monkeypatch, capsys):
    """Evenly spread ones; all of them where it is asked for."""
    for i in (3, 4):
        zero(data / f"images/train/{i:05}.png")
    cfg = load_config(str(TASKS["detection"]))
    for seconds, decode, decoded, found in (
        (1e9, False, 8, "00003.png ("),
        (1e-9, True, 8, "00003.png ("),
        (1e-9, False, 1, ""),
    ):
        monkeypatch.setattr(checks, "DECODING", seconds)
        (report,) = check(cfg, LOADERS[:1], decode)
        assert report.decoded == decoded and found in str(report.errors)
        assert bool(report.errors) == bool(found)
    load_tool("check_data").main([str(TASKS["detection"])])
    assert "2 of 12 images were decoded; --decode decodes all" in capsys.readouterr().out


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_image_as_loaded(tmp_path, orientation):
    exif = Image.Exif()
    exif[checks.images.EXIF_ORIENTATION] = orientation
    path = tmp_path / "image.jpg"
    Image.new("RGB", (64, 48)).save(path, exif=exif)
    assert read_header(str(path))[0] == read(path).shape[1::-1]


# --------------------------------------------------------------------------------- label maps


def write_map(path: Path, labels: np.ndarray) -> None:
    Image.fromarray(labels).save(path)


MAPS: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "value": (
        lambda path: write_map(path, np.full((64, 64), 7, np.uint8)),
        ["00003.png (7 in 4096 pixels)", "are the values 0 to 4, 255 is ignored"],
    ),
    "two bytes": (
        lambda path: write_map(path, np.full((64, 64), 1000, np.uint16)),
        ["00003.png (above 255 in 4096 pixels)"],
    ),
    "size": (
        lambda path: write_map(path, np.zeros((64, 60), np.uint8)),
        ["another size", "00003.png (60x64, image 64x64)"],
    ),
    "color": (
        lambda path: write_map(path, np.zeros((64, 64, 3), np.uint8)),
        ["in color: 00003.png", "index"],
    ),
    "absent": (lambda path: path.unlink(), ["without label map: 00003.png", "seg_map_suffix"]),
    "text": (lambda path: path.write_text("no"), ["can't be read: 00003.png (not an image)"]),
    "truncated": (truncate, ["can't be read: 00003.png (image file is truncated"]),
}


@pytest.mark.official
@pytest.mark.parametrize("damage", MAPS)
def test_damage_of_a_label_map_is_named(data, damage):
    change, words = MAPS[damage]
    change(data / "label_maps/train/00003.png")
    error = only_error(reports("segmentation"))
    assert error.startswith("data/shapes/label_maps/train: ")
    assert all(word in error for word in words), error


def test_ignored_pixels_and_palettes_are_no_error(data):
    path = data / "label_maps/train/00003.png"
    labels = np.array(Image.open(path))
    labels[:10] = 255
    image = Image.fromarray(labels).convert("P")
    image.putdata(labels.ravel().tolist())
    image.save(path)
    train = reports("segmentation")[0]
    assert train.errors == [] and train.labeled == 8 * 64 * 64 - 640


def test_classes_that_count_from_1(data):
    """0 is ignored and 5 is the last class: an error that names what to do, and then none."""
    for path in (data / "label_maps").rglob("*.png"):
        write_map(path, read(path, cv2.IMREAD_UNCHANGED) + 1)
    found = reports("segmentation")
    assert "5 in " in found[0].errors[0] and "reduce_zero_label=True" in found[0].errors[0]
    keys = [f"{loader}__dataset__reduce_zero_label" for loader in LOADERS]
    found = reports("segmentation", **dict.fromkeys(keys, True))
    assert [report.errors for report in found] == [[], []]
    assert found[0].labeled == 8 * 64 * 64


def binary(data: Path, value: int) -> dict[str, Any]:
    """Make label maps of nothing but 0 and a value; the options of two classes."""
    for path in (data / "label_maps").rglob("*.png"):
        write_map(path, np.where(read(path, cv2.IMREAD_UNCHANGED) > 0, value, 0).astype(np.uint8))
    keys = [f"{loader}__dataset__metainfo" for loader in LOADERS]
    classes = dict(classes=("background", "shape"), palette=[(0, 0, 0), (255, 0, 0)])
    return dict.fromkeys(keys, classes) | {"model__decode_head__num_classes": 2}


def test_two_classes_of_label_maps_pass(data):
    options = binary(data, 1)
    assert [report.errors for report in reports("segmentation", **options)] == [[], []]
    single = {
        "model__decode_head__out_channels": 1,
        "model__decode_head__loss_decode": dict(type="CrossEntropyLoss", use_sigmoid=True),
    }
    assert [one.errors for one in reports("segmentation", **options, **single)] == [[], []]


@pytest.mark.parametrize("reduce", [False, True])
def test_one_class_of_label_maps_is_an_error(data, reduce):
    """With and without the option that leaves nothing but the class."""
    options = binary(data, 1)
    for loader in LOADERS:
        options[f"{loader}__dataset__metainfo"] = dict(classes=("shape",), palette=[(0, 0, 0)])
        options[f"{loader}__dataset__reduce_zero_label"] = reduce
    options["model__decode_head__num_classes"] = 1
    for report in reports("segmentation", **options):
        (error,) = report.errors
        assert "a single class, 'shape'" in error and "nothing is learned" in error
        assert "classes=('background', 'shape')" in error and "out_channels=1" in error
        assert "reduce_zero_label=True" not in error


def test_objects_stored_as_255_are_an_error(data):
    for report in reports("segmentation", **binary(data, 255)):
        share = [np.mean(read(path, cv2.IMREAD_UNCHANGED) == 255)
                 for path in data.glob(f"label_maps/{report.name.split(',')[0]}/*")]  # fmt: skip
        (error,) = report.errors
        assert f"255 is ignored and is {np.mean(share):.0%} of the pixels" in error
        assert "store 1 in its place" in error


def test_one_output_with_a_softmax_is_an_error(data):
    options = binary(data, 1) | {"model__decode_head__out_channels": 1}
    error = reports("segmentation", **options)[0].errors[0]
    assert "model.decode_head" in error and "use_sigmoid=True" in error


@pytest.mark.official
def test_values_become_classes_as_mmsegmentation_has_it(data):
    """The table agrees with the labels that its pipeline loads, value by value."""
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for path in (data / "label_maps/train").iterdir():
        write_map(path, values)
    node = load_config(str(TASKS["segmentation"])).train_dataloader.dataset
    ade = dict(type="ADE20KDataset", reduce_zero_label=True)
    ade["metainfo"] = dict(classes=("sky", "wall"))
    steps = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")]
    for change in (dict(), dict(reduce_zero_label=True), ade):
        cfg = dict(node, _scope_="mmseg", pipeline=steps) | change
        dataset = DATASETS.build(cfg)
        table = checks.label_maps.label_table(dataset)
        assert table[256] == -2  # what is above 255
        table = table[:256]
        loaded = dataset[0]["gt_seg_map"].ravel().astype(int)
        n = len(dataset.metainfo["classes"])
        assert (table[loaded == 255] == -1).all()
        assert (table[loaded < n] == loaded[loaded < n]).all()
        assert (table[(loaded >= n) & (loaded != 255)] == -2).all()


def test_a_label_map_without_its_image_is_named(data):
    (data / "images/train/00003.png").unlink()
    (data / "images/train/00005.png").rename(data / "images/train/00005.jpg")
    error = only_error(reports("segmentation"))
    assert "label_maps/train: label maps without image: 00003.png, 00005.png;" in error
    assert "img_suffix" in error
    listed = data / "train.txt"
    listed.write_text("\n".join(f"{i:05}" for i in (0, 1, 2, 4, 6, 7)))
    found = reports("segmentation", train_dataloader__dataset__ann_file=listed.name)
    assert [report.errors for report in found] == [[], []]


def test_images_of_another_suffix_are_named(data):
    error = reports("segmentation", train_dataloader__dataset__img_suffix=".jpg")[0].errors[0]
    assert "no images that end in '.jpg' (there are: .png)" in error and "img_suffix" in error


# ------------------------------------------------------------------------ configs and training


def test_wrapped_datasets_are_each_checked(data):
    cfg = load_config(str(TASKS["detection"]))
    node = cfg.train_dataloader.dataset
    other = dict(node, ann_file="annotations/instances_val.json", metainfo=dict(classes=("a",)))
    cfg.train_dataloader.dataset = dict(
        type="RepeatDataset", times=2, dataset=dict(type="ConcatDataset", datasets=[node, other])
    )
    first, second = check(cfg, ("train_dataloader",))
    assert (first.name, second.name) == ("train.dataset.datasets.0", "train.dataset.datasets.1")
    assert first.errors == [] and first.images == 8
    assert second.errors[0].startswith("train_dataloader.dataset.dataset.datasets.1: classes that")


@pytest.mark.official
@pytest.mark.parametrize("name", ["CustomDataset", "ImageNet"])
def test_of_a_folder_a_class_the_images_are_checked(data, name):
    for path in (data / "images/train").iterdir():
        folder = data / "classes" / ("ab"[int(path.stem) % 2])
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    dataset = dict(type=name, data_root="data/shapes", data_prefix="classes")
    dataset |= dict(metainfo=dict(classes=("a", "b")))
    model = dict(head=dict(num_classes=1000))
    cfg = Config(
        dict(default_scope="mmpretrain", model=model, train_dataloader=dict(dataset=dataset))
    )
    (data / "classes/a/00002.png").write_text("no")
    with pytest.raises(ConfigError) as error:
        check_files(cfg, ("train_dataloader",))
    assert "model.head.num_classes is 1000" in str(error.value) and "(1 more)" in str(error.value)
    (report,) = check(cfg, ("train_dataloader",))
    assert report.images == 8 and "00002.png (not an image)" in report.errors[1]


def test_a_dataset_that_can_not_be_built_is_named(data):
    error = reports(train_dataloader__dataset__type="NoSuchSet")[0].errors[0]
    assert error.startswith("train_dataloader.dataset: can't be built") and "NoSuchSet" in error
    error = reports("segmentation", train_dataloader__dataset__type="ADE20KDataset")[0].errors[0]
    assert error.endswith(
        "set train_dataloader.dataset.type='BaseSegDataset' for classes of your own"
    )
    assert len(error) < 400  # and not all of ADE20K's classes


def test_a_bug_of_a_transform_keeps_its_traceback(data):
    class Faulty:
        def __call__(self, results: dict) -> dict:
            return results["no such key"]

    node = dict(load_config(str(TASKS["detection"])).train_dataloader.dataset)
    dataset = DATASETS.build(dict(node, _scope_="mmdet", pipeline=[Faulty()]))
    with pytest.raises(KeyError), naming_sample():
        dataset[0]


def test_the_check_can_be_left_out(data):
    (data / "images/train/00003.png").write_text("no")
    cfg = load_config(str(TASKS["detection"]))
    with pytest.raises(ConfigError, match=r"00003\.png \(not an image\); replace"):
        check_files(cfg, LOADERS)
    cfg.check_data = False
    check_files(cfg, LOADERS)
