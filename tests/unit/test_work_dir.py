"""A work directory stands for its config and its best checkpoint, in every tool."""

import argparse
import os
from pathlib import Path

import pytest

from fcvit_mm.utils import work_dir
from fcvit_mm.utils.cli import add_config, parse_model
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.errors import ConfigError

CONFIG = (
    "model = dict(type='A')\nload_from = 'epoch_3.pth'\nresume = True\nwork_dir = 'elsewhere'\n"
)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A work directory with a config and three checkpoints, the last one being written."""
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "parts.py").write_text(CONFIG)
    for age, name in enumerate((".epoch_3.partial-0.pth", "epoch_2.pth", "epoch_10.pth")):
        (folder / name).touch()
        os.utime(folder / name, (1000 - age, 1000 - age))
    return folder


def test_the_best_checkpoint_is_taken_or_else_the_newest_whole_one(folder):
    assert work_dir.find(folder) == (folder / "parts.py", folder / "epoch_2.pth")
    for name in ("best_mIoU_epoch_1.pth", "best_coco_bbox_mAP_epoch_1.pth"):
        (folder / name).touch()
    os.utime(folder / "best_mIoU_epoch_1.pth", (1, 1))
    assert work_dir.find(folder)[1].name == "best_coco_bbox_mAP_epoch_1.pth"


def test_what_is_no_work_directory_is_a_sentence(folder, tmp_path):
    for path in folder.glob("*.pth"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"parts has no checkpoint \(\*\.pth\) yet: train first"):
        work_dir.find(folder)
    with pytest.raises(ConfigError, match=r"parts\.py is no work directory; .* give a checkpoint"):
        work_dir.find(folder / "parts.py")
    with pytest.raises(ConfigError, match="no work directory of one training, .* here: none"):
        load_config(str(tmp_path))
    (folder / "other.py").touch()
    with pytest.raises(ConfigError, match=r"here: other\.py, parts\.py"):
        work_dir.find(folder)


def test_a_work_directory_is_its_config_and_where_results_go(folder):
    cfg = load_config(str(folder), {"model.type": "B"})
    assert cfg.model.type == "B" and cfg.work_dir == str(folder)
    # what the training was resumed from is not the next one's business
    assert cfg.resume is False and cfg.load_from is None
    assert load_config(str(folder), work_dir="other").work_dir == "other"


def parser(*more: tuple[str, str | None]) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    add_config(made, checkpoint=True)
    made.add_argument("--device")
    for name, nargs in more:
        made.add_argument(name, nargs=nargs)
    return made


def test_every_order_of_arguments_means_the_same(folder, capsys):
    """As for infer and similarity_map, which take images, and for export, which takes a file."""
    images = parser(("inputs", "+"))
    found = str(folder / "epoch_2.pth")
    for words, expected in (
        ("{d} a.jpg", (found, ["a.jpg"])),
        ("{d} a.jpg b.jpg c.jpg", (found, ["a.jpg", "b.jpg", "c.jpg"])),
        ("{d} --device cpu a.jpg b.jpg", (found, ["a.jpg", "b.jpg"])),
        ("--device cpu {d} other.pth a.jpg", ("other.pth", ["a.jpg"])),
        ("a.py --device cpu b.pth a.jpg", ("b.pth", ["a.jpg"])),
        ("a.py b --device cpu a.jpg b.jpg", ("b", ["a.jpg", "b.jpg"])),
        ("fcvit_mm::a.py https://x.y/b.pth a.jpg", ("https://x.y/b.pth", ["a.jpg"])),
    ):
        args = parse_model(images, words.format(d=folder).split())
        assert (args.checkpoint, args.inputs) == expected
        assert ("checkpoint: " in capsys.readouterr().err) == (args.checkpoint == found)
    file = parser(("out", None))
    for words, checkpoint in (("{d} a.onnx", found), ("{d} b.pth a.onnx", "b.pth"),
                              ("a.py b.pth a.onnx", "b.pth")):  # fmt: skip
        args = parse_model(file, words.format(d=folder).split())
        assert (args.checkpoint, args.out) == (checkpoint, "a.onnx")


@pytest.mark.parametrize("words", ["a.py", "a.py --device cpu"])
def test_a_config_needs_a_checkpoint(words, capsys):
    with pytest.raises(SystemExit) as end:
        parse_model(parser(), words.split())
    assert end.value.code == 2
    said = "a.py needs a checkpoint, which comes after it; a work directory stands for both"
    assert said in capsys.readouterr().err


def test_a_work_directory_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="^work_dirs/b: there is no such file or work directory"):
        parse_model(parser(), ["work_dirs/b", "image.png"])
