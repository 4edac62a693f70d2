"""The generated images: what follows from a seed, masks against files, overlaps, bad input."""

import colorsys
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from fcvit_mm.datasets import coco_writer, shapes, shapes_drawing
from fcvit_mm.utils.errors import DatasetError
from helpers import ROOT
from helpers.images import contents, read

SIZE = (48, 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shapes") / "set"
    assert shapes.generate(out, train=6, val=4, size=SIZE, seed=3)
    return out


def test_the_same_seed_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    shapes.generate(tmp_path / "again", train=6, val=4, size=SIZE, seed=3)
    assert contents(tmp_path / "again") == contents(folder)
    shapes.generate(tmp_path / "other", train=6, val=4, size=SIZE, seed=4)
    other = contents(tmp_path / "other")
    for name, held in contents(folder).items():
        assert other[name] != held, f"{name} does not depend on the seed"


def test_an_image_depends_on_neither_their_number_nor_the_other_split(
    folder: Path, tmp_path: Path
) -> None:
    shapes.generate(tmp_path / "few", train=2, val=7, size=SIZE, seed=3)
    few, many = contents(tmp_path / "few"), contents(folder)
    shared = [name for name in few if name in many and name.endswith(".png")]
    assert len(shared) == 2 * (2 + 4)
    assert all(few[name] == many[name] for name in shared)


def test_no_image_is_in_both_splits_or_twice(folder: Path) -> None:
    images = [path.read_bytes() for path in (folder / "images").rglob("*.png")]
    assert len(images) == 10 == len(set(images))


@pytest.mark.parametrize("split", shapes.SPLITS)
def test_files_hold_the_images_masks_boxes_and_areas(split: str, tmp_path: Path) -> None:
    shapes.generate(tmp_path / "set", 5, 5, SIZE, seed=3)
    held = COCO(tmp_path / "set/annotations" / f"instances_{split}.json")
    assert [c["name"] for c in held.loadCats(held.getCatIds())] == list(shapes.CLASSES)
    images = held.loadImgs(held.getImgIds())
    assert len(images) == 5
    for index, image in enumerate(images):
        drawn = shapes.make_sample(3, split, index, SIZE)
        assert (image["width"], image["height"]) == SIZE
        loaded = read(tmp_path / "set/images" / split / image["file_name"])
        np.testing.assert_array_equal(loaded[..., ::-1], drawn.image)

        annotations = held.loadAnns(held.getAnnIds(image["id"]))
        assert [a["category_id"] for a in annotations] == (drawn.labels + 1).tolist()
        for one, mask in zip(annotations, drawn.masks, strict=True):
            np.testing.assert_array_equal(held.annToMask(one), mask)
            rows, columns = np.nonzero(mask)
            assert one["area"] == len(rows)
            assert one["bbox"] == [
                columns.min(),
                rows.min(),
                np.ptp(columns) + 1,
                np.ptp(rows) + 1,
            ]

        # The label map, painted from the file alone.
        expected = np.zeros(SIZE[::-1], np.uint8)
        for one in annotations:
            expected[held.annToMask(one) > 0] = one["category_id"]
        path = tmp_path / "set/label_maps" / split / image["file_name"]
        labels = read(path, cv2.IMREAD_UNCHANGED)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, expected)


def test_polygons_where_they_can_say_it_else_rle() -> None:
    """A square, one with a hole, two parts that touch at a corner; drawn by pycocotools."""
    from pycocotools import mask as masks

    plain = np.zeros((9, 11), bool)
    plain[2:6, 3:9] = True
    holed = plain.copy()
    holed[3:5, 5:7] = False
    corner = np.zeros((9, 11), bool)
    corner[1:4, 1:4] = corner[4:7, 4:8] = True

    assert coco_writer.annotation(plain, 1)["segmentation"] == [[3, 2, 3, 6, 9, 6, 9, 2]]
    assert isinstance(coco_writer.annotation(holed, 1)["segmentation"], dict)
    assert isinstance(coco_writer.annotation(corner, 1)["segmentation"], list)
    assert isinstance(coco_writer.annotation(plain, 1, iscrowd=True)["segmentation"], dict)
    rng = np.random.default_rng(0)
    kinds = set()
    for mask in (plain, holed, corner, *(rng.random((40, 9, 11)) < rng.random((40, 1, 1)))):
        held = coco_writer.annotation(mask, 1)["segmentation"]
        kinds.add(type(held))
        encoded = masks.frPyObjects(held, 9, 11)
        if isinstance(held, list):
            encoded = masks.merge(encoded)
        np.testing.assert_array_equal(masks.decode(encoded), mask)
        whole = masks.frPyObjects(coco_writer.run_lengths(mask), 9, 11)
        np.testing.assert_array_equal(masks.decode(whole), mask)
    assert kinds == {list, dict}


@pytest.mark.parametrize("size", [(32, 32), (200, 33), (41, 160)])
def test_any_size(size: tuple[int, int]) -> None:
    drawn = shapes.make_sample(0, "train", 0, size)
    assert drawn.image.shape == (size[1], size[0], 3) and drawn.image.dtype == np.uint8
    assert drawn.masks.shape == (len(drawn.labels), size[1], size[0])
    assert len(drawn.labels) >= 1 and drawn.masks.any((1, 2)).all()


def test_objects_overlap_and_none_is_hidden() -> None:
    """A circle's visible part is smaller than the circle where another object lies on it."""
    images = [shapes.make_sample(0, "val", index) for index in range(20)]
    assert {label for one in images for label in one.labels} == set(range(len(shapes.CLASSES)))
    covered = 0
    for one in images:
        assert one.masks.sum(0).max() == 1, "two objects claim a pixel"
        assert one.masks.sum((1, 2)).min() > 50
        boxes = [coco_writer.annotation(mask, 1)["bbox"] for mask in one.masks]
        for i, (x, y, w, h) in enumerate(boxes):
            for left, top, width, height in boxes[:i]:
                across = min(x + w, left + width) - max(x, left)
                covered += across > 4 and min(y + h, top + height) - max(y, top) > 4
    assert covered > 20


def test_at_least_half_of_an_object_is_visible() -> None:
    y, x = np.mgrid[:128, :128] + 0.5
    for seed in range(20):
        objects, visible = shapes_drawing._arrange(np.random.default_rng(seed), x, y, "dense")
        for one, mask in zip(objects, visible, strict=True):
            assert mask.sum() >= 0.5 * (one.distance(x, y) <= 0).sum()


def test_objects_can_be_seen() -> None:
    """An object's colors differ from those around it far more than the ground's from its own."""
    for index in range(10):
        drawn = shapes.make_sample(1, "val", index)
        ground = drawn.image[~drawn.masks.any(0)].astype(float)
        distances = [
            np.abs(drawn.image[mask].mean(0) - ground.mean(0)).sum() for mask in drawn.masks
        ]
        assert np.median(distances) > 60, f"image {index}"
        assert ground.std(0).mean() > 2, f"the ground of image {index} has no texture"


def test_each_class_has_its_colors_and_they_vary() -> None:
    hues: dict[int, list[float]] = {}
    for index in range(100):
        drawn = shapes.make_sample(2, "train", index, (64, 64))
        for label, mask in zip(drawn.labels, drawn.masks, strict=True):
            color = tuple(drawn.image[mask].mean(0) / 255)
            hues.setdefault(int(label), []).append(2 * np.pi * colorsys.rgb_to_hsv(*color)[0])
    centers = {label: np.angle(np.exp(1j * np.array(h)).mean()) for label, h in hues.items()}
    for label, of_class in hues.items():
        off = [abs(np.angle(np.exp(1j * (h - centers[label])))) for h in of_class]
        assert np.std(off) > 0.05
        for other in centers.keys() - {label}:
            assert abs(np.angle(np.exp(1j * (centers[other] - centers[label])))) > 2 * np.mean(off)


def test_a_set_is_kept_and_written_to_an_empty_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    out.mkdir()
    arguments: dict[str, Any] = dict(train=6, val=4, size=SIZE, seed=3)
    shapes.generate(out, **arguments)
    before = (out / "images/train/00000.png").stat()
    assert not shapes.generate(out, **arguments)
    assert (out / "images/train/00000.png").stat().st_mtime_ns == before.st_mtime_ns
    assert contents(out) == contents(folder)
    assert list(tmp_path.iterdir()) == [out], "something was left next to the dataset"


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "write_instances", interrupt)
    with pytest.raises(KeyboardInterrupt):
        shapes.generate(tmp_path / "set", 1, 1, SIZE)
    assert not list(tmp_path.iterdir())


def test_what_is_not_ours_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match="is not empty"):
        shapes.generate(tmp_path, 1, 1, SIZE)
    with pytest.raises(DatasetError, match="is a file"):
        shapes.generate(tmp_path / "notes.txt", 1, 1, SIZE)
    shapes.generate(tmp_path / "set", 1, 1, SIZE)
    with pytest.raises(DatasetError, match="other parameters"):
        shapes.generate(tmp_path / "set", 2, 1, SIZE)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert json.loads((tmp_path / "set" / coco_writer.STAMP).read_text())["train"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--train", "0"], "--train: 0 must be a whole number of at least 1"),
        (["--val", "-3"], "--val: -3 must be a whole number of at least 1"),
        (["--size", "20", "64"], "--size: 20 must be a whole number of at least 32"),
        (["--seed", "-1"], "--seed: -1 must be a whole number of at least 0"),
        (["--task", "poetry"], "invalid choice: 'poetry'"),
        (["--train", "many"], "many must be a whole number of at least 1"),
    ],
)
def test_bad_arguments(arguments: list[str], said: str, tmp_path: Path, capfd) -> None:
    with pytest.raises(SystemExit) as ended:
        shapes.main([str(tmp_path / "set"), *arguments])
    assert ended.value.code == 2
    assert said in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_classification_is_a_folder_a_class_with_one_object_an_image(tmp_path: Path) -> None:
    arguments = ["--task", "classification", "--train", "9", "--val", "5", "--seed", "5"]
    shapes.main([str(tmp_path / "set"), *arguments])
    for split, number in (("train", 9), ("val", 5)):
        folder = tmp_path / "set" / split
        assert {path.name for path in folder.iterdir()} == set(shapes.CLASSES)
        files = {path.name: path for path in folder.rglob("*.png")}
        assert sorted(files) == [f"{index:05}.png" for index in range(number)]
        for index, path in enumerate(sorted(files.values(), key=lambda path: path.name)):
            drawn = shapes.make_sample(5, split, index, (64, 64), "classification")
            (label,) = drawn.labels
            assert path.parent.name == shapes.CLASSES[label]
            np.testing.assert_array_equal(read(path)[..., ::-1], drawn.image)
            # as large in pixels as in images of 128 for detection; some are cut by a side
            rows, columns = np.nonzero(drawn.masks[0])
            assert 12 < max(np.ptp(rows), np.ptp(columns)) + 1 <= 64


def test_no_image_is_drawn_from_the_random_numbers_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = set()

    def arrange(rng: np.random.Generator, x: np.ndarray, *_: Any) -> tuple[list, np.ndarray]:
        drawn.add(rng.bytes(16))
        return [], np.zeros((0, *x.shape), bool)

    monkeypatch.setattr(shapes_drawing, "_arrange", arrange)
    for task in shapes.TASKS:
        for split in shapes.SPLITS:
            for index in range(5):
                shapes.make_sample(0, split, index, (64, 64), task)
    assert len(drawn) == 20


def test_what_a_classifier_sees_is_in_no_image_for_detection() -> None:
    seen = {
        shapes.make_sample(0, split, index, (64, 64), task).image.tobytes()
        for task in shapes.TASKS
        for split in shapes.SPLITS
        for index in range(5)
    }
    assert len(seen) == 20


def test_configs_name_the_classes_and_colors() -> None:
    from mmengine.config import Config

    base = ROOT / "configs/_base_/datasets"
    instance = Config.fromfile(base / "shapes_instance.py").metainfo
    assert instance.classes == shapes.CLASSES
    assert instance.palette == list(shapes.PALETTE)
    semantic = Config.fromfile(base / "shapes_semantic.py").metainfo
    assert semantic.classes == shapes.SEMANTIC_CLASSES
    assert semantic.palette == list(shapes.SEMANTIC_PALETTE)
