"""Whether memory stays flat in long runs: python benchmarks/memory.py.

Trains for 2,000 iterations and evaluates 5,000 generated images, detection and segmentation, each
in a process of its own, on the CPU, without loader processes, so that all that the pipelines leave
behind is in the memory that is measured. The models are the least that our configs allow: what
leaks does so an iteration or an image, not a pixel.

What a metric keeps of each image until the end is no leak: an evaluation is measured with it, and
without it against the bound. Prints a table in Markdown; status 1 where memory rises.
"""

import argparse
import gc
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from fcvit_mm import engine
from fcvit_mm.datasets import shapes
from fcvit_mm.demos.demo import move_data, shorten
from fcvit_mm.utils.config import load_config

CONFIGS = {
    "detection": "fcvit_mm::detection/mask_rcnn_fcvit_tiny_shapes.py",
    "segmentation": "fcvit_mm::segmentation/semantic_fpn_fcvit_tiny_shapes.py",
}
PHASES = ("training", "evaluation", "evaluation with results")
SIZE = (32, 32)
ARCH = dict(layers=(1,) * 4, dims=(8, 16, 16, 32), mlp_ratios=(2,) * 4)
# Bytes an iteration or an image that memory may rise by: less than any tensor of a batch has.
BOUND = 4096
# Of a run, until caches and allocators have what they want.
WARM_UP = 0.25
SAMPLES = 100
# What is kept of a metric's results where they are not to count: the end needs some.
KEPT = 16


def resident() -> int:
    """The physical memory of this process, in bytes (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Curve:
    """One entry a sample.

    steps: iterations or images so far. memory: resident, in bytes. objects: how many
    Python's collector has come to know.
    """

    steps: list[int] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)

    def slope(self, values: str = "memory") -> float:
        """By how much one of them rises a step: a line through what is between the warm-up and the
        last sample, which has the traces of a checkpoint."""
        used = slice(int(len(self.steps) * WARM_UP), -1)
        return float(np.polyfit(self.steps[used], getattr(self, values)[used], 1)[0])


def is_flat(curve: Curve) -> bool:
    """Whether memory rises by less than `BOUND` a step."""
    return curve.slope() < BOUND


class Watch(Hook):
    """Samples memory at even distances.

    Args:
        total: iterations or images of the run.
        samples: how many.
        forget: drop a metric's results but for `KEPT` images.
    """

    priority = "LOWEST"

    def __init__(self, total: int, samples: int, forget: bool) -> None:
        self.every = max(1, total // samples)
        self.forget = forget
        self.curve = Curve()

    def before_run(self, runner: Runner) -> None:
        """Leave out of all counts what is there before."""
        gc.collect()
        gc.freeze()

    def after_run(self, runner: Runner) -> None:
        gc.unfreeze()

    def _after_iter(self, runner: Runner, batch_idx: int, *_: Any, mode: str, **__: Any) -> None:
        if self.forget and mode == "test":
            for metric in runner.test_loop.evaluator.metrics:
                del metric.results[KEPT:]
        if (batch_idx + 1) % self.every == 0:
            # what waits in cycles is no leak
            gc.collect()
            self.curve.steps.append(batch_idx + 1)
            self.curve.memory.append(resident())
            self.curve.objects.append(len(gc.get_objects()))

    def after_train_iter(self, runner: Runner, batch_idx: int, *_: Any, **__: Any) -> None:
        self._after_iter(runner, batch_idx, mode="train")

    def after_test_iter(self, runner: Runner, batch_idx: int, *_: Any, **__: Any) -> None:
        self._after_iter(runner, batch_idx, mode="test")


def config(task: str, data: Path, work_dir: Path, iterations: int) -> Config:
    """A config of the least model, one process, without evaluations in between."""
    cfg = load_config(CONFIGS[task], work_dir=str(work_dir))
    move_data(cfg, data)
    shorten(cfg, iterations)
    cfg.model.backbone.arch = ARCH
    cfg.model.neck.in_channels = list(ARCH["dims"])
    if task == "segmentation":
        cfg.model.data_preprocessor.size = SIZE
    for split in ("train", "val", "test"):
        cfg[f"{split}_dataloader"].update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.batch_size = 2
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint.update(interval=iterations, save_best=None, save_optimizer=False)
    cfg.log_level = "WARNING"
    return cfg


def measure(
    task: str,
    phase: str,
    data: Path,
    work_dir: Path,
    total: int,
    samples: int = SAMPLES,
    hooks: Sequence[Hook] = (),
) -> Curve:
    """Train, or evaluate the weights that the training left in the work directory.

    Args:
        task: of `CONFIGS`.
        phase: of `PHASES`.
        data: a dataset of `fcvit_mm.datasets.shapes`.
        work_dir: of both.
        total: iterations; of an evaluation the images that there are.
        samples: how many are taken.
        hooks: further ones.
    """
    cfg = config(task, data, work_dir, total)
    watch = Watch(total, samples, forget=phase == "evaluation")
    is_training = phase == "training"
    if not is_training:
        (cfg.load_from,) = map(str, work_dir.glob("iter_*.pth"))
        for key in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler"):
            cfg.pop(key)
    runner = engine.build_runner(cfg)
    for hook in (*hooks, watch):
        runner.register_hook(hook)
    runner.train() if is_training else runner.test()
    return watch.curve


def _quiet(log: str) -> None:
    """Send what a process prints to a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--images", type=int, default=5000)
    args = parser.parse_args()
    failed = False
    # a fresh process for each, in which nothing is warm
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        context.Pool(1, _quiet, (f"{folder}/log.txt",), maxtasksperchild=1) as pool,
    ):
        data = Path(folder, "shapes")
        shapes.generate(data, 64, args.images, SIZE)
        print("| | steps | MB after the warm-up | MB at the end | bytes a step | |")
        print("|---|---|---|---|---|---|")
        for task in CONFIGS:
            for phase in PHASES:
                total = args.iterations if phase == "training" else args.images
                work_dir = Path(folder, task)
                curve = pool.apply(measure, (task, phase, data, work_dir, total))
                verdict = "" if phase == PHASES[-1] else "flat" if is_flat(curve) else "RISES"
                failed |= verdict == "RISES"
                warm = curve.memory[int(len(curve.memory) * WARM_UP)]
                cells = [f"{task}, {phase}", f"{total:,}", f"{warm / 1e6:.1f}"]
                cells += [f"{curve.memory[-1] / 1e6:.1f}", f"{curve.slope():,.0f}", verdict]
                print(f"| {' | '.join(cells)} |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
