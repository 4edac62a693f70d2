"""Train and test by a config."""

from .failures import naming_dead_workers
from .runner import build_runner, prepare, test, train

__all__ = ["build_runner", "naming_dead_workers", "prepare", "test", "train"]
