"""The tools that write and check data and checkpoints, as subprocesses."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fcvit_mm import read_checkpoint
from fcvit_mm.datasets import shapes
from helpers import ROOT, warm
from helpers.images import contents
from helpers.released import timm_checkpoint
from helpers.tools import TASKS, assert_sentence, free_port


@pytest.fixture
def broken(example_data) -> Iterator[str]:
    """The example data of the tools with an image that is no image; its name."""
    path = example_data / "data/shapes/images/train/00003.png"
    content = path.read_bytes()
    path.write_text("<html>404</html>")
    yield "00003.png (not an image)"
    path.write_bytes(content)


def test_check_data_lists_all_and_ends_with_status_2(tool, broken):
    result = tool("check_data.py", TASKS["detection"])
    assert_sentence(result, "1 kind of error", TASKS["detection"].name)
    lines = result.stdout.splitlines()
    (line,) = [line for line in lines if line.startswith("train: error: ")]
    assert broken in line
    rows = [line.split() for line in lines if re.search(r"\d objects ", line)]
    assert [row[0] for row in rows] == ["train", "val,"]
    assert [row[-2:] for row in rows] == [["1", "0"], ["0", "0"]]


def test_two_processes_end_each_by_itself_before_training(example_data, broken, tmp_path):
    """One checks for both; without torchrun nobody ends the other one."""
    port = str(free_port())
    script, config = str(ROOT / "tools/train.py"), str(TASKS["detection"])
    processes = []
    for rank in ("0", "1"):
        ranks = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_PORT=port)
        processes.append(
            warm.start(
                [script, config, "--launcher=pytorch", f"--work-dir={tmp_path}/runs"],
                example_data,
                tmp_path / f"{rank}.txt",
                environment={**os.environ, **ranks, "MASTER_ADDR": "127.0.0.1"},
            )
        )
    for process in processes:
        process.join(300)
        process.kill()
    assert [process.exitcode for process in processes] == [2, 2]
    first, second = [(tmp_path / f"{rank}.txt").read_text() for rank in ("0", "1")]
    (line,) = [line for line in first.splitlines() if line.startswith("error: ")]
    for words in (broken, "fcvit check_data", "check_data=False"):
        assert words in line
    assert "Traceback" not in first + second and "error: " not in second
    assert not (tmp_path / "runs").exists()


def test_shapes(tmp_path: Path) -> None:
    words = ["set", "--train", 2, "--val", 1, "--size", 64, 32, "--seed", 5]
    done = warm.run(["-m", "fcvit_mm.datasets.shapes", *words], tmp_path)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "images written to set"
    shapes.generate(tmp_path / "same", 2, 1, (64, 32), 5)
    assert contents(tmp_path / "set") == contents(tmp_path / "same")


def test_an_old_path_can_be_run():
    command = [sys.executable, "-m", "fcvit_mm.shapes", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "usage: python -m fcvit_mm.datasets.shapes" in done.stdout
    assert "fcvit_mm.shapes is now fcvit_mm.datasets.shapes" in done.stderr


@pytest.mark.official
def test_convert_checkpoint(tool, tmp_path):
    released, source = timm_checkpoint("tiny"), tmp_path / "fcvit.pth.tar"
    torch.save(released, source)
    result = tool("convert_checkpoint.py", source, tmp_path / "a.pth", "--no-ema")
    assert result.returncode == 0 and "FCViT tiny" in result.stdout
    written = read_checkpoint(tmp_path / "a.pth")
    assert written.keys() == released["state_dict"].keys()
    assert all(value.equal(released["state_dict"][key]) for key, value in written.items())
    result = tool("convert_checkpoint.py", source, tmp_path / "a.onnx")
    assert_sentence(result, "must end in .pth or .safetensors")
