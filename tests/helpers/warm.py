"""Run scripts in processes forked from one that has imported everything already.

Importing PyTorch, the toolboxes and Matplotlib takes six seconds or more, and most scripts that
tests run do little besides. Apart from that, a process of `start` is like one of `subprocess`: it
has its own working directory, environment, output and exit status, and can be killed.
"""

import copy
import gc
import multiprocessing
import os
import random
import resource
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from helpers import ROOT

SERVER = multiprocessing.get_context("forkserver")
OURS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for room in ("analysis", "apis", "datasets", "demos", "engine", "evaluation")
    for path in sorted((ROOT / "fcvit_mm" / room).rglob("[!_]*.py"))
    if path.stem != "app"  # Gradio takes four more seconds, and one test needs it
]
# What is not installed is passed over.
SERVER.set_forkserver_preload(
    [
        "fcvit_mm",  # before mmcv, whose operators it provides
        "pytest",  # the main module of the tests, which each process imports
        "torch.distributed",
        "yapf.yapflib.yapf_api",
        "matplotlib.pyplot",
        "mmdet.apis",
        "mmdet.evaluation",
        "mmseg.apis",
        "mmseg.evaluation",
        "mmpretrain.apis",
        "mmpretrain.evaluation",
        *OURS,
    ]
)


def leave_configs_unformatted() -> None:
    """Have MMEngine write configs as they are.

    It formats them for every log and checkpoint, which takes most of the time of a short training.
    """
    for name in ("yapf.yapflib.yapf_api", "mmengine.config.config"):
        vars(import_module(name))["FormatCode"] = lambda text, **_: (text, True)


def read_configs_once() -> None:
    """Have MMEngine parse a file of configs/ once per process, not for each config based on it."""
    config = import_module("mmengine.config").Config
    parse = config._file2dict
    parsed: dict[tuple, tuple] = {}

    def _file2dict(filename: str, *args: Any, **kwargs: Any) -> tuple:
        path = Path(filename).resolve()
        if not path.is_relative_to(ROOT / "configs"):
            return parse(filename, *args, **kwargs)
        key = (path, args, *kwargs.items())
        if key not in parsed:
            parsed[key] = parse(filename, *args, **kwargs)
        return copy.deepcopy(parsed[key])

    config._file2dict = staticmethod(_file2dict)


def _run(
    command: list[str],
    directory: Path,
    environment: dict[str, str],
    output: tuple[Path, Path],
    largest_file: int,
) -> None:
    gc.freeze()  # or each collection would go through all that is imported, and copy it
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in enumerate(output, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    # which a shell has processes in the background ignore
    signal.signal(signal.SIGINT, signal.default_int_handler)
    leave_configs_unformatted()
    # Of both, seeds are drawn where none is given; forked processes would all draw the same.
    random.seed()
    import_module("numpy").random.seed()
    sys.argv = command if command[0] != "-m" else command[1:]
    sys.path.insert(0, str(directory if command[0] == "-m" else Path(command[0]).parent))
    try:
        if command[0] == "-m":
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit:
        raise
    except BaseException:
        # where multiprocessing would print a traceback of its own
        sys.excepthook(*sys.exc_info())
        sys.exit(1)


def start(
    command: Sequence[object],
    directory: Path,
    output: Path,
    errors: Path | None = None,
    environment: Mapping[str, str] | None = None,
    largest_file: int = resource.RLIM_INFINITY,
) -> BaseProcess:
    """Start a script or a module.

    Args:
        command: the script's path, or -m and the module's name, and the arguments.
        directory: to run in.
        output: the file that its output is appended to.
        errors: the file that its standard error is appended to; `output` by default.
        environment: all of its environment; that of the tests by default.
        largest_file: in bytes, that the system lets it write.
    """
    process = SERVER.Process(
        target=_run,
        args=(
            [str(word) for word in command],
            directory,
            dict(os.environ if environment is None else environment),
            (output, errors or output),
            largest_file,
        ),
    )
    process.start()
    return process


def run(
    command: Sequence[object],
    directory: Path,
    environment: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> subprocess.CompletedProcess[str]:
    """Run a script or a module to its end, as `subprocess.run` does with captured text."""
    with TemporaryDirectory() as folder:
        output, errors = Path(folder, "out"), Path(folder, "err")
        process = start(command, directory, output, errors, environment)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired([*map(str, command)], timeout)
        said = [path.read_text() if path.exists() else "" for path in (output, errors)]
    return subprocess.CompletedProcess([*map(str, command)], process.exitcode, *said)


def ready() -> None:
    """Have the server import everything, so that the next process does not wait for it."""
    process = SERVER.Process(target=int)
    process.start()
    process.join()
