"""tools/train.py in processes that can be killed, without the seconds that imports take."""

import multiprocessing
import os
import runpy
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

from conftest import ROOT, free_port

# A server that has imported everything, and is forked for each training.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["fcvit_mm.runtime", "runpy", "torch", "mmdet.apis", "mmdet.evaluation", "mmseg.apis"]
)


def _run(directory: Path, log: Path, arguments: list[str], environment: dict[str, str]) -> None:
    os.chdir(directory)
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    script = ROOT / "tools/train.py"
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")


def start(
    directory: Path, work_dir: Path, *arguments: object, launcher: dict[str, str] | None = None
) -> BaseProcess:
    """Start tools/train.py; what it says is appended to WORK_DIR.txt.

    Args:
        directory: to run in.
        work_dir: of the training.
        arguments: of the tool.
        launcher: environment of one of several processes.
    """
    words = [*map(str, arguments)]
    words[1:1] = ["--work-dir", str(work_dir)]
    if launcher:
        words[1:1] = ["--launcher", "pytorch"]
    process = SERVER.Process(
        target=_run, args=(directory, said(work_dir), words, launcher or {})
    )
    process.start()
    return process


def said(work_dir: Path) -> Path:
    """Where the output of a training goes."""
    return work_dir.with_name(f"{work_dir.name}.txt")


def train(directory: Path, work_dir: Path, *arguments: object, processes: int = 1) -> None:
    """Run tools/train.py in some processes to its end."""
    launchers = [None] if processes == 1 else [
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
         "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for port in [str(free_port())]
        for rank in range(processes)
    ]
    running = [start(directory, work_dir, *arguments, launcher=one) for one in launchers]
    for process in running:
        process.join()
    assert not any(process.exitcode for process in running), said(work_dir).read_text()[-3000:]
