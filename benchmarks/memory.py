"""Check that memory stays flat in long runs.

    python benchmarks/memory.py

Trains for 2,000 iterations and evaluates 5,000 generated images, detection and segmentation. Each
run has its own process, on the CPU and without loader processes, so that the measured memory
includes all that the pipelines leave behind. The models are the smallest that our configs allow,
since a leak does not depend on the number of pixels.

A metric must keep its results until the end, which is no leak: an evaluation is measured with them,
and without them for the bound. Prints a table in Markdown; status 1 if memory grows.
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
from fcvit_mm.demos.training import move_data, shorten
from fcvit_mm.utils.config import load_config

CONFIGS = {
    "detection": "fcvit_mm::detection/mask_rcnn_fcvit_tiny_shapes.py",
    "segmentation": "fcvit_mm::segmentation/semantic_fpn_fcvit_tiny_shapes.py",
}
PHASES = ("training", "evaluation", "evaluation with results")
SIZE = (32, 32)
ARCH = dict(layers=(1,) * 4, dims=(8, 16, 16, 32), mlp_ratios=(2,) * 4)
# Memory may grow by this many bytes per iteration or image: less than any tensor of a batch.
BOUND = 4096
# Part of a run in which caches and allocators fill up.
WARM_UP = 0.25
SAMPLES = 100
# Images whose results are kept where results must not count: the end of a metric needs some.
KEPT = 16


def resident() -> int:
    """Return the physical memory of this process, in bytes (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Curve:
    """Samples of a run, one entry each.

    steps: iterations or images so far. memory: resident, in bytes. objects: number of objects
    that Python's garbage collector tracks.
    """

    steps: list[int] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)

    def slope(self, values: str = "memory") -> float:
        """Return the growth per step: the slope of a line through the samples after the warm-up,
        without the last one, after which a checkpoint has been written."""
        used = slice(int(len(self.steps) * WARM_UP), -1)
        return float(np.polyfit(self.steps[used], getattr(self, values)[used], 1)[0])


def is_flat(curve: Curve) -> bool:
    """Return whether memory grows by less than `BOUND` per step."""
    return curve.slope() < BOUND


class Watch(Hook):
    """Sample memory at regular intervals.

    Args:
        total: iterations or images of the run.
        samples: how many to take.
        forget: keep a metric's results only for `KEPT` images.
    """

    priority = "LOWEST"

    def __init__(self, total: int, samples: int, forget: bool) -> None:
        self.every = max(1, total // samples)
        self.forget = forget
        self.curve = Curve()

    def before_run(self, runner: Runner) -> None:
        """Exclude what exists before the run from all counts."""
        gc.collect()
        gc.freeze()

    def after_run(self, runner: Runner) -> None:
        gc.unfreeze()

    def _after_iter(self, runner: Runner, batch_idx: int, *_: Any, mode: str, **__: Any) -> None:
        if self.forget and mode == "test":
            for metric in runner.test_loop.evaluator.metrics:
                del metric.results[KEPT:]
        if (batch_idx + 1) % self.every == 0:
            # unreachable cycles are no leak
            gc.collect()
            self.curve.steps.append(batch_idx + 1)
            self.curve.memory.append(resident())
            self.curve.objects.append(len(gc.get_objects()))

    def after_train_iter(self, runner: Runner, batch_idx: int, *_: Any, **__: Any) -> None:
        self._after_iter(runner, batch_idx, mode="train")

    def after_test_iter(self, runner: Runner, batch_idx: int, *_: Any, **__: Any) -> None:
        self._after_iter(runner, batch_idx, mode="test")


def config(task: str, data: Path, work_dir: Path, iterations: int) -> Config:
    """Return a config of the smallest model, one process, without evaluations in between."""
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
        task: a key of `CONFIGS`.
        phase: one of `PHASES`.
        data: a dataset generated by `fcvit_mm.datasets.shapes`.
        work_dir: of training and evaluation.
        total: iterations of a training, images of an evaluation.
        samples: how many to take.
        hooks: further hooks.
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
    """Send what the process prints to a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--images", type=int, default=5000)
    args = parser.parse_args()
    failed = False
    # a fresh process for each run
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        context.Pool(1, _quiet, (f"{folder}/log.txt",), maxtasksperchild=1) as pool,
    ):
        data = Path(folder, "shapes")
        shapes.generate(data, 64, args.images, SIZE)
        print("| | steps | MB after the warm-up | MB at the end | bytes per step | |")
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
