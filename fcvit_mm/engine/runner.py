"""Train and test by a config: adapt it to the machine, check all that it names, build, run."""

from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from ..utils.config import adapt, drop_pretrained
from ..utils.errors import CheckpointError, first_line, name_failure
from ..utils.options import drop_training_options
from . import resume
from .dist import read_timeout, start_distributed
from .failures import naming_dead_workers, naming_full_disk, naming_lost_processes
from .hooks.complete_checkpoint_hook import CompleteCheckpointHook
from .hooks.due_evaluation_hook import DueEvaluationHook
from .hooks.stop_hook import StopHook
from .preflight import check_files, check_neck, check_settings, schedule_mismatch, unwrap
from .progress import showing_progress
from .seeding import RepeatableRunner, SeedHook
from .summary import overview, result, shorten

# What belongs to training, which a test must neither need nor build.
TRAINING = ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler",
            "val_dataloader", "val_cfg", "val_evaluator")  # fmt: skip


def train(cfg: Config, checked: bool = False, remedy: str = "--resume") -> Runner:
    """Train by a config, validation included.

    Args:
        cfg: changed in place as this machine needs it.
        checked: leave out the check of the data.
        remedy: what goes on with a training that a signal has stopped.

    Raises:
        ConfigError, CheckpointError: before the first iteration, for what is missing, damaged or
            can't be built; later, when a disk is full.
        NonFiniteError: see `NonFiniteLossHook`.
        DeadWorkerError: a process that loads images has died, or one of several that train.
        SampleError: an image, its label map or its annotations can't be loaded.
        SystemExit: Ctrl-C or SIGTERM, see `StopHook`.
    """
    start_distributed(cfg)
    changes = prepare(cfg, training=True, checked=checked)
    runner = _build(cfg, changes)
    for hook in runner.hooks:
        # else a first evaluation that finds nothing would stay the best
        if getattr(hook, "rules", None) == ["greater"]:
            runner.message_hub.update_info("best_score", 0.0)
    stop = StopHook(resume.folder(cfg) / resume.STOPPED, remedy, read_timeout(cfg))
    runner.register_hook(stop)
    with (
        showing_progress(runner),
        naming_lost_processes(),
        stop.listening(),
        naming_dead_workers(),
        naming_full_disk(cfg),
    ):
        runner.train()
    runner.logger.info(result(runner))
    return runner


def test(cfg: Config, checked: bool = False) -> dict[str, float]:
    """Test the checkpoint `cfg.load_from` by a config; returns the metrics.

    Raises:
        ConfigError, CheckpointError: as `train`, or a checkpoint that doesn't fill the model.
        DeadWorkerError, SampleError: as `train`.
    """
    start_distributed(cfg)
    changes = prepare(cfg, training=False, checked=checked)
    for key in TRAINING:
        cfg.pop(key, None)
    drop_training_options(cfg)
    runner = _build(cfg, changes)
    with showing_progress(runner), naming_lost_processes(), naming_dead_workers():
        return runner.test()


def prepare(cfg: Config, training: bool, checked: bool = False) -> list[str]:
    """Adapt a config to this machine, and check weights and data before anything is built.

    The checkpoint to begin with, if any, is read. Returns what was changed.

    Raises:
        ConfigError, CheckpointError: something is missing or damaged.
    """
    check_settings(cfg, "train" if training else "test")
    changes, loaders = adapt(cfg), ["test_dataloader"]
    if training:
        changes += resume.keep_enough(cfg)
        loaders = ["train_dataloader", *["val_dataloader"] * bool(cfg.get("val_cfg"))]
    else:
        cfg.resume = False
    resume.read_start(cfg)
    if cfg.get("load_from"):
        drop_pretrained(cfg)
    check_files(cfg, tuple(loaders), checked)
    return changes


def build_runner(cfg: Config) -> Runner:
    """Adapt a config to this machine and build its Runner, a repeatable one (see `seeding`).

    Raises:
        ConfigError: something that the config names can't be built.
    """
    check_settings(cfg, "train" if cfg.get("train_cfg") else "test")
    changes = adapt(cfg) + resume.keep_enough(cfg)
    start_distributed(cfg)
    return _build(cfg, changes)


class _Runner(RepeatableRunner):
    """A Runner whose log begins in brief, and that says in a sentence what can't be loaded."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        if not self.cfg.get("verbose"):
            shorten(logger)
        return logger

    def dump_config(self) -> None:
        # A test would overwrite the config that a training wrote, by what can't train, or by a
        # model with test-time augmentation; its own is in the folder of its log.
        if self.cfg.get("train_cfg") or self.cfg.filename is None:
            super().dump_config()

    def build_param_scheduler(self, scheduler: Any) -> Any:
        with name_failure(f"{self.cfg.filename}: param_scheduler can't be built"):
            return super().build_param_scheduler(scheduler)

    def _maybe_compile(self, target: str) -> None:
        with name_failure(f"{self.cfg.filename}: compile={self.cfg.get('compile')} can't be done"):
            super()._maybe_compile(target)

    def load_or_resume(self) -> None:
        wanted = _settings(self) if self._resume else {}
        try:
            super().load_or_resume()
        except CheckpointError:
            raise
        except Exception as error:  # a file may hold anything besides weights
            raise CheckpointError(
                f"{self._load_from or self.work_dir}: its checkpoint can't be loaded or resumed: "
                f"{type(error).__name__} {first_line(error)}"
            ) from error
        if taken := {k: v for k, v in _settings(self).items() if wanted.get(k, v) != v}:
            given = ", ".join(f"{key}={wanted[key]}" for key in taken)
            found = ", ".join(f"{key}={value!r}" for key, value in taken.items())
            self.logger.warning(
                f"{given} of the config is not used: resumed, the training goes on with the "
                f"checkpoint's {found}; to train with the config's, begin anew from its weights, "
                "by load_from without --resume"
            )


def _settings(runner: Runner) -> dict[str, Any]:
    """Return the settings of optimizer and schedules that a checkpoint has, too.

    Of the optimizer, those of its parameter group with the highest learning rate.
    """
    if not isinstance(runner.optim_wrapper, OptimWrapper):
        return {}
    optimizer, schedules = runner.optim_wrapper.optimizer, runner.param_schedulers or []
    # the initial values, which schedules change
    groups = [
        {name: group.get(f"initial_{name}", group.get(name)) for name in optimizer.defaults}
        for group in optimizer.param_groups
    ]
    group = max(groups, key=lambda group: group["lr"])
    return {f"optimizer.{name}": value for name, value in group.items()} | {
        f"param_scheduler.{i}.{name}": value
        for i, schedule in enumerate(schedules if isinstance(schedules, list) else [])
        for name, value in schedule.state_dict().items()
        if not name.startswith("_") and name not in ("last_step", "base_values", "verbose")
    }


def _build(cfg: Config, changes: Sequence[str]) -> Runner:
    """Build the Runner of an adapted config, all its parts included, and log what it will do.

    MMEngine builds loops and optimizer amid the run; here they are built before, so that an error
    comes at once and as a sentence.
    """
    # MMEngine 0.10.7 starts loading with its loop
    with name_failure(f"{cfg.filename} can't be built"), naming_dead_workers():
        runner = _Runner.from_cfg(cfg)
        # for each dataset pycocotools prints four lines
        with nullcontext() if cfg.get("verbose") else redirect_stdout(StringIO()):
            for loop in ("train_loop", "val_loop", "test_loop"):
                if getattr(runner, f"_{loop}") is not None:
                    getattr(runner, loop)
        # MMEngine asks for these parts amid the run, too
        for key in ("activation_checkpointing", "efficient_conv_bn_eval"):
            parts = cfg.get(key) or ()
            for part in [parts] if isinstance(parts, str) else parts:
                unwrap(runner.model).get_submodule(part)
        if cfg.get("train_cfg"):
            runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    check_neck(runner.model)
    for line in schedule_mismatch(cfg) if cfg.get("train_cfg") else ():
        runner.logger.warning(line)
    for line in (*overview(runner), *(f"adapted to this machine: {one}" for one in changes)):
        runner.logger.info(line)
    if cfg.get("load_from"):
        hook = CompleteCheckpointHook(
            cfg.load_from, whole=cfg.get("resume", False) or not cfg.get("train_cfg")
        )
        runner.register_hook(hook)
    if cfg.get("train_cfg"):
        runner.register_hook(SeedHook())
        if cfg.get("resume"):
            runner.register_hook(DueEvaluationHook())
    return runner
