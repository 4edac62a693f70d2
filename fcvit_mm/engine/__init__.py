"""Train and test by a config."""

from .runner import build_runner, naming_dead_workers, test, train

__all__ = ["build_runner", "naming_dead_workers", "test", "train"]
