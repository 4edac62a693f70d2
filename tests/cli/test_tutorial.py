"""Data of one's own, from the folder to drawn predictions: the tutorial, and each task.

The trainings are cut to one epoch of small images.
"""

import json
import os
import re
import shlex
from pathlib import Path

import pytest
import torch

from fcvit_mm.utils import work_dir
from helpers import ROOT
from helpers.images import read
from helpers.tools import load_tool

PAGE = (ROOT / "docs/tutorial.md").read_text()
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
FIRST, LATER = (text.splitlines() for language, text in BLOCKS if language == "bash")
PROGRAM, CONFIG = (text for language, text in BLOCKS if language == "python")
SHORT = ["--epochs", "1", "--size", "64"]
NO_WORKERS = [
    f"{loader}_dataloader.{option}"
    for loader in ("train", "val", "test")
    for option in ("num_workers=0", "persistent_workers=False")
]


def run(command: str, *more: str) -> None:
    fcvit, name, *words = shlex.split(command)
    assert fcvit == "fcvit"
    load_tool(name).main([*words, *more])


def metric(folder: Path, loop: str, name: str) -> str:
    """The last value that a log of a work directory has for a metric."""
    logs = [path.read_text() for path in sorted(folder.glob("*/*.log"))]
    return re.findall(rf"\({loop}\).*{name}: (\S+)", "\n".join(logs))[-1]


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A directory with the photographs where a clone has them."""
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_init_writes_the_config_that_the_page_shows(clone, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for command in FIRST[:2]:
        run(command)
    assert len(FIRST) == 5 and Path("photographs.py").read_text() == CONFIG


@pytest.mark.slow
def test_the_tutorial_goes_from_photographs_to_an_exported_model(clone, capsys):
    assert FIRST[1].startswith("fcvit init") and FIRST[3].startswith("fcvit infer")
    for command in FIRST:
        run(command, *(SHORT if "init" in command else ()))
    folder = Path("work_dirs/photographs")
    for path in Path("data/photographs/images").rglob("*.jpg"):
        drawn = folder / "infer/drawn" / path.relative_to("data/photographs/images")
        assert read(str(drawn)).shape == read(str(path)).shape
    detections = json.loads((folder / "infer/detections.json").read_text())
    assert [one["name"] for one in detections["categories"]] == ["cat", "cup", "person", "rocket"]
    assert len(detections["images"]) == 6 and Path("photographs.onnx").stat().st_size > 1e6
    assert capsys.readouterr().out.splitlines()[-1].startswith("saved photographs.onnx: ")

    test, matrix, app = LATER
    run(test)
    assert metric(folder, "test", "bbox_mAP") == metric(folder, "val", "bbox_mAP")
    run(matrix)
    assert (folder / "confusion.png").is_file()
    args = load_tool("app").parse_args(shlex.split(app)[2:])
    assert Path(args.checkpoint) == work_dir.find(folder)[1]
    exec(PROGRAM, {})


@pytest.mark.parametrize(
    ("task", "images", "options", "name"),
    [
        ("detection", "shapes/images/val", ["--accumulate", "2"], "coco/bbox_mAP"),
        pytest.param(
            "segmentation", "shapes/images/val", ["--ema"], "mIoU", marks=pytest.mark.slow
        ),
        pytest.param(
            "classification", "shapes_classification/val", [], "accuracy/top1",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_each_task_is_trained_and_tested_by_its_folder(data, task, images, options, name):
    """Detection without outlines: the tutorial has them."""
    for split in ("train", "val") if task == "detection" else ():
        content = json.loads((data / f"annotations/instances_{split}.json").read_text())
        for one in content["annotations"]:
            del one["segmentation"]
        (data / f"annotations/{split}.json").write_text(json.dumps(content))
    folder, images = f"data/{images.split('/')[0]}", Path("data", images)
    load_tool("init").main(
        [folder, "--task", task, "--from-scratch", "--out", "mine.py", *SHORT, *options]
    )
    load_tool("train").main(["mine.py", "--cfg-options", *NO_WORKERS])
    run_folder = Path("work_dirs/mine")
    before = (run_folder / "mine.py").read_text()
    load_tool("test").main([str(run_folder), "--cfg-options", *NO_WORKERS])
    assert metric(run_folder, "val", name) == metric(run_folder, "test", name)
    # the folder can still be trained with
    assert (run_folder / "mine.py").read_text() == before
    load_tool("infer").main([str(run_folder), "--device", "cpu", str(images)])
    drawn = {path.name for path in (run_folder / "infer").rglob("*.png")}
    assert drawn >= {path.name for path in images.rglob("*.png")} > set()
