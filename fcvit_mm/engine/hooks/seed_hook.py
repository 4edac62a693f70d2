"""Seed every training iteration."""

from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...utils.seeding import seed_all


class SeedHook(Hook):
    """Seeds each training iteration, process by process."""

    priority = "VERY_HIGH"

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Seed by the training's seed, the iteration and the process."""
        seed_all(runner.seed, runner.iter, get_rank())
