"""Start the processes of a training, and run a function in one of them for all."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from mmengine.config import Config
from mmengine.dist import init_dist, is_distributed, is_main_process
from mmengine.utils.dl_utils import set_multi_processing
from torch.distributed import broadcast_object_list, init_process_group, new_group

from ..utils.errors import CheckpointError, ConfigError

T = TypeVar("T")
# a year
MOST_SECONDS = 365 * 24 * 3600


def read_timeout(cfg: Config) -> timedelta | None:
    """Return how long the processes wait for each other; None is PyTorch's default."""
    seconds = ((cfg.get("env_cfg") or {}).get("dist_cfg") or {}).get("timeout")
    if seconds is None:
        return None
    if not isinstance(seconds, int | float) or not 0 < seconds < MOST_SECONDS:
        raise ConfigError(
            f"env_cfg.dist_cfg.timeout={seconds!r} must be a number of seconds above 0"
        )
    return timedelta(seconds=seconds)


def start_distributed(cfg: Config) -> None:
    """Let the processes of a launcher find each other; a ConfigError if it needs GPUs."""
    launcher = cfg.get("launcher", "none")
    if launcher == "none" or is_distributed():
        return
    env_cfg, timeout = cfg.get("env_cfg") or {}, read_timeout(cfg)
    if torch.cuda.is_available():
        set_multi_processing(**env_cfg.get("mp_cfg", {}), distributed=True)
        init_dist(launcher, **env_cfg.get("dist_cfg", {}))
    elif launcher == "pytorch":
        # MMEngine's own initialization selects a CUDA device first.
        init_process_group("gloo", timeout=timeout)
    else:
        raise ConfigError(f"--launcher {launcher} needs GPUs; on CPUs use --launcher pytorch")


def run_on_main_process(function: Callable[[], T]) -> T:
    """Run a function in the first process; return its result, or raise its error, in all."""
    outcome: list = [None, None]
    if is_main_process():
        try:
            outcome[0] = function()
        except (CheckpointError, ConfigError) as error:
            outcome[1] = error
    if is_distributed():
        # NCCL, which images would be trained with, gives up waiting after ten minutes.
        group: Any = new_group(backend="gloo", timeout=timedelta(days=1))
        broadcast_object_list(outcome, src=0, group=group)
    if outcome[1]:
        raise outcome[1]
    return outcome[0]
