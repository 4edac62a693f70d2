"""Randomness that is bound to the seed and to the place in the training, to nothing else.

MMEngine seeds each process once, so that a resumed training, or one with other loader workers,
draws other numbers. Here each image's augmentation depends on the seed and on the image's place in
the order of the whole training alone, and each step of the model on seed, iteration and process.
"""

import ctypes
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info, get_rank, sync_random_seed
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Sampler

from .failures import naming_sample

# PR_SET_PDEATHSIG of Linux's prctl
SET_PARENT_DEATH_SIGNAL = 1


def seed_all(*numbers: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch by whole numbers from 0 on."""
    python, numpy, pytorch = np.random.SeedSequence(numbers).generate_state(3).tolist()
    random.seed(python)
    np.random.seed(numpy)
    torch.manual_seed(pytorch)


class SeedHook(Hook):
    """Seed each training iteration by the training's seed, the iteration and the process."""

    priority = "VERY_HIGH"

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """As MMEngine calls it."""
        seed_all(runner.seed, runner.iter, get_rank())


class SampleIndex(int):
    """An index into a dataset that knows its place in the training: epoch, and place in it."""

    place: tuple[int, int]


def seeded_items(dataset: Any, seed: int, indices: list[SampleIndex]) -> list:
    """The samples of a batch, each by randomness of its own; a dataset's `__getitems__`."""
    samples = []
    for index in indices:
        seed_all(seed, *index.place)
        with naming_sample():
            samples.append(dataset[int(index)])
    return samples


class NumberedSampler(Sampler):
    """Wrap a sampler of MMEngine's to give `SampleIndex`es, which its dataset then obeys.

    Args:
        sampler: config of the sampler.
        dataset: indexed by whole numbers.
        seed: of the training; None draws one, the same in all processes.
    """

    def __init__(self, sampler: dict, dataset: Any, seed: int | None) -> None:
        seed = sync_random_seed() if seed is None else seed
        self.sampler = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=seed))
        self.skipped = 0
        if hasattr(self.sampler, "skip"):
            self.skip = self._skip
        # PyTorch's loader asks for it in the place of single items
        dataset.__getitems__ = partial(seeded_items, dataset, seed)

    def _skip(self, count: int) -> None:
        """Begin after so many indices of this process; MMEngine calls it to resume."""
        self.sampler.skip(count)
        self.skipped = count

    def __iter__(self) -> Iterator[SampleIndex]:
        rank, processes = get_dist_info()
        epoch = getattr(self.sampler, "epoch", 0)
        for count, number in enumerate(self.sampler, self.skipped):
            index = SampleIndex(number)
            # MMEngine's samplers deal their order out to the processes by turns
            index.place = (epoch, count * processes + rank)
            yield index

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        # what hooks and batch samplers ask of a sampler
        if name == "sampler":
            raise AttributeError(name)
        return getattr(self.sampler, name)


def quiet_excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an error of a loader's worker, but not that nobody takes its batch any more.

    The traceback would stand below a training's last word, such as which other worker has died.
    """
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def exit_with_parent(parent: int, then: Callable | None, worker: int) -> None:
    """Have a loader's worker end with its training, the process `parent`; a `worker_init_fn`.

    Of a killed training it would wait for ever for somebody to read its last batch, and keep its
    memory. `then` is another `worker_init_fn` to call.

    The signals that end a training after its iteration are for the training alone, though terminals
    and clusters send them to all processes: of a worker that ended amid a batch, it would wait for
    the rest for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # killed before
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_if_told, args=(parent,), daemon=True).start()
    sys.excepthook = quiet_excepthook
    if then:
        then(worker)


def _exit_if_told(parent: int) -> None:
    """End this process on the SIGTERM of its parent, which PyTorch sends to a worker that hangs."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class RepeatableRunner(Runner):
    """MMEngine's Runner with a `NumberedSampler` in each loader, and workers that end with it."""

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """As the parent's."""
        if isinstance(dataloader, dict) and isinstance(dataloader.get("sampler"), dict):
            sampler = dict(type=NumberedSampler, sampler=dataloader["sampler"])
            dataloader = dict(dataloader, sampler=sampler)
        loader = Runner.build_dataloader(dataloader, seed, diff_rank_seed)
        loader.worker_init_fn = partial(exit_with_parent, os.getpid(), loader.worker_init_fn)
        return loader
