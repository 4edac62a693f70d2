"""End a training between two iterations when a signal asks for it, and go on from there."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from mmengine.dist import is_distributed, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.distributed import ReduceOp, all_reduce, destroy_process_group, new_group


class RestOfEpoch:
    """A batch sampler without the first batches, of which `done` is how many."""

    def __init__(self, batches: Any, done: int) -> None:
        self.batches, self.done, self.sampler = batches, done, batches.sampler

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self.batches, self.done, None)

    def __len__(self) -> int:
        return len(self.batches)


class StopHook(Hook):
    """On Ctrl-C or SIGTERM, finish the iteration, write a checkpoint and end the process.

    Several processes end together, after the same iteration, whichever of them got the signal. A
    second Ctrl-C ends the training at once. A training by epochs goes on amid the epoch, which
    MMEngine would begin anew.

    Args:
        path: of the checkpoint, which is deleted when the training is finished.
        remedy: what goes on with the training.
        timeout: how long processes wait for each other; None is PyTorch's 30 minutes.

    Raises:
        SystemExit: status 130 after Ctrl-C, 143 after SIGTERM.
    """

    priority = "HIGHEST"

    def __init__(self, path: Path, remedy: str, timeout: timedelta | None = None) -> None:
        self.path = path
        self.remedy = remedy
        self.signal = 0
        self.evaluating = False
        # of the epoch that is not finished: batches done, and all of them
        self.batches: Sequence[int] = (0, 0)
        self.rest: RestOfEpoch | None = None
        # of CPUs, since to read a flag from a GPU would wait for all that the GPU has to do
        self.group: Any = new_group(backend="gloo", timeout=timeout) if is_distributed() else None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note the signals in place of ending; what ignores them (nohup) goes on ignoring them."""
        handlers = {}
        if threading.current_thread() is threading.main_thread():
            handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}

        def note(number: int, _: FrameType | None) -> None:
            self.signal = number
            if number == signal.SIGINT:
                signal.signal(number, handlers[signal.SIGINT])
                if is_main_process():
                    os.write(2, b"\nstopping after this iteration; Ctrl-C again stops at once\n")

        for one, handler in handlers.items():
            if handler is not signal.SIG_IGN:
                signal.signal(one, note)
        try:
            yield
        finally:
            for one, handler in handlers.items():
                signal.signal(one, handler)

    def _agree(self) -> int:
        """Return the signal that this or another process has got, or 0."""
        if self.group is None:
            return self.signal
        number = torch.tensor(self.signal)
        all_reduce(number, ReduceOp.MAX, group=self.group)
        return int(number)

    def _stop_if_asked(self, runner: Runner) -> None:
        number = self._agree()
        if not number:
            return
        if self.evaluating:
            # the averaged weights are in the model's place
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)
        loop = runner.train_loop
        meta = dict(epoch=loop.epoch, iter=loop.iter, batches=[*self.batches])
        runner.save_checkpoint(str(self.path.parent), self.path.name, meta=meta, by_epoch=False)
        if is_main_process():
            print(f"stopped at iteration {loop.iter}; go on with {self.remedy}", file=sys.stderr)
        if is_distributed():
            # torchrun kills all soon after the first has ended
            self._agree()
            destroy_process_group()
        sys.exit(128 + number)

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Stop here, where all of the last iteration is done, its evaluation included."""
        self._stop_if_asked(runner)

    def before_val_epoch(self, runner: Runner) -> None:
        """Note that the model may hold averaged weights."""
        self.evaluating = True

    def before_val_iter(self, runner: Runner, batch_idx: int, *_: Any, **__: Any) -> None:
        """Stop in an evaluation, too; --resume repeats it."""
        loader = runner.val_dataloader
        # which all processes have; the last batch may be missing in some
        common = len(loader.dataset) // runner.world_size // (loader.batch_size or 1)
        if batch_idx < common or self.group is None:
            self._stop_if_asked(runner)

    def after_val_epoch(self, runner: Runner, metrics: Any = None) -> None:
        """Note that the model has its own weights again."""
        self.evaluating = False

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remember where in its epoch a resumed training stopped."""
        if runner._resume:
            self.batches = checkpoint["meta"].get("batches", (0, 0))

    def before_train_epoch(self, runner: Runner) -> None:
        """Leave out the batches of a resumed epoch that were trained on."""
        loop, (done, length) = runner.train_loop, self.batches
        # with other batches or processes the epoch begins anew
        if done and length == len(loop.dataloader):
            self.rest = RestOfEpoch(loop.dataloader.batch_sampler, done)
            # a DataLoader refuses it, since it would not change what is being read already
            object.__setattr__(loop.dataloader, "batch_sampler", self.rest)
            run_iter = loop.run_iter
            loop.run_iter = lambda idx, batch: run_iter(idx + done, batch)

    def after_train_iter(self, runner: Runner, batch_idx: int, *_: Any, **__: Any) -> None:
        """Count the batches of an epoch."""
        loop = runner.train_loop
        if isinstance(loop, EpochBasedTrainLoop):
            self.batches = (batch_idx + 1, len(loop.dataloader))

    def after_train_epoch(self, runner: Runner) -> None:
        """Have the next epoch whole."""
        self.batches = (0, 0)
        if self.rest and self.rest.done:
            # persistent workers keep their sampler
            self.rest.done = 0
            del runner.train_loop.run_iter

    def after_train(self, runner: Runner) -> None:
        """Delete the checkpoint, which later ones have replaced."""
        if is_main_process():
            self.path.unlink(missing_ok=True)
