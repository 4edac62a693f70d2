"""Train by a config behind a progress display; MMEngine's log goes to a file."""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import engine
from ..engine.preflight import check_files


@dataclass(frozen=True)
class Demo:
    """What belongs to one demonstration.

    generate: writes the dataset into a folder, (folder, (train, val) numbers of images or None
        for the usual ones). metrics: MMEngine's names of the metrics and ours; the best is 1 after
        division by `full`.
    """

    config: str
    generate: Callable[[Path, tuple[int, int] | None], bool]
    metrics: dict[str, str]
    full: float = 1.0


def shorten(cfg: Config, iterations: int) -> None:
    """Set the number of iterations in place; schedule, log and evaluations keep their share."""
    share = iterations / cfg.train_cfg.max_iters
    for scheduler in cfg.param_scheduler:
        for key in ("begin", "end"):
            scheduler[key] = math.ceil(scheduler[key] * share)
    cfg.param_scheduler = [s for s in cfg.param_scheduler if s.begin < s.end]
    interval = max(1, round(cfg.train_cfg.val_interval * share))
    cfg.train_cfg.update(max_iters=iterations, val_interval=interval)
    cfg.default_hooks.checkpoint.interval = interval
    logger = cfg.default_hooks.logger
    logger.interval = max(1, round(logger.interval * min(share, 1)))


def move_data(cfg: Config, folder: Path) -> None:
    """Let every loader and evaluator of a config read the dataset in `folder`, in place."""
    for split in ("train", "val", "test"):
        cfg[f"{split}_dataloader"].dataset.data_root = str(folder)
    for split in ("val", "test"):
        evaluator = cfg[f"{split}_evaluator"]
        if "ann_file" in evaluator:
            evaluator.ann_file = str(folder / cfg[f"{split}_dataloader"].dataset.ann_file)


def say(console: Console, text: str) -> None:
    """Print plain text; a path is never broken in two."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def clock(seconds: float) -> str:
    """Format a duration as minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def make_progress(console: Console, *texts: str) -> Progress:
    """Make a bar with the time left, shown on a terminal alone."""
    first, *others = (TextColumn(text) for text in texts)
    return Progress(
        first, BarColumn(), MofNCompleteColumn(), *others, TimeRemainingColumn(),
        TextColumn("left"), console=console, disable=not console.is_terminal,
        # MMEngine's log lines are to stay where they were sent
        redirect_stdout=False, redirect_stderr=False,
    )  # fmt: skip


@dataclass
class Record(Hook):
    """Keep what a run yields, and show how far it is: a bar on a terminal, else a line at times.

    evaluations: (iteration, metrics) each. predictions: data samples of the last evaluation.
    seconds: of the whole training.
    """

    demo: Demo
    console: Console
    evaluations: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    predictions: list[Any] = field(default_factory=list)
    seconds: float = 0.0

    # after the other hooks, so that what they do is in the time
    priority = "LOWEST"

    def before_train(self, runner: Runner) -> None:
        self._start = time.monotonic()
        self._progress = make_progress(self.console, "{task.description:10}", "{task.fields[news]}")
        self._task = self._progress.add_task("training", total=runner.max_iters, news="")
        self._progress.start()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        done, total = runner.iter + 1, runner.max_iters
        self.seconds = time.monotonic() - self._start
        loss = runner.message_hub.get_scalar("train/loss").mean(10)
        news = f"loss {loss:.2f}"
        self._progress.update(self._task, completed=done, news=news, description="training")
        if not self.console.is_terminal and (done % max(total // 20, 1) == 0 or done == total):
            left = clock(self.seconds * (total - done) / done)
            say(self.console, f"iteration {done} of {total}, {news}, {left} left")

    def before_val(self, runner: Runner) -> None:
        self.predictions = []
        self._progress.update(self._task, description="evaluating")

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.predictions += [sample.cpu() for sample in outputs]

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        ours = {
            name: max(float((metrics or {})[key]), 0.0) / self.demo.full
            for key, name in self.demo.metrics.items()
        }
        self.evaluations.append((runner.iter, ours))
        say(self.console, f"after {runner.iter} iterations: {self.reached()}")

    def after_train(self, runner: Runner) -> None:
        self.seconds = time.monotonic() - self._start
        self.close()

    def reached(self) -> str:
        """List the metrics of the last evaluation."""
        return ", ".join(f"{name} {value:.3f}" for name, value in self.evaluations[-1][1].items())

    def close(self) -> None:
        """Leave the terminal as it was, after an error as well."""
        if hasattr(self, "_progress"):
            self._progress.stop()


def run_quietly(cfg: Config, output: Path, record: Record, *hooks: Hook) -> Runner:
    """Train by a config, with further hooks, sending what libraries print to the file `output`.

    Raises:
        fcvit_mm.utils.errors.ConfigError: data are missing, or something can't be built.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            output.open("w") as file,
            contextlib.redirect_stdout(file),
            contextlib.redirect_stderr(file),
        ):
            check_files(cfg, ("train_dataloader", "val_dataloader"))
            runner = engine.build_runner(cfg)
            for hook in (record, *hooks):
                runner.register_hook(hook)
            with engine.naming_dead_workers():
                runner.train()
            return runner
    finally:
        record.close()
