"""Images and annotations that are odd but no mistake: each is trained on and tested, or refused.

The table of docs/custom_data.md has a row for each. Of most oddities one form is trained on in
every run, the others where slow tests are run.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope
from PIL import Image
from pycocotools import mask as masks

from fcvit_mm import engine
from fcvit_mm.datasets import checks, coco_writer
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.errors import ConfigError
from helpers import ROOT
from helpers.models import make_smallest
from helpers.stress import slow

CONFIGS = {
    "detection": ROOT / "configs/detection/mask_rcnn_fcvit_tiny_shapes.py",
    "segmentation": ROOT / "configs/segmentation/semantic_fpn_fcvit_tiny_shapes.py",
}
SMALL = {
    "train_cfg.max_iters": 2,
    "train_cfg.val_interval": 2,
    "train_dataloader.batch_size": 2,
    "train_dataloader.sampler": dict(type="DefaultSampler", shuffle=False),
    "default_hooks.checkpoint.interval": 2,
    "default_hooks.checkpoint.save_best": None,
    "default_hooks.logger.interval": 1,
    **{
        f"{task}_dataloader.{key}": value
        for task in ("train", "val", "test")
        for key, value in {"num_workers": 0, "persistent_workers": False}.items()
    },
}
# Of the padding of a segmentor's images.
SIZE = {"detection": {}, "segmentation": {"model.data_preprocessor.size": (64, 64)}}
KEEP = {"train_dataloader.dataset.filter_cfg": None}
MAIN = {"detection": "coco/segm_mAP", "segmentation": "mIoU"}


@pytest.fixture
def data(example_data, tmp_path, monkeypatch) -> Path:
    """A copy of four images to train on and two to test, in the current directory."""
    source = example_data / "data/shapes"
    folder = tmp_path / "data/shapes"
    for split, number in ("train", 4), ("val", 2):
        for kind in ("images", "label_maps"):
            (folder / kind / split).mkdir(parents=True)
            for i in range(number):
                name = f"{kind}/{split}/{i:05}.png"
                shutil.copyfile(source / name, folder / name)
        name = f"annotations/instances_{split}.json"
        content = json.loads((source / name).read_text())
        content["images"] = content["images"][:number]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] <= number]
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    # MMEngine formats the config for every log and checkpoint, which takes most of the time
    monkeypatch.setattr(Config, "pretty_text", "")
    return folder


def config(task: str, work_dir: str, options: dict[str, Any]) -> Config:
    cfg = load_config(str(CONFIGS[task]), SMALL | SIZE[task] | options, work_dir)
    make_smallest(cfg.model)
    return cfg


def train_and_test(task: str, **options: Any) -> float:
    """Train for two iterations, test; returns the main metric. A loss that is not finite raises."""
    runner = engine.train(config(task, "run", options))
    losses = runner.message_hub.get_scalar("train/loss").data[0]
    assert len(losses) == 2 and np.isfinite(losses).all()
    for name, value in runner.model.state_dict().items():
        assert value.isfinite().all(), name
    metrics = engine.test(config(task, "tested", options | {"load_from": "run/iter_2.pth"}))
    assert metrics[MAIN[task]] == runner.message_hub.get_scalar(f"val/{MAIN[task]}").current()
    return metrics[MAIN[task]]


def edit(data: Path, change: Callable[[dict], Any], splits: tuple[str, ...] = ("train", "val")):
    """Change the annotation files."""
    for split in splits:
        path = data / f"annotations/instances_{split}.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))


def warnings(task: str, **options: Any) -> list[str]:
    loaders = ("train_dataloader", "val_dataloader")
    reports = checks.check(config(task, "run", options), loaders)
    assert [report.errors for report in reports] == [[], []]
    return [warning for report in reports for warning in report.warnings]


# ------------------------------------------------------------------------------- annotations


def without_objects(*images: int) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] not in images]

    return change


@pytest.mark.official
@pytest.mark.parametrize("images", [slow((1,), id="image"), pytest.param((1, 2), id="batch")])
def test_images_without_objects(data, images):
    """They are left out where the config filters them, and trained on as ground elsewhere."""
    edit(data, without_objects(*images), ("train",))
    edit(data, without_objects(1), ("val",))
    assert train_and_test("detection", **KEEP) >= 0


@pytest.mark.official
@pytest.mark.parametrize("images", [slow((0,), id="image"), pytest.param((0, 1), id="batch")])
def test_images_without_a_labeled_pixel(data, images):
    for split in ("train", "val"):
        for i in images[: 1 if split == "val" else None]:
            Image.fromarray(np.full((64, 64), 255, np.uint8)).save(
                data / f"label_maps/{split}/{i:05}.png"
            )
    assert train_and_test("segmentation") >= 0


@pytest.mark.official
@pytest.mark.parametrize("task", CONFIGS)
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_epoch_without_annotations_is_refused(data, task, split):
    edit(data, lambda content: content.update(annotations=[]), (split,))
    for path in (data / "label_maps" / split).iterdir():
        Image.fromarray(np.full((64, 64), 255, np.uint8)).save(path)
    file = f"annotations/instances_{split}.json" if task == "detection" else f"label_maps/{split}"
    with pytest.raises(ConfigError, match=f"data/shapes/{file}: nothing of any class; correct"):
        train_and_test(task, **(KEEP if task == "detection" else {}))


@pytest.mark.official
@pytest.mark.parametrize("task", [slow("detection"), "segmentation"])
def test_a_class_that_never_occurs(data, task):
    """A warning; it has no share in the mean of the metric."""
    edit(
        data,
        lambda content: content.update(
            annotations=[a for a in content["annotations"] if a["category_id"] != 4]
        ),
    )
    for path in (data / "label_maps").rglob("*.png"):
        labels = np.array(Image.open(path))
        labels[labels == 4] = 0
        Image.fromarray(labels).save(path)
    (warning, _) = warnings(task)
    assert warning.endswith("classes that never occur: 'star'; add examples")
    assert 0 <= train_and_test(task) <= 100


def box(content: dict, index: int, values: list[float], area: float | None = None) -> None:
    content["annotations"][index].update(bbox=values)
    if area is not None:
        content["annotations"][index].update(area=area)


@pytest.mark.official
def test_boxes_outside_of_the_image_or_without_area(data):
    def change(content: dict) -> None:
        box(content, 0, [-20, -20, 50, 50])
        box(content, 1, [200, 200, 10, 10])
        box(content, 2, [10, 10, 0, 10], 0)
        box(content, 3, [10, 10, 10, -10])

    edit(data, change)
    found = [warning for warning in warnings("detection") if "outside" in warning]
    assert len(found) == 2
    assert "smaller than a pixel or wholly outside of their image: id 2 (bbox" in found[0]
    assert "id 3" in found[0] and "id 4" in found[0] and "id 1 " not in found[0]
    assert train_and_test("detection") >= 0


# ------------------------------------------------------------------------------------ crowds


def crowd(form: str, size: tuple[int, int] = (64, 64)) -> dict[str, Any]:
    """A crowd over a quarter of an image."""
    mask = np.zeros(size[::-1], bool)
    mask[10:42, 20:52] = True
    one = coco_writer.annotation(mask, 1)
    if form == "uncompressed":
        one = coco_writer.annotation(mask, 1, iscrowd=True)
    elif form == "compressed":
        rle = masks.encode(np.asfortranarray(mask.astype(np.uint8)))
        one["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    return {**one, "iscrowd": 1}


@pytest.mark.official
@pytest.mark.parametrize("form", [slow("polygon"), slow("uncompressed"), "compressed"])
def test_crowds(data, form):
    """One among objects, and an image with nothing else."""

    def change(content: dict) -> None:
        without_objects(1)(content)
        for image_id in (1, 2):
            one = dict(crowd(form), id=1000 + image_id, image_id=image_id)
            content["annotations"].append(one)

    edit(data, change)
    assert train_and_test("detection") >= 0


@pytest.mark.official
@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        (
            {"size": [64, 60], "counts": [10, 3830]},
            "whose RLE is of another size",
        ),
        (
            {"size": [64, 64], "counts": [10, 10]},
            "whose RLE is of another size",
        ),
        (
            {"size": [64, 64], "counts": "0"},
            "whose RLE is of another size",
        ),
        ([[1, 2, 3, 4]], "first polygon has less than three points"),
        ([[], [1, 2, 30, 4, 5, 60]], "first polygon has less than three points"),
    ],
    ids=str,
)
def test_masks_that_can_not_be_read_are_refused(data, segmentation, words):
    """pycocotools decodes the first to what was in memory, or ends the whole process."""

    def change(content: dict) -> None:
        # the evaluation reads it all the same
        box(content, 0, [10, 10, 0, 0], 0)
        content["annotations"][0].update(segmentation=segmentation, iscrowd=1)

    edit(data, change, ("val",))
    with pytest.raises(ConfigError, match=r"instances_val\.json: .*: id 1;") as error:
        train_and_test("detection")
    assert words in str(error.value)


def test_the_runs_of_a_compressed_mask_are_those_that_were_written():
    rng = np.random.default_rng(0)
    for share in (0, 0.01, 0.5, 1):
        mask = rng.random((37, 41)) < share
        mask[5:30, 9:33] |= share > 0
        rle = masks.encode(np.asfortranarray(mask.astype(np.uint8)))
        runs = coco_writer.run_lengths(mask)["counts"]
        assert checks.coco._runs(rle["counts"].decode()) == runs and sum(runs) == mask.size


# ---------------------------------------------------------------------------------- images


def replace(data: Path, image: Any, suffix: str = ".png", **save: Any) -> None:
    """Put an image in the place of the first of both splits, with one object all over it."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    size = image.size
    if save.get("exif") and save["exif"][checks.images.EXIF_ORIENTATION] in checks.images.SIDEWAYS:
        size = size[::-1]
    mask = np.ones(size[::-1], bool)
    for split in ("train", "val"):
        old = data / f"images/{split}/00000.png"
        old.unlink()
        image.save(old.with_suffix(suffix), **save)
        Image.fromarray(mask.astype(np.uint8)).save(data / f"label_maps/{split}/00000.png")

    def change(content: dict) -> None:
        content["images"][0].update(file_name=f"00000{suffix}", width=size[0], height=size[1])
        without_objects(1)(content)
        content["annotations"].append(dict(coco_writer.annotation(mask, 1), id=1000, image_id=1))

    edit(data, change)


def others(data: Path, suffix: str) -> dict[str, Any]:
    """A segmentor's images are all of one kind; says so in its config."""
    if suffix == ".png":
        return {}
    for path in [*(data / "images").rglob("*.png")]:
        Image.open(path).convert("RGB").save(path.with_suffix(suffix))
        path.unlink()
    return {f"{task}_dataloader.dataset.img_suffix": suffix for task in ("train", "val", "test")}


def noise(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


THIN = [(1, 1), (2000, 1), (1, 2000)]


@pytest.mark.official
@pytest.mark.parametrize(
    "size",
    [pytest.param(THIN[0], id=str(THIN[0])), *(slow(size, id=str(size)) for size in THIN[1:])],
)
def test_a_detector_is_tested_on_images_of_one_pixel_and_one_row(data, size):
    """And trained without them, by our configs' filter_cfg."""
    replace(data, noise(*size[::-1], 3))
    assert train_and_test("detection") >= 0


@pytest.mark.official
@pytest.mark.parametrize("task", CONFIGS)
@pytest.mark.parametrize("size", THIN, ids=str)
def test_training_on_images_of_one_pixel_and_one_row_is_refused(data, task, size):
    """They would be flipped half of the time, and then be an array that PyTorch refuses."""
    replace(data, noise(*size[::-1], 3))
    with pytest.raises(ConfigError) as error:
        train_and_test(task, **(KEEP if task == "detection" else {}))
    assert "data/shapes/images/train: images that the pipeline shrinks to a side of one pixel" in (
        str(error.value)
    )
    assert ": 00000.png ({}x{}); crop or remove them".format(*size) in str(error.value)


@pytest.mark.official
def test_testing_on_label_maps_of_one_row_is_refused(data):
    replace(data, noise(1, 2000, 3))
    (report,) = checks.check(config("segmentation", "run", {}), ("val_dataloader",))
    (error,) = report.errors
    assert error.startswith("data/shapes/label_maps/val: label maps with a side of one pixel")
    assert error.endswith(": 00000.png; enlarge or remove them and their images")


@pytest.mark.parametrize(
    ("step", "flip", "size", "suits"),
    [
        (dict(type="Resize", scale=(1333, 800), keep_ratio=True), False, (1, 2000), True),
        (dict(type="Resize", scale=(1333, 800), keep_ratio=True), True, (1, 2000), False),
        (dict(type="Resize", scale=(1333, 800), keep_ratio=True), True, (1, 1), True),
        (dict(type="Resize", scale=(1333, 800), keep_ratio=True), False, (3000, 1), False),
        (dict(type="Resize", scale=(1333, 800), keep_ratio=False), False, (3000, 1), True),
        (dict(type="RandomResize", scale=(512, 512), ratio_range=(0.1, 2.0), keep_ratio=True),
         True, (640, 10), False),
        (dict(type="RandomChoiceResize", scales=[(64, 64), (512, 512)], keep_ratio=True),
         False, (1, 200), False),
    ],
)  # fmt: skip
def test_what_a_pipeline_leaves_of_an_image(step, flip, size, suits):
    """As its own resizing has it."""
    steps = [step, *([dict(type="RandomFlip", prob=0.5)] if flip else [])]
    assert checks.images.suits(size, steps) == suits
    init_default_scope("mmdet")
    if step["type"] == "Resize" and not flip:
        resize = TRANSFORMS.build(dict(step, _scope_="mmdet"))
        image = np.zeros((size[1], size[0], 3), np.uint8)
        if suits:
            assert min(resize(dict(img=image))["img"].shape[:2]) >= 1
        else:
            with pytest.raises(cv2.error):
                resize(dict(img=image))


def rotated() -> dict[str, Any]:
    exif = Image.Exif()
    exif[checks.images.EXIF_ORIENTATION] = 6
    return dict(exif=exif)


def transparent() -> np.ndarray:
    image = noise(64, 64, 4)
    image[:32, :, 3] = 0
    return image


# image, suffix of its file, how it is saved, what the check warns of, and the RGB that is loaded
GRAY, DEEP, ALPHA = noise(64, 64), noise(64, 64, dtype=np.uint16), transparent()
SMOOTH = cv2.resize(noise(4, 4, 3), (64, 64), interpolation=cv2.INTER_CUBIC)
IMAGES: dict[str, tuple[Any, str, dict, str, np.ndarray]] = {
    "gray": (GRAY, ".png", {}, "", np.dstack([GRAY] * 3)),
    "16 bits": (DEEP, ".png", {}, "of which the upper 8 are used", np.dstack([DEEP >> 8] * 3)),
    "alpha": (ALPHA, ".png", {}, "with transparency, which is ignored", ALPHA[..., :3]),
    "CMYK": (Image.fromarray(SMOOTH).convert("CMYK"), ".jpg", dict(quality=95), "", SMOOTH),
    "rotated": (
        Image.fromarray(SMOOTH[:48]), ".jpg", rotated(), "", np.rot90(SMOOTH[:48], -1)
    ),
}  # fmt: skip
TRAINED = [("detection", "rotated"), ("segmentation", "16 bits")]


@pytest.mark.official
@pytest.mark.parametrize("task", CONFIGS)
@pytest.mark.parametrize("kind", IMAGES)
def test_images_of_other_kinds(data, task, kind):
    image, suffix, save, words, expected = IMAGES[kind]
    replace(data, image, suffix, **save)
    options = others(data, suffix) if task == "segmentation" else {}
    found = [warning for warning in warnings(task, **options) if "images" in warning]
    assert len(found) == (2 if words else 0)
    assert all(f"{words}: 00000{suffix};" in warning for warning in found)
    cfg = config(task, "run", options)
    cfg.train_dataloader.dataset.pipeline = cfg.train_dataloader.dataset.pipeline[:1]
    dataset = DATASETS.build(dict(cfg.train_dataloader.dataset, _scope_=cfg.default_scope))
    loaded = dataset[0]["img"][..., ::-1].astype(int)
    # but for what JPEG changes
    assert np.abs(loaded - expected).max() <= (0 if suffix == ".png" else 20)


@pytest.mark.official
@pytest.mark.parametrize(
    ("task", "kind"),
    [
        slow(task, kind) if (task, kind) not in TRAINED else (task, kind)
        for task in CONFIGS
        for kind in IMAGES
    ],
)
def test_training_on_images_of_other_kinds(data, task, kind):
    image, suffix, save, *_ = IMAGES[kind]
    replace(data, image, suffix, **save)
    assert train_and_test(task, **(others(data, suffix) if task == "segmentation" else {})) >= 0


@pytest.mark.official
@pytest.mark.parametrize("damage", ["size before the rotation", "32 bits"])
def test_images_that_are_refused(data, damage):
    if damage == "32 bits":
        replace(data, noise(64, 64).astype(np.float32), ".tif")
    else:
        replace(data, *IMAGES["rotated"][:2], **rotated())
        edit(data, lambda content: content["images"][0].update(width=64, height=48), ("train",))
    words = {
        "32 bits": r"OpenCV does not read: 00000\.tif; store 8 bits",
        "size before the rotation": r"00000\.jpg \(48x64, annotated 64x48\); correct width",
    }
    with pytest.raises(ConfigError, match=words[damage]):
        train_and_test("detection")
