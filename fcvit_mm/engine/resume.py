"""Going on with a training that ended early: whole checkpoints, the newest of them, what is due.

A checkpoint is written aside and gets its name when it is complete. `newest` reads the files
themselves, checksums included, and does not ask MMEngine's note of the last one, `last_checkpoint`.
"""

import re
import sys
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..checkpoint.reader import read_checkpoint
from ..utils.errors import CheckpointError
from ..utils.files import PARTIAL


def _hook(cfg: Config) -> dict:
    return (cfg.get("default_hooks") or {}).get("checkpoint") or {}


def keep_enough(cfg: Config) -> list[str]:
    """Have a training keep a checkpoint while it writes the next; returns a line if it changed."""
    hook = _hook(cfg)
    if hook.get("max_keep_ckpts") != 1:
        return []
    hook["max_keep_ckpts"] = 2
    return [
        "default_hooks.checkpoint: max_keep_ckpts=2 for 1, with which MMEngine deletes the only "
        "checkpoint before it writes the next"
    ]


def folder(cfg: Config) -> Path:
    """Where a training by this config writes its checkpoints."""
    work_dir = Path(cfg.work_dir).absolute()
    out_dir = _hook(cfg).get("out_dir")
    # as CheckpointHook does
    return work_dir if out_dir in (None, str(work_dir)) else Path(out_dir, work_dir.name)


def checkpoints(cfg: Config) -> list[Path]:
    """The checkpoints of a training that can be resumed, the one written last first."""
    hook = _hook(cfg)
    name = hook.get("filename_tmpl") or (
        "epoch_{}.pth" if hook.get("by_epoch", True) else "iter_{}.pth"
    )
    # not by number: an earlier training may have left higher ones
    return sorted(
        folder(cfg).glob(re.sub(r"\{.*?\}", "*", name)),
        key=lambda path: path.stat().st_mtime_ns,
        reverse=True,
    )


def newest(cfg: Config) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint of a config's work directory, and what it holds.

    Damaged ones are named on stderr; what killed trainings left half-written is deleted.

    Returns:
        None where there is no checkpoint.

    Raises:
        CheckpointError: there are some, and all are damaged.
    """
    for path in folder(cfg).glob(PARTIAL.format(stem="*", suffix=".pth")):
        path.unlink(missing_ok=True)
    problems = []
    for path in checkpoints(cfg):
        try:
            content = read_checkpoint(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            print(f"warning: {problem}. {path} is taken in its place", file=sys.stderr)
        return path, content
    if problems:
        raise CheckpointError(
            f"no checkpoint in {folder(cfg)} can be used: {problems[0]}, or leave out --resume to "
            "begin anew"
        )
    return None
