"""tools/train.py in processes that can be killed, without the seconds that imports take.

And what such a training leaves: its losses, as logged, and as each of several processes has them.
"""

import json
import os
import resource
import subprocess
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from fcvit_mm import read_checkpoint
from fcvit_mm.analysis import logs
from fcvit_mm.utils.files import PARTIAL
from helpers import ROOT, warm
from helpers.tools import free_port
from helpers.trainings import ITERATIONS


def start(
    directory: Path,
    work_dir: Path,
    config: Path,
    options: list[str],
    *words: str,
    launcher: dict[str, str] | None = None,
    largest_file: int = resource.RLIM_INFINITY,
) -> BaseProcess:
    """Start tools/train.py; what it says is appended to WORK_DIR.txt.

    Args:
        directory: to run in.
        work_dir: of the training.
        config: of the training.
        options: after --cfg-options.
        words: other arguments of the tool.
        launcher: environment of one of several processes.
        largest_file: in bytes, that the system lets the training write.
    """
    launched = ["--launcher", "pytorch"] if launcher else []
    arguments = [config, "--work-dir", work_dir, *words, *launched, "--cfg-options", *options]
    return warm.start(
        [ROOT / "tools/train.py", *arguments],
        directory,
        said(work_dir),
        environment={**os.environ, **(launcher or {})},
        largest_file=largest_file,
    )


def said(work_dir: Path) -> Path:
    """Where the output of a training goes."""
    return work_dir.with_name(f"{work_dir.name}.txt")


def train(directory: Path, work_dir: Path, *arguments: Any, processes: int = 1) -> None:
    """Run tools/train.py in some processes to its end; arguments as `start` has them."""
    launchers: list[dict[str, str] | None] = [None]
    if processes > 1:
        common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
        common["MASTER_PORT"] = str(free_port())
        ranks = map(str, range(processes))
        launchers = [{"RANK": rank, "LOCAL_RANK": rank, **common} for rank in ranks]
    running = [start(directory, work_dir, *arguments, launcher=one) for one in launchers]
    for process in running:
        process.join()
    assert not any(process.exitcode for process in running), said(work_dir).read_text()[-3000:]


def losses(work_dir: Path) -> dict[int, dict[str, float]]:
    """What was logged of each iteration, but for how long it took."""
    training = logs.read_run(work_dir).training
    return {
        step: {k: v for k, v in record.items() if k not in ("time", "data_time", "memory")}
        for step, record in training.items()
    }


@HOOKS.register_module()
class LossRecorder(Hook):
    """Has each process write its losses, which MMEngine logs of the first one alone."""

    def after_train_iter(self, runner: Any, *_: Any, outputs: dict, **__: Any) -> None:
        """Append a line of JSON."""
        record = {key: float(value) for key, value in outputs.items() if "loss" in key}
        with Path(runner.work_dir, f"losses_{get_rank()}.json").open("a") as file:
            file.write(json.dumps(record) + "\n")


def mean_losses(work_dir: Path) -> list[dict[str, float]]:
    """What `LossRecorder` wrote, the mean over the processes, one entry per iteration."""
    written = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(work_dir.glob("losses_*.json"))
    ]
    return [
        {key: sum(record[key] for record in records) / len(records) for key in records[0]}
        for records in zip(*written, strict=True)
    ]


def partials(work_dir: Path) -> list[Path]:
    return [*work_dir.glob(PARTIAL.format(stem="*", unique="*", suffix=".*"))]


def assert_equal_runs(one: Path, other: Path, last: str) -> None:
    """The same losses, evaluations, best checkpoint and last weights, and nothing left over."""
    assert sorted(losses(one)) == [*range(1, ITERATIONS + 1)]
    assert losses(one) == losses(other)
    for metric in ("mIoU", "coco/segm_mAP"):
        assert logs.read_run(one).series(metric) == logs.read_run(other).series(metric)
    ours, theirs = (read_checkpoint(path / last) for path in (one, other))
    torch.testing.assert_close(ours["state_dict"], theirs["state_dict"], rtol=0, atol=1e-6)
    assert {p.name for p in one.glob("best_*")} == {p.name for p in other.glob("best_*")}
    assert not partials(one)


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    try:
        return [int(pid) for pid in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


@HOOKS.register_module()
class Trouble(Hook):
    """Has a process get a signal, its loader's workers too, or hang.

    Args:
        at: the iteration before which, or before whose evaluation, it happens.
        number: of the signal; None hangs.
        rank: of the process.
        amid: train or val.
    """

    def __init__(self, at: int, number: int | None, rank: int = 0, amid: str = "train") -> None:
        self.at, self.number, self.rank, self.amid = at, number, rank, amid

    def before_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        """Make trouble, in training."""
        self._make(runner, "train")

    def before_val_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        """Make trouble, in an evaluation."""
        self._make(runner, "val")

    def _make(self, runner: Any, amid: str) -> None:
        if (runner.iter, get_rank(), amid) != (self.at, self.rank, self.amid):
            return
        while self.number is None:
            time.sleep(1)
        everybody = [*map(str, (os.getpid(), *children(os.getpid())))]
        # by another process, as terminals and clusters do: a worker obeys its training
        subprocess.run(["kill", f"-{self.number}", *everybody], check=True)
        self.at = -1
