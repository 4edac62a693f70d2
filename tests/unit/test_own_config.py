"""`fcvit init` looks at data of one's own and writes a short config that says what it found."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fcvit_mm.apis.own_config import Choices, make_plan
from fcvit_mm.datasets.own_data import OwnData, look_at
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.errors import ConfigError
from fcvit_mm.utils.options import start_from_scratch
from helpers.tools import load_tool

CLASSES = ("circle", "square", "triangle", "star")


@pytest.fixture
def parts(data) -> Path:
    """The example data as docs/custom_data.md lays them out."""
    for split in ("train", "val"):
        (data / f"annotations/instances_{split}.json").rename(data / f"annotations/{split}.json")
    return data


@pytest.fixture
def edit(parts):
    """Change a list of train.json."""

    def change(key, function) -> Path:
        path = parts / "annotations/train.json"
        content = json.loads(path.read_text())
        content[key] = function(content[key])
        path.write_text(json.dumps(content))
        return parts

    return change


def written(*arguments: object):
    """The config that `fcvit init` writes, as text and as read."""
    out = Path("mine.py")
    out.unlink(missing_ok=True)
    load_tool("init").main([*map(str, arguments), "--out", str(out)])
    return out.read_text(), load_config(str(out))


def test_a_detector_gets_what_the_data_have(parts, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    text, cfg = written("data/shapes", "--task", "detection", "--from-scratch")
    assert len(text.splitlines()) <= 25
    backbone = cfg.model.backbone
    assert (backbone.arch, backbone.init_cfg, backbone.layer_scale_init) == ("tiny", None, 0.1)
    assert cfg.model.roi_head.bbox_head.num_classes == cfg.model.roi_head.mask_head.num_classes == 4
    assert cfg.train_dataloader.dataset.metainfo.classes == CLASSES
    assert cfg.test_evaluator.ann_file == "data/shapes/annotations/val.json"
    # 300 iterations of two of the eight images, which have 64 pixels
    assert cfg.train_cfg.max_epochs == 75 and cfg.train_dataloader.batch_size == 2
    assert cfg.auto_scale_lr.base_batch_size == 2 and cfg.optim_wrapper.optimizer.lr == 0.001
    said = capsys.readouterr().out
    assert "data: 8 training and 4 validation images; classes: circle, square" in said
    assert "from random weights" in said and "fcvit train mine.py" in said
    assert "pretrained/" not in said


def test_one_option_changes_the_size_in_all_pipelines(parts):
    written("data/shapes", "--task", "detection")
    cfg = load_config("mine.py", {"resize.scale": (96, 96)})
    text = cfg.pretty_text
    assert text.count("96,\n") == 2 * text.count("type='Resize'") > 8
    cfg.dump("dumped.py")
    again = load_config("dumped.py", {"resize.scale": (32, 32)}).pretty_text
    assert again == text.replace("96,", "32,")


def test_without_outlines_it_finds_boxes(edit):
    parts = edit("annotations", lambda found: [{**one, "segmentation": []} for one in found])
    text, cfg = written(parts, "--task", "detection", "--ema")
    assert len(text.splitlines()) <= 25
    assert cfg.model.type == "FasterRCNN" and cfg.model.roi_head.mask_head is None
    assert cfg.val_evaluator.metric == ["bbox"] and cfg.tta_model.type == "DetTTAModel"
    assert "with_mask" not in str(cfg.train_dataloader)
    assert [hook.type for hook in cfg.custom_hooks] == ["EMAHook", "SyncBuffersHook"]


def test_classes_without_an_object_are_left_out(edit, capsys):
    parts = edit("categories", lambda found: [{"id": 0, "name": "none"}, *found])
    _, cfg = written(parts, "--task", "detection")
    assert cfg.train_dataloader.dataset.metainfo.classes == CLASSES
    assert "note: left out, as no training image has it: none" in capsys.readouterr().out


def test_a_segmentor_takes_its_classes_from_where_they_are_named(parts, capsys):
    _, cfg = written(parts, "--task", "segmentation", "--arch", "s12", "--size", 96)
    # as fcvit convert_data writes label maps
    names = cfg.train_dataloader.dataset.metainfo.classes
    assert names == ("background", *CLASSES)
    assert cfg.model.decode_head.num_classes == 5 and cfg.model.neck.in_channels[0] == 64
    assert cfg.model.data_preprocessor.size == (96, 96) and cfg.crop.crop_size == (96, 96)
    assert cfg.train_dataloader.dataset.img_suffix == ".png"
    assert "pretrained/fcvit_s12.pth is not there" in capsys.readouterr().out
    (parts / "classes.txt").write_text("ground\na\nb\n\nc\nd\n")
    text, cfg = written(parts, "--task", "segmentation", "--ema")
    assert cfg.train_dataloader.dataset.metainfo.classes == ("ground", "a", "b", "c", "d")
    assert len(text.splitlines()) <= 25
    (parts / "classes.txt").unlink()
    shutil.rmtree(parts / "annotations")
    _, cfg = written(parts, "--task", "segmentation")
    assert cfg.train_dataloader.dataset.metainfo.classes == tuple(f"class_{i}" for i in range(5))
    assert f"note: no {parts}/classes.txt with a name per line" in capsys.readouterr().out


def test_a_classifier_learns_its_folders(data):
    text, cfg = written("data/shapes_classification", "--task", "classification", "--accumulate", 2)
    assert len(text.splitlines()) <= 25
    assert cfg.train_dataloader.dataset.metainfo.classes == tuple(sorted(CLASSES))
    assert cfg.model.head.num_classes == cfg.model.data_preprocessor.num_classes == 4
    assert cfg.model.head.in_channels == (512 if torch.cuda.is_available() else 320)
    assert cfg.optim_wrapper.accumulative_counts == 2 and cfg.val_evaluator.topk == (1,)


def test_what_fits_depends_on_the_machine_and_on_the_number_of_images(monkeypatch):
    few = OwnData("detection", Path("a"), ("b",), 6, 2, 4000.0, masks=True)
    many = OwnData("detection", Path("a"), ("b",), 20000, 2000, 500.0, masks=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plan = make_plan(few, Choices())
    assert (plan.arch, plan.size, plan.batch, plan.epochs, plan.is_small) == (
        "tiny", 320, 2, 100, True)  # fmt: skip
    assert make_plan(many, Choices()).epochs == 12
    assert make_plan(many, Choices(size=64, epochs=3)).iterations == 30000
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for memory, batches in ((80e9, 16), (12e9, 5), (2e9, 2)):
        properties = SimpleNamespace(total_memory=memory)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, p=properties: p)
        assert make_plan(few, Choices()).batch == min(6, batches)
        plan = make_plan(many, Choices(size=640))
        assert (plan.arch, plan.batch, plan.is_small) == ("s12", batches, False)
    # four batches of a step count as one
    assert make_plan(many, Choices(accumulate=4)).lr == 2 * make_plan(many, Choices()).lr
    with pytest.raises(ConfigError, match="--size 100 must be a multiple of 32"):
        make_plan(few, Choices(size=100))


def refused(root: Path, task: str) -> str:
    with pytest.raises(ConfigError) as error:
        look_at(root, task)
    return str(error.value)


def test_data_laid_out_in_another_way_are_a_sentence(edit, tmp_path):
    parts = edit("images", lambda found: [{"id": one["id"]} for one in found])
    assert "is no file in COCO's format: each of its images must have width" in refused(
        parts, "detection"
    )
    (parts / "annotations/train.json").write_text("<xml>")
    assert "fcvit convert_data" in refused(parts, "detection")
    (parts / "annotations/train.json").unlink()
    assert "train.json does not exist" in refused(parts, "detection")
    assert "is no folder" in refused(tmp_path / "absent", "detection")
    assert "train has not one folder per class" in refused(parts, "classification")
    (parts / "images/train/a.jpg").touch()
    assert "several kinds (.jpg, .png)" in refused(parts, "segmentation")
    (parts / "images/train/a.jpg").unlink()
    for path in (parts / "label_maps/train").iterdir():
        Image.fromarray(np.full((64, 64), 255, np.uint8)).save(path)
    assert "no class but []; 255 is ignored" in refused(parts, "segmentation")
    shutil.rmtree(parts / "label_maps/val")
    assert "label_maps/val has no label maps" in refused(parts, "segmentation")
    shutil.rmtree(parts / "images/val")
    assert "images/val has no images" in refused(parts, "segmentation")
    folders = tmp_path / "data/shapes_classification"
    (folders / "val/star").rename(folders / "val/moon")
    assert "only one has moon, star" in refused(folders, "classification")


def test_a_config_that_is_there_is_not_overwritten(parts):
    Path("shapes.py").write_text("mine")
    with pytest.raises(ConfigError, match=r"shapes\.py is there already"):
        load_tool("init").main(["data/shapes", "--task", "detection"])
    assert Path("shapes.py").read_text() == "mine"


def test_from_scratch_needs_no_weights_and_learns_from_the_first_step(tmp_path):
    cfg = load_config("fcvit_mm::detection/mask_rcnn_fcvit_s12_coco.py", {"load_from": "a.pth"})
    start_from_scratch(cfg)
    backbone = cfg.model.backbone
    assert (backbone.init_cfg, backbone.layer_scale_init, cfg.load_from) == (None, 0.1, None)
    backbone.type = "ResNet"
    with pytest.raises(ConfigError, match="--from-scratch: .* has no FCViT"):
        start_from_scratch(cfg)
