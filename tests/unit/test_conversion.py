"""Annotations of labeling tools become COCO's, whatever the tool, and label maps."""

import json
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from fcvit_mm.datasets.conversion import Dataset, convert
from fcvit_mm.utils.cli import run_tool
from fcvit_mm.utils.errors import ConfigError, DatasetError
from helpers.photographs import BOXES, CLASSES, FOLDER, OUTLINES, Shape, arrange, drawn, write_copy
from helpers.tools import load_tool


def content(out: Path, split: str) -> dict:
    return json.loads((out / f"annotations/{split}.json").read_text())


def names(out: Path, split: str) -> list[str]:
    """The images of a split, as they were named before."""
    return [Path(image["file_name"]).stem for image in content(out, split)["images"]]


def objects(out: Path) -> dict[str, list[tuple[str, dict, dict]]]:
    """Class, image and annotation of all objects, by the image's name before."""
    found: dict[str, list] = {}
    for path in (out / "annotations").iterdir():
        file = content(out, path.stem)
        images = {image["id"]: image for image in file["images"]}
        classes = {category["id"]: category["name"] for category in file["categories"]}
        for one in file["annotations"]:
            image = images[one["image_id"]]
            stem = Path(image["file_name"]).stem.split("-")[-1]
            found.setdefault(stem, []).append((classes[one["category_id"]], image, one))
    return found


def drawn_mask(shape: Shape, size: tuple[int, int]) -> np.ndarray:
    image = Image.new("1", size)
    ImageDraw.Draw(image).polygon(shape.points, fill=1)
    return np.array(image)


def filled(outline: list[list[float]], size: tuple[int, int]) -> np.ndarray:
    """Draw COCO's polygons as its evaluation does, whose pixels are half a pixel smaller."""
    code = coco_mask.merge(coco_mask.frPyObjects(outline, *size[::-1]))
    return coco_mask.decode(code).astype(bool)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.fixture(scope="module")
def labelme(tmp_path_factory) -> Path:
    return arrange("labelme", tmp_path_factory.mktemp("labelme"))


@pytest.fixture
def source(labelme, tmp_path) -> Path:
    """Images and LabelMe's files in one folder, to be changed."""
    return Path(shutil.copytree(labelme, tmp_path / "labeled"))


# ---------------------------------------------------------------------------------- each format


@pytest.mark.parametrize("kind", BOXES + OUTLINES)
def test_every_format_gives_the_same_objects(tmp_path, kind):
    out = tmp_path / "data"
    dataset = convert(arrange(kind, tmp_path / "labeled"), out)
    assert dataset.report.warnings == [] and dataset.classes == CLASSES
    assert dataset.has_outlines == (kind in OUTLINES)
    found = objects(out)
    assert found.keys() == drawn().keys()
    for name, shapes in drawn().items():
        assert [label for label, _, _ in found[name]] == [shape.name for shape in shapes]
        for shape, (_, image, one) in zip(shapes, found[name], strict=True):
            x, y, width, height = one["bbox"]
            np.testing.assert_allclose((x, y, x + width, y + height), shape.box, atol=0.02)
            assert one["iscrowd"] == 0 and ("segmentation" in one) == (kind in OUTLINES)
            if kind in OUTLINES:
                size = image["width"], image["height"]
                mask = filled(one["segmentation"], size)
                assert overlap(mask, filled([[*chain(*shape.points)]], size)) > 0.99
                assert one["area"] == pytest.approx(mask.sum(), rel=0.02)
            else:
                assert one["area"] == pytest.approx(width * height)


def test_images_lie_where_the_page_says(source, tmp_path):
    out = tmp_path / "data"
    convert(source, out)
    (val,) = content(out, "val")["images"]
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    train = [f"images/train/{name}.jpg" for name in drawn() if f"{name}.jpg" != val["file_name"]]
    assert written == ["annotations/train.json", "annotations/val.json", *train,
                       f"images/val/{val['file_name']}"]  # fmt: skip
    assert (out / written[-1]).read_bytes() == (source / val["file_name"]).read_bytes()


def test_images_may_lie_outside(tmp_path):
    convert(FOLDER / "labelme", tmp_path / "data")
    assert objects(tmp_path / "data").keys() == drawn().keys()


def test_boxes_among_outlines(source, tmp_path):
    """Of an object with a box alone the area is the box's, and it has no outline."""
    path = source / "astronaut.json"
    labels = json.loads(path.read_text())
    labels["shapes"][1] |= dict(shape_type="rectangle", points=[[222, 0], [286, 172]])
    labels["shapes"].append(dict(labels["shapes"][0], shape_type="circle"))
    path.write_text(json.dumps(labels))
    dataset = convert(source, tmp_path / "data")
    (_, _, box) = objects(tmp_path / "data")["astronaut"][1]
    assert box["bbox"] == [222, 0, 64, 172]
    (warning,) = dataset.report.warnings
    assert "left out: astronaut.json (circle)" in warning


def test_outlines_of_one_group_are_one_object_of_several_parts(source, tmp_path):
    path = source / "coffee.json"
    labels = json.loads(path.read_text())
    (first,) = labels["shapes"]
    first["group_id"] = 1
    labels["shapes"].append(first | dict(points=[[20, 20], [40, 20], [40, 40]]))
    path.write_text(json.dumps(labels))
    convert(source, tmp_path / "data")
    ((_, _, one),) = objects(tmp_path / "data")["coffee"]
    assert len(one["segmentation"]) == 2 and one["iscrowd"] == 0
    assert one["bbox"][:2] == [20, 10]


def test_pascal_voc_may_mix_boxes_and_polygons(tmp_path):
    source = arrange("voc", tmp_path / "labeled")
    path = source / "Annotations/astronaut.xml"
    points = "".join(f"<x{i}>{x}</x{i}><y{i}>{y}</y{i}>"
                     for i, (x, y) in enumerate([(20, 20), (60, 20), (60, 90)], 1))  # fmt: skip
    text = path.read_text().replace("</bndbox>", f"</bndbox><polygon>{points}</polygon>", 1)
    path.write_text(text)
    dataset = convert(source, tmp_path / "data")
    outlined, box = (one for _, _, one in objects(tmp_path / "data")["astronaut"])
    triangle = [[19.0, 19, 59, 19, 59, 89]]
    assert (
        overlap(*(filled(one, (320, 320)) for one in (outlined["segmentation"], triangle))) > 0.95
    )
    assert "segmentation" not in box and box["area"] == box["bbox"][2] * box["bbox"][3] > 0
    assert not dataset.has_outlines


def test_the_masks_of_pascal_voc_are_no_images_of_its_own(tmp_path):
    """They have the names of the images but for the ending."""
    source = arrange("voc", tmp_path / "labeled")
    (source / "SegmentationClass").mkdir()
    Image.new("L", (320, 213)).save(source / "SegmentationClass/coffee.png")
    convert(source, tmp_path / "data")
    (found,) = (tmp_path / "data/images").rglob("coffee.*")
    assert found.name == "coffee.jpg"


def test_long_lines_of_yolo_are_recognized(tmp_path):
    source = arrange("yolo_polygons", tmp_path / "labeled")
    # what is read of the line to recognize it ends with 5e-
    for path in (source / "labels").iterdir():
        number, *values = path.read_text().split("\n")[0].split()
        path.write_text(f"{number:0>2}" + " 1e-1 1e-1 5e-1 1e-1 5e-1 5e-1" + " 5e-1" * 1000)
    assert convert(source, tmp_path / "data").has_outlines


def test_crowds_and_run_lengths_of_coco_are_kept(tmp_path):
    source = arrange("cvat", tmp_path / "labeled")
    path = source / "annotations/instances_default.json"
    labels = json.loads(path.read_text())
    size = labels["images"][0]["height"], labels["images"][0]["width"]
    code = {"size": [*size], "counts": [100, 50, size[0] * size[1] - 150]}
    labels["annotations"][0] |= dict(iscrowd=1, segmentation=code, area=50)
    path.write_text(json.dumps(labels))
    dataset = convert(source, tmp_path / "data", label_maps=True)
    (_, _, one), _ = objects(tmp_path / "data")["astronaut"]
    assert (one["iscrowd"], one["segmentation"], one["area"]) == (1, code, 50)
    split = "val" if "astronaut" in names(tmp_path / "data", "val") else "train"
    labels = np.array(Image.open(tmp_path / f"data/label_maps/{split}/astronaut.png"))
    assert (labels == dataset.map_classes.index("person")).sum() == 50


def test_yolo_images_without_a_file_are_background(tmp_path):
    source = arrange("yolo_boxes", tmp_path / "labeled")
    (source / "labels/coffee.txt").unlink()
    dataset = convert(source, tmp_path / "data")
    found = {name for image in objects(tmp_path / "data").values() for name, _, _ in image}
    assert dataset.classes == CLASSES and found == {*CLASSES} - {"cup"}
    assert "coffee" in names(tmp_path / "data", "train") + names(tmp_path / "data", "val")


def test_keypoints_of_yolo_are_left_out(tmp_path):
    source = arrange("yolo_boxes", tmp_path / "labeled")
    with (source / "data.yaml").open("a") as file:
        file.write("kpt_shape: [2, 2]\n")
    for path in (source / "labels").iterdir():
        path.write_text("".join(f"{line.strip()} 0.1 0.2 0.3 0.4\n" for line in path.open()))
    assert not convert(source, tmp_path / "data").has_outlines


def test_yolo_classes_of_label_studio(tmp_path):
    source = arrange("yolo_polygons", tmp_path / "labeled")
    (source / "data.yaml").unlink()
    (source / "classes.txt").write_text("\n".join(CLASSES))
    assert convert(source, tmp_path / "data").classes == CLASSES


def test_images_that_nobody_annotated_are_left_out_and_named(source, tmp_path):
    (source / "coffee.json").unlink()
    (warning,) = convert(source, tmp_path / "data").report.warnings
    assert "without annotations, which are left out: coffee.jpg" in warning
    assert "coffee" not in objects(tmp_path / "data")


# ----------------------------------------------------------------------------------- label maps


def test_outlines_become_label_maps(source, tmp_path):
    """Of the classes in their order, from 1 on; an object over a larger one is seen."""
    path = source / "chelsea.json"
    labels = json.loads(path.read_text())
    eye = dict(labels["shapes"][0], label="rocket",
               points=[[95, 60], [145, 60], [145, 105], [95, 105]])  # fmt: skip
    labels["shapes"].insert(0, eye)
    path.write_text(json.dumps(labels))
    dataset = convert(source, tmp_path / "data", label_maps=True)
    assert dataset.map_classes == ["background", *CLASSES]
    for name, shapes in drawn().items():
        split = "val" if name in names(tmp_path / "data", "val") else "train"
        found = Image.open(tmp_path / f"data/label_maps/{split}/{name}.png")
        expected = np.zeros(found.size[::-1], np.uint8)
        for shape in shapes:
            value = 1 + CLASSES.index(shape.name)
            expected[drawn_mask(shape, found.size)] = value
        if name == "chelsea":
            expected[60:105, 95:145] = 4
        assert found.mode == "L" and (np.array(found) == expected).mean() > 0.98


def test_images_of_several_kinds_become_one_for_label_maps(source, tmp_path):
    with Image.open(source / "coffee.jpg") as image:
        image.save(source / "coffee.png")
    (source / "coffee.jpg").unlink()
    dataset = convert(source, tmp_path / "data", label_maps=True)
    assert dataset.image_suffix == ".png"
    written = [*(tmp_path / "data/images").rglob("*.*")]
    assert {path.suffix for path in written} == {".png"} and len(written) == 6
    assert {Image.open(path).format for path in written} == {"PNG"}


def test_label_maps_need_outlines(tmp_path):
    source = arrange("voc", tmp_path / "labeled")
    with pytest.raises(DatasetError, match=r"astronaut.xml: an object \(person\) has a box"):
        convert(source, tmp_path / "data", label_maps=True)
    assert not (tmp_path / "data").exists()


# --------------------------------------------------------------------------------------- splits


def test_a_share_is_drawn_by_a_seed(source, tmp_path):
    def val(seed: int, share: float) -> list[str]:
        out = tmp_path / f"{seed}-{share}"
        convert(source, out, share=share, seed=seed)
        shutil.rmtree(out / "images")
        again = tmp_path / "again"
        convert(source, again, share=share, seed=seed)
        assert names(again, "val") == names(out, "val")
        shutil.rmtree(again)
        assert {*names(out, "val")}.isdisjoint(names(out, "train"))
        return names(out, "val")

    drawings = [val(seed, 0.3) for seed in range(6)]
    assert {len(one) for one in drawings} == {2} and len({*map(tuple, drawings)}) > 1
    # the only cat and the only cup are for training
    assert {"chelsea", "coffee"}.isdisjoint(sum(drawings, []))


def test_no_share_is_for_training_alone(source, tmp_path):
    dataset = convert(source, tmp_path / "data", share=0)
    assert [*dataset.splits] == ["train"] and len(names(tmp_path / "data", "train")) == 6
    assert not (tmp_path / "data/annotations/val.json").exists()


def move(source: Path, stem: str, folder: str, *parts: str) -> None:
    """Move files of an image into a folder within each part of the source."""
    for part in parts:
        for path in [*(source / part).glob(f"{stem}.*")]:
            (source / part / folder).mkdir(exist_ok=True)
            path.rename(source / part / folder / path.name)


VAL = ["camera", "coffee"]


def split_yolo(source: Path) -> None:
    for stem in drawn():
        move(source, stem, "valid" if stem in VAL else "train", "images", "labels")
    text = (source / "data.yaml").read_text()
    text = text.replace("train: images", "train: ../images/train")
    (source / "data.yaml").write_text(text.replace("val: images", "val: ../images/valid"))


def split_yolo_by_lists(source: Path) -> None:
    text = (source / "data.yaml").read_text()
    text = text.replace("train: images", "train: train.txt")
    (source / "data.yaml").write_text(text.replace("val: images", "val: [val.txt]"))
    for split in ("train", "val"):
        chosen = [f"images/{stem}.jpg" for stem in drawn() if (stem in VAL) == (split == "val")]
        (source / f"{split}.txt").write_text("\n".join(chosen))


def split_voc(source: Path) -> None:
    folder = source / "ImageSets/Main"
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text("\n".join(stem for stem in drawn() if stem not in VAL))
    (folder / "val.txt").write_text("\n".join(VAL))
    (folder / "trainval.txt").write_text("\n".join(drawn()))


def split_folders(source: Path) -> None:
    for stem in drawn():
        move(source, stem, "validation" if stem in VAL else "training", ".")


def split_coco(source: Path) -> None:
    path = source / "annotations/instances_default.json"
    labels = json.loads(path.read_text())
    path.unlink()
    for split in ("train", "val"):
        images = [image for image in labels["images"]
                  if (Path(image["file_name"]).stem in VAL) == (split == "val")]  # fmt: skip
        ids = {image["id"] for image in images}
        found = [one for one in labels["annotations"] if one["image_id"] in ids]
        part = labels | dict(images=images, annotations=found)
        path.with_name(f"instances_{split}2017.json").write_text(json.dumps(part))


@pytest.mark.parametrize(
    ("kind", "change"),
    [("yolo_boxes", split_yolo), ("yolo_polygons", split_yolo_by_lists), ("voc", split_voc),
     ("labelme", split_folders), ("cvat", split_coco)],
    ids=lambda value: getattr(value, "__name__", value),
)  # fmt: skip
def test_splits_of_the_source_are_kept(tmp_path, kind, change):
    source = arrange(kind, tmp_path / "labeled")
    change(source)
    convert(source, tmp_path / "data")
    assert sorted(names(tmp_path / "data", "val")) == VAL
    assert sorted(names(tmp_path / "data", "train")) == sorted({*drawn()} - {*VAL})


def test_a_test_split_is_kept_too(source, tmp_path):
    move(source, "hopper", "test", ".")
    dataset = convert(source, tmp_path / "data")
    assert names(tmp_path / "data", "test") == ["hopper"]
    assert [*dataset.splits] == ["train", "val", "test"]


def add_copy(source: Path, stem: str) -> None:
    """Add another file of an image that is there, annotated alike."""
    write_copy(source / f"{stem}.jpg", source / "zzz.jpg")
    labels = json.loads((source / f"{stem}.json").read_text())
    for shape in labels["shapes"]:
        shape["points"] = [[x * 3 // 4, y * 3 // 4] for x, y in shape["points"]]
    labels |= dict(imagePath="zzz.jpg", imageWidth=None, imageHeight=None)
    (source / "zzz.json").write_text(json.dumps(labels))


def test_duplicates_are_kept_in_one_split(source, tmp_path):
    add_copy(source, "rocket")
    for seed in range(8):
        out = tmp_path / str(seed)
        dataset = convert(source, out, share=0.3, seed=seed)
        assert ("zzz" in names(out, "val")) == ("rocket" in names(out, "val"))
        (warning,) = dataset.report.warnings
        assert "kept in one split" in warning and "rocket.jpg = " in warning
    assert any("zzz" in names(tmp_path / str(seed), "val") for seed in range(8))


def test_duplicates_between_splits_of_the_source_are_named(source, tmp_path):
    add_copy(source, "rocket")
    for stem in drawn():
        move(source, stem, "val" if stem in VAL else "train", ".")
    move(source, "zzz", "val", ".")
    (warning,) = convert(source, tmp_path / "data").report.warnings
    assert "in different splits" in warning and "zzz.jpg" in warning and "rocket.jpg" in warning


def test_images_that_all_look_the_same_are_split_nevertheless(source, tmp_path):
    for path in source.glob("*.jpg"):
        with Image.open(path) as image:
            Image.new("RGB", image.size).save(path)
    dataset = convert(source, tmp_path / "data")
    assert len(dataset.splits["val"]) == 1
    assert "in different splits" in dataset.report.warnings[0]


# ------------------------------------------------------------------------------------ bad input


def edit(name: str, old: str, new: str) -> Callable[[Path], object]:
    def change(source: Path) -> None:
        text = (source / name).read_text()
        assert old in text
        (source / name).write_text(text.replace(old, new))

    return change


def both(source: Path) -> None:
    shutil.copy(FOLDER / "voc/coffee.xml", source / "coffee.xml")


def cvat_xml(source: Path) -> None:
    shutil.rmtree(source / "annotations")
    (source / "annotations.xml").write_text("<?xml version='1.0'?>\n<annotations></annotations>")


def tasks(source: Path) -> None:
    (source / "result.json").write_text('[{"id": 1, "data": {"image": "a.jpg"}}]')


def pixels(source: Path) -> None:
    (source / "labels/coffee.txt").write_text("1 155 86 120 150\n")


def remove_annotations(source: Path) -> None:
    for path in source.glob("*.json"):
        path.unlink()


def draw_nothing(source: Path) -> None:
    for path in source.glob("*.json"):
        path.write_text(json.dumps(dict(shapes=[], imagePath=f"{path.stem}.jpg")))


def annotate_again(source: Path) -> None:
    path = source / "annotations/instances_default.json"
    shutil.copy(path, path.with_name("other.json"))


ENTITIES = '<!DOCTYPE annotation [<!ENTITY a "aaaa">]><annotation>'
BAD: dict[str, tuple[str, Callable[[Path], object], list[str]]] = {
    "unknown class": (
        "yolo_boxes", edit("labels/coffee.txt", "1 ", "7 "),
        ["labels/coffee.txt", "class 7 is unknown", "0 to 3"],
    ),
    "no numbers": (
        "yolo_boxes", edit("labels/coffee.txt", "1 ", "1 x"), ["labels/coffee.txt", "x0."]
    ),
    "pixels": ("yolo_boxes", pixels, ["labels/coffee.txt", "fractions"]),
    "no names": (
        "yolo_boxes", lambda source: (source / "data.yaml").unlink(), ["no data.yaml"]
    ),
    "no folder of a split": (
        "yolo_boxes", edit("data.yaml", "val: images", "val: valid"), ["data.yaml: valid does not"]
    ),
    "no image, yolo": (
        "yolo_boxes", lambda source: (source / "images/coffee.jpg").unlink(),
        ["labels/coffee.txt", "no image of that name"],
    ),
    "no image, voc": (
        "voc", lambda source: (source / "JPEGImages/coffee.jpg").unlink(),
        ["Annotations/coffee.xml", "its image coffee.jpg is not in"],
    ),
    "no image, coco": (
        "cvat", lambda source: (source / "images/default/coffee.jpg").unlink(),
        ["instances_default.json", "its image coffee.jpg is not in"],
    ),
    "no image, labelme": (
        "labelme", lambda source: (source / "coffee.jpg").unlink(), ["coffee.json", "coffee.jpg"]
    ),
    "damaged image": (
        "labelme", lambda source: (source / "coffee.jpg").write_text("no"), ["coffee.jpg", "image"]
    ),
    "xml cut off": (
        "voc", edit("Annotations/coffee.xml", "</annotation>", ""), ["Annotations/coffee.xml"]
    ),
    "xml with entities": (
        "voc", edit("Annotations/coffee.xml", "<annotation>", ENTITIES),
        ["Annotations/coffee.xml", "Entities"],
    ),
    "no box": (
        "voc", edit("Annotations/coffee.xml", "bndbox", "box"), ["coffee.xml", "Missing bndbox"]
    ),
    "another size": (
        "voc", edit("Annotations/coffee.xml", "<width>320", "<width>640"),
        ["Annotations/coffee.xml", "640x213", "320x213"],
    ),
    "no label": ("labelme", edit("coffee.json", '"label"', '"lab"'), ["coffee.json", "label"]),
    "unknown category": (
        "cvat", edit("annotations/instances_default.json", '"category_id": 4', '"category_id": 9'),
        ["instances_default.json", "unknown category_id (9)"],
    ),
    "several formats": (
        "labelme", both,
        ["LabelMe JSON (astronaut.json)", "Pascal VOC XML (coffee.xml)", "--format"],
    ),
    "json cut off": ("labelme", edit("coffee.json", "]]", ""), ["coffee.json", "can't be read"]),
    "unknown json": (
        "cvat", edit("annotations/instances_default.json", '"images"', '"photos"'),
        ["holds no annotations", "there are instances_default.json"],
    ),
    "no number": ("labelme", edit("coffee.json", "155.0", "NaN"), ["coffee.json", "invalid"]),
    "far away": ("labelme", edit("coffee.json", "155.0", "1e300"), ["coffee.json", "overflow"]),
    "cvat's own": ("cvat", cvat_xml, ["annotations.xml", "export COCO 1.0"]),
    "label studio's own": ("label_studio", tasks, ["result.json", "export COCO"]),
    "nothing": ("labelme", remove_annotations, ["holds no annotations"]),
    "no objects": ("labelme", draw_nothing, ["no objects"]),
    "annotated twice": (
        "cvat", annotate_again,
        ["annotated in both", "instances_default.json", "other.json"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", BAD)
def test_bad_input_is_one_sentence_that_names_the_file(tmp_path, damage, capsys):
    kind, change, words = BAD[damage]
    source = arrange(kind, tmp_path / "labeled")
    change(source)
    main = load_tool("convert_data").main
    assert run_tool(main, [str(source), str(tmp_path / "data")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and all(word in line for word in words), line
    assert [*tmp_path.iterdir()] == [source]


def test_a_format_can_be_chosen(source, tmp_path):
    both(source)
    convert(source, tmp_path / "data", kind="voc")
    assert objects(tmp_path / "data").keys() == {"coffee"}


def test_pascal_voc_needs_no_size(tmp_path):
    source = arrange("voc", tmp_path / "labeled")
    edit("Annotations/coffee.xml", "size>", "extent>")(source)
    convert(source, tmp_path / "data")
    ((_, image, _),) = objects(tmp_path / "data")["coffee"]
    assert (image["width"], image["height"]) == (320, 213)


def test_what_is_there_stays(source, tmp_path):
    out = tmp_path / "data"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(DatasetError, match="is not empty"):
        convert(source, out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()
    assert isinstance(convert(source, out), Dataset)


# ------------------------------------------------------------------------------------- the tool


def test_the_tool_checks_what_it_has_written(source, tmp_path, capsys):
    add_copy(source, "coffee")
    out = tmp_path / "data"
    load_tool("convert_data").main([str(source), str(out), "--label-maps", "--val", "0.3"])
    printed = capsys.readouterr().out
    assert "warning: " in printed and "coffee.jpg = " in printed
    assert "8 objects, 8 with an outline" in printed
    assert "classes: 'cat', 'cup', 'person', 'rocket'" in printed
    rows = [
        line.split() for line in printed.splitlines() if " objects " in line or "pixels" in line
    ]
    assert [row[0] for row in rows if row[0] in ("train", "val")] == ["train", "val"] * 2
    assert [row[-2] for row in rows if row[0] in ("train", "val")] == ["0"] * 4


def test_the_tool_says_what_the_check_finds(tmp_path, capsys):
    source = arrange("cvat", tmp_path / "labeled")
    labels = source / "annotations/instances_default.json"
    content = json.loads(labels.read_text())
    for one in content["annotations"]:
        one["segmentation"] = [[1, 1, 2, 2]]
    labels.write_text(json.dumps(content))
    main = load_tool("convert_data").main
    assert run_tool(main, [str(source), str(tmp_path / "data")]) == 2
    printed = capsys.readouterr()
    assert "error: " in printed.err and "1 kind of error" in printed.err
    assert "less than three points" in printed.out


def test_a_rectangle_of_labelme_is_an_outline_where_other_files_have_polygons(tmp_path):
    arrange("labelme", tmp_path / "labeled")
    for path in (tmp_path / "labeled").rglob("chelsea.json"):
        content = json.loads(path.read_text())
        content["shapes"] = [
            dict(label="cat", shape_type="rectangle", points=[[10, 20], [110, 70]])
        ]
        path.write_text(json.dumps(content))
    dataset = convert(tmp_path / "labeled", tmp_path / "out")
    assert dataset.has_outlines
    found = [one for s in [s for v in dataset.splits.values() for s in v] for one in s.objects
             if s.image.stem == "chelsea"]  # fmt: skip
    ((_, one),) = found
    assert one["segmentation"] == [[10, 20, 10, 70, 110, 70, 110, 20]]


@pytest.mark.parametrize("label", [{}, {"label": ""}])
def test_a_shape_without_a_label_is_named(tmp_path, label):
    arrange("labelme", tmp_path / "labeled")
    (path,) = (tmp_path / "labeled").rglob("chelsea.json")
    content = json.loads(path.read_text())
    del content["shapes"][0]["label"]
    content["shapes"][0] |= label
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="chelsea.json .*shape 1 has no label"):
        convert(tmp_path / "labeled", tmp_path / "out")
