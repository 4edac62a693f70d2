"""tools/demos/demo.py as a subprocess, in a very short form, and the parts that draw and count."""

import re
import signal
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, init_default_scope

from fcvit_mm.datasets import coins
from fcvit_mm.demos import demo, drawing, training
from fcvit_mm.engine.hooks.stop_hook import StopHook
from fcvit_mm.utils import work_dir
from fcvit_mm.utils.config import load_config
from helpers import ROOT, warm
from helpers.tools import load_tool


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return warm.run(["tools/demos/demo.py", *arguments], ROOT)


def assert_image(path: str) -> None:
    image = cv2.imread(str(ROOT / path))
    assert image is not None, f"{path} is not an image"
    assert min(image.shape[:2]) > 300
    assert image.std() > 20 and len(np.unique(image.reshape(-1, 3), axis=0)) > 100


@pytest.mark.parametrize(
    ("options", "figures", "products"),
    [
        ([], r"box mAP 0\.\d{3}, mask mAP 0\.\d{3}", ["predictions", "curves"]),
        pytest.param(
            ["--task", "segmentation"],
            r"mIoU 0\.\d{3}",
            ["predictions", "curves"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--data", "coins"],
            r"box AP50 [01]\.\d{3}, mask AP50 [01]\.\d{3}",
            ["the row", "predictions", "curves"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_demo(options: list[str], figures: str, products: list[str], tmp_path: Path) -> None:
    images = [] if "coins" in options else ["--images", "8", "3"]
    folders = ["--work-dir", str(tmp_path / "work"), "--data-root", str(tmp_path / "data")]
    done = run([*options, *images, *folders, "--iterations", "3"])
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()

    # the log of any training, which ends with the command that tests the best checkpoint
    (command,) = re.findall("to test it: fcvit test (.*)", done.stdout)
    config, weights = work_dir.find(ROOT / command)
    assert load_config(str(config)) and weights.is_file()
    ending = lines[-9:]
    assert [line for line in ending if re.fullmatch(rf"{figures} on \d+ held-out .*", line)]
    named = dict(line.strip().split(": ") for line in ending if ".png" in line)
    assert [*named] == products
    for path in named.values():
        assert_image(path.strip())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--task", "poetry"], "invalid choice: 'poetry'"),
        (["--task", "segmentation", "--data", "coins"], "no demonstration of segmentation with"),
        (["--iterations", "0"], "0 must be a whole number of at least 1"),
        (["--seed", "-1"], "-1 must be a whole number of at least 0"),
        (["--data", "coins", "--images", "3", "1"], "the number of images is fixed"),
    ],
)
def test_bad_options(options: list[str], said: str, tmp_path: Path) -> None:
    done = run([*options, "--work-dir", str(tmp_path / "w"), "--data-root", str(tmp_path / "d")])
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr


def test_data_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = run(["--work-dir", str(tmp_path / "work"), "--data-root", str(tmp_path)])
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "is not empty" in done.stderr
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("iterations", [1, 2, 7, 100, 1000])
@pytest.mark.parametrize("name", demo.DEMOS)
def test_shorter_or_longer_schedules_keep_their_proportions(
    name: tuple[str, str], iterations: int
) -> None:
    cfg = load_config(demo.DEMOS[name].config)
    share = iterations / cfg.train_cfg.max_iters
    ends = [scheduler.end for scheduler in cfg.param_scheduler]
    training.shorten(cfg, iterations)
    assert cfg.train_cfg.max_iters == iterations
    assert 1 <= cfg.train_cfg.val_interval <= iterations
    assert all(scheduler.begin < scheduler.end for scheduler in cfg.param_scheduler)
    assert cfg.param_scheduler[-1].end == iterations
    if iterations == 1000:
        for scheduler, end in zip(cfg.param_scheduler, ends, strict=True):
            assert abs(scheduler.end - end * share) < 1


def disc(width: int, height: int, x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width] + 0.5
    return np.hypot(columns - x, rows - y) < radius


def test_the_row_of_coins_is_an_item_of_their_dataset(tmp_path: Path) -> None:
    coins.generate(tmp_path)
    cfg = load_config(demo.DEMOS["detection", "coins"].config)
    training.move_data(cfg, tmp_path)
    init_default_scope("mmdet")
    item = coins.row_item(DATASETS.build(cfg.val_dataloader.dataset), tmp_path)
    row = cv2.imread(str(tmp_path / "row.png")).transpose(2, 0, 1)
    np.testing.assert_array_equal(item["inputs"].numpy(), row)
    objects = item["data_samples"].gt_instances
    masks = torch.from_numpy(objects.masks.to_ndarray()).bool()
    assert len(masks) == 6 and not objects.labels.any() and not (masks.sum(0) > 1).any()
    for box, mask in zip(objects.bboxes.tensor.tolist(), masks, strict=True):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_what_is_found_of_the_coins() -> None:
    discs = [(9.0, 60.0, 9.0), (30.0, 40.0, 22.0), (120.0, 40.0, 20.0)]
    objects = np.array([disc(384, 78, *one) for one in discs])
    smaller = np.array([disc(384, 78, x, y, r * 0.6) for x, y, r in discs])
    assert drawing.count_found(objects, objects[::-1]) == 3
    assert drawing.count_found(objects, objects[1:]) == 2
    assert drawing.count_found(objects, objects[:0]) == drawing.count_found(objects, smaller) == 0


def test_a_stopped_demo_names_the_command_that_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(StopHook, "_agree", lambda self: signal.SIGTERM)
    folders = ["--work-dir", str(tmp_path / "work"), "--data-root", str(tmp_path / "data")]
    numbers = ["--images", "4", "2", "--iterations", "3"]
    with pytest.raises(SystemExit) as end:
        load_tool("demo").main(["--task", "segmentation", *folders, *numbers])
    assert end.value.code == 143
    last = capsys.readouterr().err.splitlines()[-1]
    said, _, command = last.partition("; go on with fcvit train ")
    assert said == "stopped at iteration 0" and command.endswith(" --resume")
    load_tool("train").main([*command.split(), "--check"])
