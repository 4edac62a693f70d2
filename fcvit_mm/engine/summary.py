"""What the log of a run begins and ends with, in a few lines."""

import os
import shlex
from logging import FileHandler, StreamHandler
from pathlib import Path

import mmengine
import torch
from mmengine.logging import MMLogger
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..utils.config import iter_config_dicts
from ..utils.errors import ConfigError
from ..utils.work_dir import find
from . import resume
from .preflight import unwrap


def shorten(logger: MMLogger) -> None:
    """Keep environment, config and hooks off the console; the log file has them."""
    for handler in logger.handlers:
        if isinstance(handler, StreamHandler) and not isinstance(handler, FileHandler):
            handler.addFilter(
                lambda record: (
                    record.module != "runner" or record.funcName not in ("__init__", "_log_env")
                )
            )


def overview(runner: Runner) -> list[str]:
    """Describe a run before it begins: what, by what, on what, and where its results will be."""
    cfg, model = runner.cfg, unwrap(runner.model)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    files = [
        node["checkpoint"]
        for _, node in iter_config_dicts(cfg.model)
        if node.get("type") == "Pretrained"
    ]
    start = runner._load_from or ", ".join(files) or "random"
    loops = {"training": runner._train_loop, "validation": runner._val_loop,
             "test": None if runner._train_loop else runner._test_loop}  # fmt: skip
    images = [
        f"{len(loop.dataloader.dataset)} {split} images" for split, loop in loops.items() if loop
    ]
    lines = [
        f"config: {_short(_config(runner))}",
        f"model: {type(model).__name__}, {millions:.1f} M parameters",
        f"weights: {start}{', resumed' if runner._resume else ''}",
        f"data: {', '.join(images)}",
    ]
    if runner._train_loop:
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        length = f"{runner.max_epochs} epochs" if by_epoch else f"{runner.max_iters} iterations"
        optimizer = cfg.optim_wrapper.get("optimizer", {})
        lines.append(
            f"training: {length}, batches of {cfg.train_dataloader.get('batch_size')} per process, "
            f"{optimizer.get('type')} at lr {optimizer.get('lr')}, seed {runner.seed}"
        )
    device = next(model.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    processes = f"{runner.world_size} process" + ("es" if runner.world_size > 1 else "")
    log = _short(Path(runner.log_dir, f"{runner.timestamp}.log"))
    return [
        *lines,
        f"device: {name}, {processes}",
        f"versions: PyTorch {torch.__version__}, MMEngine {mmengine.__version__}",
        f"log: {log}, with environment, config and hooks, which --verbose prints, too",
    ]


def result(runner: Runner) -> str:
    """Name the best checkpoint of a training, or else its last, and the command that tests it."""
    best = runner.message_hub.get_info("best_ckpt")
    if best and Path(best).is_file():
        metric = resume.hook(runner.cfg).get("save_best")
        score = f" ({metric} {runner.message_hub.get_info('best_score'):.4g})"
        found, path = f"best checkpoint: {_short(best)}{score}", Path(best)
    elif whole := resume.checkpoints(runner.cfg):
        found, path = f"last checkpoint: {_short(whole[0])}", whole[0]
    else:
        return "no checkpoint was written"
    work_dir = Path(runner.work_dir)
    try:
        is_found = find(work_dir)[1].samefile(path)
    except ConfigError:  # another training's config lies there, too, or the checkpoints elsewhere
        is_found = False
    model = [work_dir] if is_found else [_config(runner), path]
    command = shlex.join(["fcvit", "test", *map(_short, model)])
    return f"{found}; to test it: {command}"


def _config(runner: Runner) -> Path:
    """Return the path of the config that a training wrote, with all options; of a test, its own."""
    name = Path(runner.cfg.filename or f"{runner.timestamp}.py")
    return Path(runner.work_dir, name.name) if runner._train_loop else name


def _short(path: str | Path) -> str:
    """Return a path as seen from the current directory, if it lies below."""
    here = os.path.relpath(path)
    return str(path) if here.startswith("..") else here
