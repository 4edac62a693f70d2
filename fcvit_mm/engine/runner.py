"""What every tool needs between a config file and a Runner: checks first, then the machine.

A config is written for GPUs, with mixed precision and SyncBN; `adapt` changes what this machine
can't do. `check_files` names missing weights and data before anything is built. `run_tool` turns
what a user can mend into one sentence and exit status 2.
"""

import errno
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.runner import Runner

from ..checkpoint.reader import is_url, read_checkpoint
from ..utils.config import adapt, drop_pretrained
from ..utils.errors import CheckpointError, ConfigError, DeadWorkerError, first_line
from . import resume
from .dist import run_on_main_process, start_distributed
from .hooks.complete_checkpoint_hook import CompleteCheckpointHook
from .hooks.due_evaluation_hook import DueEvaluationHook
from .hooks.seed_hook import SeedHook
from .preflight import check_checkpoint, check_files, check_neck
from .seeding import RepeatableRunner

# An optional metric of MMDetection that says at import that "metrics will not be computed".
warnings.filterwarnings("ignore", message="faster_coco_eval is not installed")


# What the system says when nothing more can be written: no space, quota, largest file.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Runner(RepeatableRunner):
    """A Runner that says in a sentence what a checkpoint lacks to be loaded or resumed."""

    def load_or_resume(self) -> None:
        try:
            super().load_or_resume()
        except CheckpointError:
            raise
        except Exception as error:  # what a file holds beside weights may be anything
            raise CheckpointError(
                f"{self._load_from or self.work_dir}: its checkpoint can't be loaded or resumed: "
                f"{type(error).__name__} {first_line(error)}"
            ) from error


def build_runner(cfg: Config) -> Runner:
    """Adapt a config to this machine and build its Runner, a repeatable one (see `repeat`).

    Raises:
        ConfigError: something that the config names can't be built.
    """
    changes = adapt(cfg) + resume.keep_enough(cfg)
    if cfg.launcher != "none":
        start_distributed(cfg)
    try:
        # MMEngine 0.10.7 starts loading with its loop
        with naming_dead_workers():
            runner = _Runner.from_cfg(cfg)
            # MMEngine builds these later, amid the run; each is kept and used as it is built here.
            if cfg.get("train_cfg"):
                _ = runner.train_loop
                runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
            for loop in ("val_loop", "test_loop"):
                if getattr(runner, f"_{loop}") is not None:
                    getattr(runner, loop)
    except DeadWorkerError:
        raise
    except Exception as error:  # a config names arbitrary classes, which fail in their own ways
        raise ConfigError(f"{cfg.filename} can't be built: {first_line(error)}") from error
    check_neck(runner.model)
    for change in changes:
        runner.logger.info(f"adapted to this machine: {change}")
    if cfg.get("load_from"):
        hook = CompleteCheckpointHook(cfg.load_from, whole=cfg.resume or not cfg.get("train_cfg"))
        runner.register_hook(hook)
    if cfg.get("train_cfg"):
        runner.register_hook(SeedHook())
        if cfg.get("resume"):
            runner.register_hook(DueEvaluationHook())
    return runner


@contextmanager
def naming_dead_workers() -> Iterator[None]:
    """Say which process that loads images has died, and of what.

    Raises:
        DeadWorkerError: for PyTorch's RuntimeError inside.
    """
    try:
        yield
    except RuntimeError as error:
        # the signal is in the error before the last
        said = [
            str(one) for one in (error.__cause__, error) if "DataLoader worker (pid" in str(one)
        ]
        if not said:
            raise
        which, _, how = said[0].partition("is killed by signal: ")
        (pid,) = re.findall(r"\(pid\S* ([\d, ]+)\)", which)
        how = f"was killed by the signal '{how.split('.')[0]}'" if how else "ended by itself"
        raise DeadWorkerError(
            f"the process {pid}, a DataLoader worker of rank {get_rank()}, {how}. 'Killed' mostly "
            "means that memory ran out (see dmesg): set fewer workers, such as --cfg-options "
            "train_dataloader.num_workers=1, or smaller "
            "batches; 'Bus error' that /dev/shm is full: enlarge it, with Docker by --shm-size; "
            "'Segmentation fault' mostly a damaged image or annotation: num_workers=0 and "
            "persistent_workers=False show where. Then --resume from the last checkpoint"
        ) from error


def _prepare_resume(cfg: Config) -> None:
    """Set in a config the checkpoint to go on from, if it names none, and the training's seed."""

    def find() -> tuple[str, int | None] | None:
        if cfg.get("load_from"):
            path, content = cfg.load_from, read_checkpoint(cfg.load_from)
        elif (found := resume.newest(cfg)) is None:
            print(f"there is no checkpoint in {resume.folder(cfg)}: the training begins anew")
            return None
        else:
            path, content = found
        meta = content.get("meta")
        if not isinstance(meta, dict) or "iter" not in meta or "optimizer" not in content:
            raise CheckpointError(
                f"{path} holds no training to go on from, such as the optimizer's state; to start "
                f"a new one from its weights, replace --resume by --cfg-options load_from={path}"
            )
        return str(path), meta.get("seed")

    if (found := run_on_main_process(cfg, find)) is None:
        cfg.resume = False
        return
    cfg.load_from, seed = found
    if not is_url(cfg.load_from) and not Path(cfg.load_from).expanduser().is_file():
        raise CheckpointError(
            f"{cfg.load_from} lies on the first machine, and not on this one; have all machines "
            "share the work directory"
        )
    # MMEngine takes it over too late for the order of the data
    cfg.randomness = dict(cfg.get("randomness") or {}, seed=seed)


def train(cfg: Config) -> Runner:
    """Train by a config, validation included.

    Raises:
        ConfigError, CheckpointError: before the first iteration, see `check_files` and
            `build_runner`, and when a disk is full.
        NonFiniteError: see `NonFiniteLossHook`.
        DeadWorkerError: a process that loads images has died.
    """
    if cfg.get("resume"):
        _prepare_resume(cfg)
    elif cfg.get("load_from"):
        check_checkpoint(cfg.load_from)
    if cfg.get("load_from"):
        drop_pretrained(cfg)
    loaders = (
        ("train_dataloader", "val_dataloader") if cfg.get("val_cfg") else ("train_dataloader",)
    )
    check_files(cfg, loaders)
    runner = build_runner(cfg)
    try:
        with naming_dead_workers():
            runner.train()
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        whole = resume.checkpoints(cfg)
        kept = f"{whole[0]} is whole" if whole else "there is no earlier checkpoint"
        raise ConfigError(
            f"{error.filename or f'the log in {cfg.work_dir}'} can't be written: {error.strerror}; "
            f"{kept}. Make room, then go on with --resume"
        ) from error
    return runner


def test(cfg: Config) -> dict[str, float]:
    """Test the checkpoint `cfg.load_from` by a config; returns the metrics.

    Raises:
        ConfigError, CheckpointError: as `train`, or a checkpoint that doesn't fill the model.
        DeadWorkerError: as `train`.
    """
    check_checkpoint(cfg.load_from)
    drop_pretrained(cfg)
    check_files(cfg, ("test_dataloader",))
    # What belongs to training must not be needed, nor built.
    for key in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler",
                "val_dataloader", "val_cfg", "val_evaluator"):  # fmt: skip
        cfg.pop(key, None)
    runner = build_runner(cfg)
    with naming_dead_workers():
        return runner.test()
