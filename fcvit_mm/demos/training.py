"""Fit configs to a demonstration, and read what a training reached."""

import math
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner

from .. import engine
from ..analysis import logs

# (iteration, metrics) of each evaluation
Curve = list[tuple[int, dict[str, float]]]


class Demo(NamedTuple):
    """What belongs to one demonstration."""

    config: str
    # writes the dataset into a folder; (train, val) numbers of images or None for the usual ones
    generate: Callable[[Path, tuple[int, int] | None], bool]
    metrics: dict[str, str]  # MMEngine's names and ours
    full: float = 1.0  # of the metrics, which are divided by it


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


def run_training(cfg: Config) -> Runner:
    """Train by a config; if it is stopped, say which command goes on with the training alone."""
    config = Path(cfg.work_dir, Path(cfg.filename).name)
    return engine.train(cfg, remedy=shlex.join(["fcvit", "train", str(config), "--resume"]))


def evaluations(work_dir: Path, demo: Demo) -> Curve:
    """Return what a training reached in each of its evaluations, from its log."""
    return [
        # COCO's metrics are -1 where there is nothing to find
        (step, {name: max(found[key], 0.0) / demo.full for key, name in demo.metrics.items()})
        for step, found in sorted(logs.read_run(work_dir).evaluations.items())
    ]


@torch.no_grad()
def predict(runner: Runner, items: Iterable[Any]) -> list[Any]:
    """Predict for items of the held-out dataset; returns their data samples."""
    runner.model.eval()
    batches = (pseudo_collate([item]) for item in items)
    return [sample.cpu() for batch in batches for sample in runner.model.val_step(batch)]
