"""The contract on every Python at hand, oldest and newest PyTorch, both sets of packages.

    python tests/matrix.py [--pythons python3.10 ...]

Each cell is a virtual environment of its own, made by pip as a user makes it: the package with the
oldest PyTorch of setup.cfg's bound or with the newest that pip finds, and one of the two sets of
OpenMMLab's packages. In it run the golden data, gradients, checkpoints and operators, and a
training that evaluates, writes checkpoints and is resumed. Prints a table in Markdown; status 1 if
a cell fails, whose output is kept. An environment is 6 GB and removed when its cells are done.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("python3.10", "python3.11", "python3.12", "python3.13", "python3.14")
PACKAGES = ("openmmlab", "openmmlab-official")
TOOLS = "tests/test_tools.py::test_"
CONTRACT = (
    *(f"tests/test_{name}.py" for name in ("backbone", "layers", "checkpoint", "mmcv_ops")),
    TOOLS + "training_evaluates_and_writes_checkpoints",
    TOOLS + "test_prints_the_metrics_of_the_last_evaluation",
    TOOLS + "resume_goes_on_from_the_newest_checkpoint",
)


VERSIONS = "import torch, mmcv, numpy as n; print(*(m.__version__ for m in (torch, mmcv, n)))"


class CellError(Exception):
    """A step of a cell failed; its message is the step and the last lines of its output."""


def oldest_torch() -> str:
    """The lower bound of setup.cfg, as a requirement of that release alone."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    found = re.search(r"^torch>=([\d.]+)", setup["options"]["install_requires"], re.MULTILINE)
    assert found
    return f"torch=={found[1]}.*"


def run(log: Path, *command: object) -> str:
    """Run a command in the repository; its output is returned and added to a log."""
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    with log.open("a") as file:
        print("$", *command, f"\n{done.stdout}", file=file)
    if done.returncode:
        lines = done.stdout.strip().splitlines()
        raise CellError(f"{Path(str(command[0])).name}: {lines[-1] if lines else 'no output'}")
    return done.stdout


def cells(python: str, torch: str, folder: Path, logs: Path) -> Iterator[tuple[str, str, str]]:
    """Both sets of packages with one PyTorch, which they share: packages, versions, result."""
    # The one with PyTorch comes first; the other links to its PyTorch.
    first = folder / PACKAGES[0]
    for packages in PACKAGES:
        log = logs / f"{python}-{torch.strip('=*.')}-{packages}.log"
        venv, versions = folder / packages, []
        interpreter = venv / "bin/python"
        pip = (interpreter, "-m", "pip", "install", "--disable-pip-version-check")
        try:
            run(log, python, "-m", "venv", venv)
            if venv == first:
                run(log, *pip, torch, "torchvision")
            else:
                share = ("tests/share_packages.py", venv, "torch", "torchvision")
                run(log, first / "bin/python", *share)
            run(log, *pip, "--editable", f".[{packages},demo]", "pytest", "hypothesis", "packaging")
            versions = run(log, interpreter, "-c", VERSIONS).split()[-3:]
            output = run(log, interpreter, "-m", "pytest", "-q", *CONTRACT)
            result = output.strip().splitlines()[-1].strip("= ")
        except CellError as error:
            result = f"FAILED: {error} (see {log})"
        yield packages, " ".join(versions), result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pythons", nargs="+", default=[p for p in PYTHONS if shutil.which(p)])
    parser.add_argument("--logs", type=Path, default=ROOT / "work_dirs/matrix")
    args = parser.parse_args()
    args.logs.mkdir(parents=True, exist_ok=True)
    failed = False
    print("| Python | PyTorch | packages | versions: torch, mmcv, numpy | result |")
    print("|---|---|---|---|---|", flush=True)
    for python in args.pythons:
        for age, torch in (("oldest", oldest_torch()), ("newest", "torch")):
            with tempfile.TemporaryDirectory() as folder:
                for packages, versions, result in cells(python, torch, Path(folder), args.logs):
                    print(f"| {python} | {age} | {packages} | {versions} | {result} |", flush=True)
                    failed |= "FAILED" in result
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
