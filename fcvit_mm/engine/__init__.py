"""Train and test by a config."""

from .failures import naming_dead_workers
from .runner import build_runner, test, train

__all__ = ["build_runner", "naming_dead_workers", "test", "train"]
