"""Every exception that the package raises for what a user can mend."""


class CheckpointError(ValueError):
    """A checkpoint can't be used; the message says which, why, and what to do."""


class ConfigError(ValueError):
    """A config, or what it names, can't be used; the message says what, where and what to do."""


class DatasetError(ConfigError):
    """A dataset can't be generated as asked; the message says why and what to do."""


class DeadWorkerError(RuntimeError):
    """A process that loads images has died; the message says which, how, and what to do."""


def first_line(error: Exception) -> str:
    """The first line of what an error says, without the quotes of a KeyError."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0]


class NonFiniteError(ArithmeticError):
    """A loss or a gradient is not finite; the message says which, where, and what to do."""
