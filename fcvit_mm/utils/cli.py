"""What the command-line tools share: argument types, options, errors as one sentence."""

import argparse
import errno
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.dist import is_distributed
from torch.distributed import destroy_process_group

from . import work_dir
from .errors import (
    CheckpointError,
    ConfigError,
    DeadWorkerError,
    NonFiniteError,
    SampleError,
    ShardError,
    first_line,
)
from .files import make_folder

# endings of files with weights
CHECKPOINTS = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".safetensors")


class Terminated(KeyboardInterrupt):
    """Say that SIGTERM came: whatever cleans up after Ctrl-C does so then, too."""


def _terminate(*_: Any) -> None:
    if hasattr(signal, "SIGCHLD"):  # not on Windows
        # loader workers that got the signal, too, are no error
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    raise Terminated


def run_tool(
    main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None
) -> int:
    """Run the main function of a tool with the arguments `argv`, by default `sys.argv`.

    Returns:
        The exit status: 2 after an error of the user's, which is said in one sentence, 130 after
        Ctrl-C, 143 after SIGTERM, else 0.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        main(argv)
    except (CheckpointError, ConfigError, NonFiniteError) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        else:
            # torchrun ends all processes of a machine with the first: let that be the one that says
            time.sleep(10)
        return 2
    except KeyboardInterrupt as stop:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"\n{str(stop) or 'stopped'}", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    except (DeadWorkerError, SampleError, ShardError) as error:
        # of which other processes know nothing; a dying process leaves an unfinished line
        print(f"\nerror: {error}", file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGTERM, before)
    # Left to the end of the interpreter, the threads of a group may abort the process.
    if is_distributed():
        destroy_process_group()
    return 0


def require(module: str, extra: str) -> None:
    """Refuse to go on without a package that one tool alone needs; name the extra that has it."""
    if find_spec(module) is None:
        raise ConfigError(f"this needs {module}, which is not installed: pip install "
                          f"'fcvit-mm[{extra}]'")  # fmt: skip


class _Options(DictAction):
    """Parse `KEY=VALUE ...`, also dicts; refuse in a sentence what MMEngine's own fails on."""

    def __call__(self, parser: Any, namespace: Any, values: Any, *rest: Any) -> None:
        for word in values:
            if "=" not in word:
                parser.error(f"{word!r} is not KEY=VALUE, such as model.backbone.arch=s24")
            key, _, value = word.partition("=")
            if "dict(" not in value:
                try:
                    super().__call__(parser, namespace, [word], *rest)
                except (AssertionError, RecursionError):
                    parser.error(f"{word!r}: its brackets are no list [a,b] and no tuple (a,b)")
                continue
            try:
                parsed = Config.fromstring(f"value = {value}", ".py").value
            except Exception as error:  # as an expression of a config, it may fail in any way
                parser.error(f"{word!r}: a value with dicts is read as in a config, and this can't "
                             f"be: {first_line(error)}")  # fmt: skip
            options = getattr(namespace, self.dest, None) or {}
            setattr(namespace, self.dest, {**options, key: parsed})


def add_config(parser: argparse.ArgumentParser, checkpoint: bool = False) -> None:
    """Add the arguments of a tool that reads a config, and a checkpoint."""
    parser.add_argument("config", help="path of a config file, or a work directory")
    if checkpoint:
        parser.add_argument(
            "checkpoint",
            nargs="?",
            help="path, URL or name (default: the best of the work directory, or else its newest)",
        )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=_Options,
        metavar="KEY=VALUE",
        help="changes to the config, such as model.backbone.arch=s24 or key='[a,b]'",
    )


def parse_model(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parse the arguments of a tool with `add_config(parser, checkpoint=True)`.

    After a work directory the checkpoint may be left out, and is then found there.

    Raises:
        ConfigError: there is no such work directory, or it has none.
    """
    # or a word before an option would decide whether what follows it is the checkpoint
    args = parser.parse_intermixed_args(argv)
    if not Path(args.config).exists() and not args.config.endswith(".py"):
        raise ConfigError(f"{args.config}: there is no such file or work directory")
    if not Path(args.config).is_dir():
        if args.checkpoint is None:
            parser.error(
                f"{args.config} needs a checkpoint, which comes after it; a work directory stands "
                "for both"
            )
        return args
    if args.checkpoint and "inputs" in args and not args.checkpoint.endswith(CHECKPOINTS):
        args.inputs.insert(0, args.checkpoint)
        args.checkpoint = None
    if args.checkpoint is None:
        args.checkpoint = str(work_dir.find(args.config)[1])
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"checkpoint: {args.checkpoint}", file=sys.stderr)
    return args


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that train.py and test.py share."""
    parser.add_argument(
        "--verbose", action="store_true", help="begin the log with environment, config and hooks"
    )
    parser.add_argument(
        "--check", action="store_true", help="check config, weights and data, and end"
    )
    # what starts several processes passes it on after it has done that
    parser.add_argument("--checked", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    # torch.distributed.launch passes it; torchrun sets the variable instead.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def _number(kind: type, least: float, most: float, what: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        with suppress(ValueError):
            if least <= (number := kind(text)) <= most:
                return number
        raise argparse.ArgumentTypeError(f"{text} must be {what}")

    return parse


def whole_number(least: int) -> Callable[[str], int]:
    """Make a type for argparse: integers from `least` on."""
    return _number(int, least, math.inf, f"a whole number of at least {least}")


def number_between(least: float, most: float) -> Callable[[str], float]:
    """Make a type for argparse: numbers from `least` to `most`."""
    return _number(float, least, most, f"a number from {least} to {most}")


fraction = number_between(0, 1)


def ending(*allowed: str) -> Callable[[str], Path]:
    """Make a type for argparse: files to write that end in one of `allowed`."""

    def parse(text: str) -> Path:
        if Path(text).suffix not in allowed:
            raise argparse.ArgumentTypeError(f"{text} must end in {' or '.join(allowed)}")
        return Path(text)

    return parse


# what matplotlib writes
PLOTS = (".png", ".pdf", ".svg")


def check_writable(option: str, path: Path | None) -> None:
    """Raise a ConfigError if a file can't be written, before anything takes long."""
    if path is not None:
        with writing(f"{option} {path}"):
            make_folder(path.parent)
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


@contextmanager
def writing(what: str | Path) -> Iterator[None]:
    """Raise a ConfigError that says which result could not be written, for an OSError inside."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{what} can't be written: {error.strerror or error}") from error
