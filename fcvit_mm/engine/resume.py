"""Find the checkpoint that a training goes on from, read it once, and keep enough of them."""

import re
import sys
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process

from ..checkpoint.mmengine_backends import ALREADY_READ, load_from_file
from ..utils.errors import CheckpointError
from ..utils.files import PARTIAL
from .dist import run_on_main_process

# The checkpoint of a training that a signal has stopped.
STOPPED = "stopped.pth"


def hook(cfg: Config) -> dict:
    """Return the settings of a config's CheckpointHook."""
    return (cfg.get("default_hooks") or {}).get("checkpoint") or {}


def keep_enough(cfg: Config) -> list[str]:
    """Have a training keep a checkpoint while it writes the next; returns a line if it changed."""
    settings = hook(cfg)
    if settings.get("max_keep_ckpts") != 1:
        return []
    settings["max_keep_ckpts"] = 2
    return [
        "default_hooks.checkpoint: max_keep_ckpts=2 for 1, with which MMEngine deletes the only "
        "checkpoint before it writes the next"
    ]


def folder(cfg: Config) -> Path:
    """Return the folder where a training by this config writes its checkpoints."""
    work_dir = Path(cfg.work_dir).absolute()
    out_dir = hook(cfg).get("out_dir")
    # as CheckpointHook does
    return work_dir if out_dir in (None, str(work_dir)) else Path(out_dir, work_dir.name)


def checkpoints(cfg: Config) -> list[Path]:
    """List the checkpoints of a training that can be resumed, the one written last first."""
    settings = hook(cfg)
    name = settings.get("filename_tmpl") or (
        "epoch_{}.pth" if settings.get("by_epoch", True) else "iter_{}.pth"
    )
    # not by number: an earlier training may have left higher ones
    return sorted(
        {*folder(cfg).glob(re.sub(r"\{.*?\}", "*", name)), *folder(cfg).glob(STOPPED)},
        key=lambda path: path.stat().st_mtime_ns,
        reverse=True,
    )


def newest(cfg: Config) -> Path | None:
    """Return and read the newest whole checkpoint of a config's work directory, if any.

    The files themselves are read, checksums included, not MMEngine's note `last_checkpoint`.
    Damaged ones are named on stderr; what killed trainings left half-written is deleted.

    Raises:
        CheckpointError: there are some, and all are damaged.
    """
    for path in folder(cfg).glob(PARTIAL.format(stem="*", unique="*", suffix=".pth")):
        path.unlink(missing_ok=True)
    problems = []
    for path in checkpoints(cfg):
        try:
            ALREADY_READ[str(path)] = load_from_file(str(path), "cpu")
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            print(f"warning: {problem}. {path} is taken in its place", file=sys.stderr)
        return path
    if problems:
        raise CheckpointError(
            f"no checkpoint in {folder(cfg)} can be used: {problems[0]}, or leave out --resume to "
            "begin anew"
        )
    return None


def read_start(cfg: Config) -> None:
    """Read the checkpoint that a training begins with or goes on from, if any, for MMEngine, too.

    Where the config has `resume` and names none, it is set to the newest of the work directory. On
    resume the training's seed is set, too, which MMEngine takes over too late for the order of the
    data.

    Raises:
        CheckpointError: there is no such file, it is damaged or hostile, or it can't be resumed.
    """
    ALREADY_READ.clear()
    if cfg.get("resume") and not cfg.get("load_from"):
        found = run_on_main_process(lambda: newest(cfg))
        cfg.resume, cfg.load_from = found is not None, found and str(found)
        if not cfg.resume and is_main_process():
            print(f"there is no checkpoint in {folder(cfg)}: the training begins anew")
        if cfg.resume and not Path(cfg.load_from).is_file():
            raise CheckpointError(
                f"{cfg.load_from} lies on the first machine, and not on this one; have all "
                "machines share the work directory"
            )
    if not cfg.get("load_from"):
        return
    if cfg.load_from not in ALREADY_READ:
        ALREADY_READ[cfg.load_from] = load_from_file(cfg.load_from, "cpu")
    if cfg.get("resume"):
        content = ALREADY_READ[cfg.load_from]
        meta = content.get("meta")
        if not isinstance(meta, dict) or "iter" not in meta or "optimizer" not in content:
            raise CheckpointError(
                f"{cfg.load_from} holds no training to go on from, such as the optimizer's state; "
                "to start a new one from its weights, replace --resume by --cfg-options "
                f"load_from={cfg.load_from}"
            )
        for key in ("epoch", "iter", "seed"):
            # MMEngine prints them, and a text may hold what a terminal obeys
            if not isinstance(meta.get(key), int | None):
                raise CheckpointError(f"{cfg.load_from} can't be resumed: meta.{key} is no integer")
        cfg.randomness = dict(cfg.get("randomness") or {}, seed=meta.get("seed"))
