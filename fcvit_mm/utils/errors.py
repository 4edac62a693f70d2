"""Exceptions for what a user can mend: what is wrong, where, and what to do, in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager


class CheckpointError(ValueError):
    """Say that a checkpoint can't be used."""


class RefusedError(ValueError):
    """Say that a checkpoint file asks for more than weights need; `CheckpointError` wraps it."""


class UnknownGlobalError(RefusedError):
    """Say that a pickle asks for a global that is not allowed; the message is its name."""


class ConfigError(ValueError):
    """Say that a config, or what it names, can't be used."""


class DatasetError(ConfigError):
    """Say that a dataset can't be generated as asked."""


class DeadWorkerError(RuntimeError):
    """Say that a process has died or hangs: one that loads images, or one of several that train."""


class ShardError(RuntimeError):
    """Say that one of several processes can't go on with its part of the images."""


class SampleError(RuntimeError):
    """Say that an image, its label map or its annotations can't be loaded."""


class NonFiniteError(ArithmeticError):
    """Say that a loss or a gradient is not finite."""


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, without the quotes of a KeyError."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0]


@contextmanager
def name_failure(what: str, remedy: str = "") -> Iterator[None]:
    """Turn whatever is raised into a ConfigError that says what failed, and a remedy.

    But not what says itself which file or process it is about.
    """
    try:
        yield
    except (DeadWorkerError, SampleError):
        raise
    except Exception as error:  # a config names arbitrary classes, which fail in their own ways
        raise ConfigError(f"{what}: {first_line(error)}{remedy}") from error
