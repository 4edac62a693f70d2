"""A progress bar for trainings, evaluations and tests on a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from logging import FileHandler, LogRecord, StreamHandler
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class ProgressHook(Hook):
    """Moves a bar per training iteration, and another per batch of an evaluation or test."""

    # after the hook that notes the loss
    priority = "LOWEST"

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.training: TaskID | None = None
        self.evaluation: TaskID | None = None

    def before_train(self, runner: Runner) -> None:
        """Begin with the iterations that a resumed training has done."""
        self.training = self.bars.add_task(
            "training", total=runner.max_iters, completed=runner.iter, note=""
        )

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Move on by an iteration."""
        assert self.training is not None
        scalars = runner.message_hub.log_scalars
        note = f"loss {scalars['train/loss'].current():.4f}" if "train/loss" in scalars else ""
        self.bars.update(self.training, completed=runner.iter + 1, note=note)

    def _before_epoch(self, runner: Runner, mode: str = "train") -> None:
        if mode != "train":
            loader = runner.val_dataloader if mode == "val" else runner.test_dataloader
            what = "validation" if mode == "val" else "test"
            self.evaluation = self.bars.add_task(what, total=len(loader), note="")

    def _after_iter(self, runner: Runner, batch_idx: int, *_: Any, **__: Any) -> None:
        if self.evaluation is not None:
            self.bars.update(self.evaluation, completed=batch_idx + 1)

    def _after_epoch(self, runner: Runner, mode: str = "train") -> None:
        if mode != "train" and self.evaluation is not None:
            self.bars.remove_task(self.evaluation)
            self.evaluation = None


def _is_no_iteration(record: LogRecord) -> bool:
    """Tell whether a record is something else than the losses that are logged now and then."""
    return record.module != "logger_hook" or not record.funcName.endswith("_iter")


@contextmanager
def showing_progress(runner: Runner) -> Iterator[None]:
    """Show bars while a Runner works, in the place of the lines per iteration on the console.

    The log file has these as ever, and so has the console where it is no terminal.
    """
    console = Console()
    if not (is_main_process() and console.is_interactive):
        yield
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    handlers = {
        handler: handler.stream
        for handler in runner.logger.handlers
        if isinstance(handler, StreamHandler) and not isinstance(handler, FileHandler)
    }
    with Progress(*columns, console=console) as bars:
        runner.register_hook(ProgressHook(bars))
        for handler in handlers:
            # prints now come above the bars, and so must what the log has for the terminal
            handler.setStream(sys.stdout)
            handler.addFilter(_is_no_iteration)
        try:
            yield
        finally:
            for handler, stream in handlers.items():
                handler.removeFilter(_is_no_iteration)
                handler.setStream(stream)
