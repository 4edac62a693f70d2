"""Transfer learning in small: pretrain FCViT-tiny as a classifier, fine-tune for dense prediction.

For each seed a classifier is trained on generated images of one shape each. Mask R-CNN and
Semantic FPN are then trained on images of several shapes twice, from random weights and with the
classifier's checkpoint as the backbone's `init_cfg`; all else is the same.
"""

import math
import multiprocessing
import signal
import statistics
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..datasets import shapes
from ..utils.cli import writing
from ..utils.config import load_config
from ..utils.files import write_json
from ..visualization.figures import make_panels, save_figure
from .demo import DEMOS
from .training import Curve, Demo, evaluations, move_data, run_training, shorten

PRETRAINING = Demo(
    "fcvit_mm::classification/fcvit_tiny_shapes.py",
    lambda folder, _: shapes.generate(folder, task="classification"),
    {"accuracy/top1": "top-1"},
    full=100.0,
)
DENSE = ("detection", "segmentation")
TASKS = {"classification": PRETRAINING, **{task: DEMOS[task, "shapes"] for task in DENSE}}
# where each task's data lie below their common folder
DATA = {"classification": "shapes_classification", **dict.fromkeys(DENSE, "shapes")}
STARTS = ("random", "pretrained")
# of a training
EVALUATIONS = 3
# Of detectors and segmentors, from either start: half of their configs', which is for random
# weights and overwrites what was learnt before.
FINE_TUNING_LR = 1e-3


class Training(NamedTuple):
    """One training: of a task of `TASKS`, with a seed; the backbone starts from a checkpoint."""

    task: str
    seed: int
    iterations: int
    data: Path
    work_dir: Path
    checkpoint: Path | None = None

    @property
    def start(self) -> str:
        return STARTS[self.checkpoint is not None]

    @property
    def folder(self) -> Path:
        return self.work_dir / f"{self.task}_{self.start}_{self.seed}"

    @property
    def result(self) -> Path:
        """The checkpoint that it leaves."""
        return self.folder / f"iter_{self.iterations}.pth"


# of detectors and segmentors by task, start and seed
Curves = dict[str, dict[str, dict[int, Curve]]]


def train(training: Training) -> tuple[Training, Curve]:
    """Run a training in this process, on one CPU thread; return its evaluations."""
    torch.set_num_threads(1)
    demo = TASKS[training.task]
    options: dict[str, Any] = {"randomness.seed": training.seed}
    if training.task in DENSE:
        options["optim_wrapper.optimizer.lr"] = FINE_TUNING_LR
    cfg = load_config(demo.config, options, str(training.folder))
    move_data(cfg, training.data / DATA[training.task])
    shorten(cfg, training.iterations)
    cfg.train_cfg.val_interval = math.ceil(training.iterations / EVALUATIONS)
    for split in ("train", "val"):
        # a process has one CPU thread
        cfg[f"{split}_dataloader"].update(num_workers=0, persistent_workers=False)
    if training.checkpoint:
        cfg.model.backbone.init_cfg = dict(type="Pretrained", checkpoint=str(training.checkpoint))
    # the last one alone
    cfg.default_hooks.checkpoint.update(
        interval=training.iterations, save_best=None, save_optimizer=False
    )
    training.folder.mkdir(parents=True, exist_ok=True)
    with (
        (training.folder / "output.txt").open("w") as file,
        redirect_stdout(file),
        redirect_stderr(file),
    ):
        run_training(cfg)
    return training, evaluations(training.folder, demo)


def _spread(values: Sequence[float]) -> str:
    """Format the mean and, of several, the standard deviation (of the sample)."""
    text = f"{statistics.mean(values):.3f}"
    return f"{text} ± {statistics.stdev(values):.3f}" if len(values) > 1 else text


def table(curves: Curves) -> str:
    """Tabulate the last evaluations in Markdown."""
    lines = ["| metric | seed | random | pretrained | difference |", "|---|---|---|---|---|"]
    for task, starts in curves.items():
        seeds = list(starts[STARTS[0]])
        for name in TASKS[task].metrics.values():
            last = [[starts[start][seed][-1][1][name] for start in STARTS] for seed in seeds]
            for seed, (random, pretrained) in zip(seeds, last, strict=True):
                values = f"{random:.3f} | {pretrained:.3f} | {pretrained - random:+.3f}"
                lines.append(f"| {name} | {seed} | {values} |")
            columns = (*zip(*last, strict=True), [after - before for before, after in last])
            spreads = " | ".join(_spread(column) for column in columns)
            lines.append(f"| **{name}** | mean ± std | {spreads} |")
    return "\n".join(lines)


def draw(path: Path, curves: Curves) -> None:
    """Plot every evaluation, one line per seed, and their mean over the seeds."""
    names = [(task, name) for task in curves for name in TASKS[task].metrics.values()]
    figure, grid = make_panels(1, len(names), (3.4 * len(names), 3.4), sharey=True)
    for axes, (task, name) in zip(grid[0], names, strict=True):
        for start, color in zip(STARTS, ("#7f8c8d", "#c0392b"), strict=True):
            lines = []
            for curve in curves[task][start].values():
                iterations = [iteration for iteration, _ in curve]
                lines.append([metrics[name] for _, metrics in curve])
                axes.plot(iterations, lines[-1], color=color, alpha=0.35, linewidth=0.9)
            mean = np.mean(lines, axis=0)
            axes.plot(iterations, mean, color=color, marker="o", label=f"{start} start")
        axes.set(xlabel="iteration", title=f"{task}: {name}", ylim=(0, 1))
        axes.grid(alpha=0.3)
    grid[0, 0].set_ylabel("on held-out images")
    grid[0, 0].legend(frameon=False, loc="upper left")
    seeds = len(curves[DENSE[0]][STARTS[0]])
    count = f"{seeds} seed{'s' if seeds > 1 else ''}"
    figure.suptitle(f"FCViT-tiny, random or pretrained start, {count}", fontsize=12)
    save_figure(figure, path)


def run(
    work_dir: str,
    data_root: str,
    seeds: Sequence[int],
    pretraining: int,
    iterations: int,
    processes: int,
) -> None:
    """Make the data that are not there, run all trainings, and say what pretraining gained.

    Args:
        work_dir: a folder per training, `results.json` and `chain.png`.
        data_root: where the folders shapes and shapes_classification are, or are made.
        seeds: of the trainings; the data stay the same.
        pretraining, iterations: of a classifier; of each detector and segmentor.
        processes: trainings at a time.

    Raises:
        fcvit_mm.utils.errors.ConfigError: the data can't be made there.
    """
    folder, data = Path(work_dir), Path(data_root)
    for task, name in DATA.items():
        with writing(data / name):
            if not (data / name).exists():
                TASKS[task].generate(data / name, None)

    def dense(checkpoint: Path | None, seed: int) -> list[Training]:
        return [Training(task, seed, iterations, data, folder, checkpoint) for task in DENSE]

    first = [Training("classification", seed, pretraining, data, folder) for seed in seeds]
    random = [training for seed in seeds for training in dense(None, seed)]
    second = [training for one in first for training in dense(one.result, one.seed)]
    count = len(first + random + second)
    print(f"{count} trainings, {processes} at a time; logs: {folder}", flush=True)
    found: dict[tuple[str, str, int], Curve] = {}
    # spawn, since a fork of a process with threads may hang; a fresh process for each training
    context = multiprocessing.get_context("spawn")
    # Ctrl-C reaches all processes; this one ends the others
    ignore = (signal.SIGINT, signal.SIG_IGN)
    with context.Pool(processes, signal.signal, ignore, maxtasksperchild=1) as pool:
        for group in ([*first, *random], second):
            for training, curve in pool.imap_unordered(train, group):
                found[training.task, training.start, training.seed] = curve
                reached = ", ".join(f"{name} {value:.3f}" for name, value in curve[-1][1].items())
                print(f"{len(found)} of {count}, {training.folder.name}: {reached}", flush=True)
    curves: Curves = {
        task: {start: {seed: found[task, start, seed] for seed in seeds} for start in STARTS}
        for task in DENSE
    }
    content = {
        "seeds": list(seeds),
        "iterations": {"pretraining": pretraining, "training": iterations},
        "classification": {seed: found["classification", STARTS[0], seed] for seed in seeds},
        **curves,
    }
    with writing(folder):
        write_json(folder / "results.json", content)
        draw(folder / "chain.png", curves)
    print(f"\nafter {iterations} iterations, on held-out images:\n\n{table(curves)}\n")
    print(f"  metrics: {folder / 'results.json'}\n  plot:    {folder / 'chain.png'}")
