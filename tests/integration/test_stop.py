"""Trainings that Ctrl-C or SIGTERM ends, and processes that hang or never come."""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import save_checkpoint

from fcvit_mm import read_checkpoint
from fcvit_mm.datasets import checks
from fcvit_mm.engine import launch as engine_launch
from fcvit_mm.engine import runner
from fcvit_mm.engine.hooks.stop_hook import StopHook
from fcvit_mm.engine.seeding import RepeatableRunner
from helpers import ROOT, processes, warm
from helpers.processes import assert_equal_runs, said
from helpers.tools import assert_sentence, free_port, load_tool
from helpers.trainings import BY_EPOCHS, BY_ITERATIONS, METHODS, SEGMENTATION

TROUBLE = """
_base_ = {base!r}
custom_imports = dict(imports=["fcvit_mm", "helpers.processes"])
custom_hooks = [*_base_.get("custom_hooks", []), dict(type="Trouble", **{trouble!r})]
"""
BASES = {
    "epochs": (BY_EPOCHS, ["randomness.seed=3"], "epoch_4.pth"),
    "iterations": (BY_ITERATIONS, METHODS["segmentation"][1], "iter_8.pth"),
}


def troubled(folder: Path, text: str, **trouble: object) -> tuple[Path, Path]:
    """A config, and the same with a `Trouble`."""
    base, config = folder / "base.py", folder / "config.py"
    base.write_text(text)
    config.write_text(TROUBLE.format(base=str(base), trouble=trouble))
    return base, config


@pytest.mark.official
@pytest.mark.parametrize(
    ("base", "stops"),
    [
        ("iterations", [(signal.SIGINT, "train", 4, 5), (signal.SIGTERM, "val", 8, 8)]),
        pytest.param("epochs", [(signal.SIGTERM, "train", 4, 5)], marks=pytest.mark.slow),
    ],
)
def test_a_stopped_training_goes_on_as_if_nothing_had_been(example_data, tmp_path, base, stops):
    """Amid an epoch, and amid an evaluation of averaged weights."""
    text, options, last = BASES[base]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for number, amid, at, done in stops:
        plain, config = troubled(tmp_path, text, at=at, number=int(number), amid=amid)
        process = processes.start(example_data, stopped, config, options, "--resume")
        process.join()
        output = said(stopped).read_text()
        assert process.exitcode == 128 + number, output[-3000:]
        assert "Traceback" not in output
        last_line = output.splitlines()[-1]
        assert last_line == f"stopped at iteration {done}; go on with --resume"
        assert (stopped / "stopped.pth").exists()
    processes.train(example_data, whole, plain, options)
    processes.train(example_data, stopped, plain, options, "--resume")
    assert_equal_runs(stopped, whole, last)
    assert not (stopped / "stopped.pth").exists()


def together(
    directory: Path, work_dir: Path, config: Path, options: list[str], **trouble: object
) -> tuple[list[int | None], str]:
    """Two processes of a training with a `Trouble`: their exit statuses, and what they said."""
    _, troubled_config = troubled(work_dir.parent, f"_base_ = {str(config)!r}", **trouble)
    common = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    running = [
        processes.start(
            directory, work_dir, troubled_config, options,
            launcher=dict(RANK=rank, LOCAL_RANK=rank, **common),
        )
        for rank in "01"
    ]  # fmt: skip
    end = time.monotonic() + 300
    wanted = 2 if trouble["number"] else 1
    while sum(process.exitcode is not None for process in running) < wanted:
        assert time.monotonic() < end, said(work_dir).read_text()[-3000:]
        time.sleep(0.1)
    statuses = [process.exitcode for process in running]
    for process in running:
        process.kill()
    return statuses, said(work_dir).read_text()


def test_all_processes_stop_with_the_one_that_got_the_signal(example_data, tmp_path):
    statuses, output = together(
        example_data, tmp_path / "run", SEGMENTATION, METHODS["segmentation"][1],
        at=1, number=int(signal.SIGTERM), rank=1,
    )  # fmt: skip
    assert statuses == [143, 143], output[-3000:]
    assert re.findall("stopped at iteration .*", output) == [
        "stopped at iteration 2; go on with --resume"
    ]
    assert "Traceback" not in output and (tmp_path / "run/stopped.pth").exists()


@pytest.mark.slow
def test_a_process_that_hangs_is_named(example_data, tmp_path):
    options = [*METHODS["segmentation"][1], "env_cfg.dist_cfg.timeout=30"]
    for rank in (0, 1):
        statuses, output = together(
            example_data, tmp_path / f"run_{rank}", SEGMENTATION, options,
            at=1, number=None, rank=rank,
        )  # fmt: skip
        assert statuses[1 - rank] == 2 and statuses[rank] is None, output[-3000:]
        (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
        assert f"waited in vain for: rank {rank}, process " in line and "timeout=600" in line
        assert "Traceback" not in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_amid_a_checkpoint_lets_it_be_finished_or_leaves_none(
    tmp_path, monkeypatch, number, times
):
    """Only a second Ctrl-C ends at once."""
    write = Path.write_bytes

    def interrupted(path: Path, content: bytes) -> None:
        write(path, content[:3])
        for _ in range(times):
            signal.raise_signal(number)
        write(path, content)

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    stop = StopHook(tmp_path / "stopped.pth", "--resume")
    at_once = number == signal.SIGINT and times == 2
    ended = pytest.raises(KeyboardInterrupt) if at_once else nullcontext()
    with ended, stop.listening():
        save_checkpoint({"a": 1}, str(tmp_path / "a.pth"))
    assert stop.signal == number
    assert [path.name for path in tmp_path.iterdir()] == ([] if at_once else ["a.pth"])
    assert at_once or read_checkpoint(tmp_path / "a.pth") == {"a": 1}


def test_several_processes_have_their_data_checked_once(example_data, tmp_path, monkeypatch):
    """By what starts them, even where no note of it can be kept."""
    monkeypatch.chdir(example_data)
    (tmp_path / "torch").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    checked, check = [], checks.check

    def counted(cfg: Config, loaders: Sequence[str], **options: Any) -> list[checks.Report]:
        checked.append(loaders)
        return check(cfg, loaders, **options)

    def build(cfg: Config, changes: Sequence[str]) -> None:
        raise SystemExit

    monkeypatch.setattr(checks, "check", counted)
    monkeypatch.setattr(runner, "_build", build)
    # in place of torchrun
    monkeypatch.setattr(
        engine_launch, "run", lambda args: load_tool("train").main(args.training_script_args)
    )
    monkeypatch.setattr(logging, "disable", lambda: None)  # it would last for other tests
    with pytest.raises(SystemExit):
        script = [str(ROOT / "tools/train.py"), str(SEGMENTATION)]
        engine_launch.main(
            [*script, "--work-dir", str(tmp_path), "--cfg-options", "randomness.seed=1"]
        )
    assert checked == [("train_dataloader", "val_dataloader")]


def launch(directory: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess:
    """One or more processes of a training, as tools/_dist_run.sh starts them."""
    return warm.run(
        ["-m", "fcvit_mm.engine.launch", "--master_addr=127.0.0.1", *flags,
         ROOT / "tools/train.py", SEGMENTATION, "--launcher", "pytorch"],
        directory, {**os.environ, "TORCH_CPP_LOG_LEVEL": "FATAL", **environment},
    )  # fmt: skip


def test_the_launcher_refuses_in_a_sentence_before_it_starts_processes(example_data, tmp_path):
    """Which is the last line; and nothing is written."""
    before = sorted(example_data.rglob("*"))
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        results = {
            f"port {port} is in use": launch(example_data, f"--master_port={port}"),
            "data/shapes/images/train does not exist": launch(tmp_path),
            "8 processes would share the CPUs": launch(example_data, "--nproc_per_node=8"),
            "Timed out after": launch(
                example_data, "--nnodes=2", f"--master_port={free_port()}", "--rdzv_conf=timeout=1"
            ),
        }
    for words, result in results.items():
        assert_sentence(result, words)
        assert result.stderr.splitlines()[-1].startswith("error: ")
    assert sorted(example_data.rglob("*")) == before


class Slow(torch.utils.data.Dataset):
    """Items that take half a second each, or for ever."""

    def __init__(self, ends: bool) -> None:
        self.ends = ends

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        time.sleep(0.5 if self.ends or index < 2 else 600)
        return int(index)


@pytest.mark.parametrize("ends", [True, False])
def test_a_loaders_worker_ends_on_its_trainings_word_alone(ends):
    """Clusters send SIGTERM to it, too: the batches that are begun still come."""
    config = dict(
        batch_size=1,
        num_workers=1,
        sampler=dict(type="DefaultSampler", shuffle=False),
        collate_fn=dict(type="default_collate"),
        dataset=Slow(ends),
    )
    batches: Any = iter(RepeatableRunner.build_dataloader(config, seed=0))
    found = [next(batches)]
    (worker,) = batches._workers
    for number in (signal.SIGTERM, signal.SIGINT):
        # of another process, as a worker's own parent is heard
        subprocess.run(["kill", f"-{int(number)}", str(worker.pid)], check=True)
    found += [next(batches) for _ in range(3 if ends else 1)]
    assert [int(batch) for batch in found] == [*range(4 if ends else 2)]
    batches._shutdown_workers()  # waits five seconds for one that hangs
    worker.join(20)
    assert worker.exitcode == 0


@pytest.mark.slow
def test_ctrl_c_ends_dist_train(example_data, tmp_path):
    """As a terminal sends it: to the whole group."""
    work_dir, output = tmp_path / "run", tmp_path / "output.txt"
    command = [ROOT / "tools/dist_train.sh", SEGMENTATION, 2, "--work-dir", work_dir]
    options = [*METHODS["segmentation"][1], "train_cfg.max_iters=5000"]
    with output.open("w") as file:
        training = subprocess.Popen(
            [*map(str, command), "--cfg-options", *options],
            cwd=example_data,
            env={**os.environ, "PYTHON": sys.executable, "ON_CPU": "1", "PORT": str(free_port()),
                 "TORCH_HOME": str(tmp_path)},  # no note of other tests' checks
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    while not (work_dir / "iter_2.pth").exists():
        assert training.poll() is None, output.read_text()[-3000:]
        time.sleep(0.1)
    os.killpg(training.pid, signal.SIGINT)
    assert training.wait(300) == 130, output.read_text()[-3000:]
    assert re.match(r"stopped at iteration \d+; go on with", output.read_text().splitlines()[-1])
    assert "Traceback" not in output.read_text() and (work_dir / "stopped.pth").exists()
    assert "unchanged since they were checked" not in output.read_text()
