"""The contract on every Python that is found, oldest and newest PyTorch, both sets of packages.

    python tests/helpers/matrix.py [--pythons python3.12 ...]

Each cell is a virtual environment of its own, made by pip as a user makes it: the package with the
oldest PyTorch of setup.cfg's bound or with the newest that pip finds, and one of the two sets of
OpenMMLab's packages. In it run the golden data, gradients, checkpoints, operators and Triton's
kernels, and a training that evaluates, writes checkpoints and is resumed. Prints a table in
Markdown; status 1 if a cell fails, whose output is kept. An environment is 6 GB and removed when
its cells are done.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIRST_PYTHON = 10  # of 3
PACKAGES = ("openmmlab", "openmmlab-official")
TOOLS = "tests/cli/test_tools.py::test_"
MODULES = ("backbone", "layers", "checkpoint", "mmcv_ops")
CONTRACT = (
    *(f"tests/unit/test_{name}.py" for name in MODULES),
    "tests/stress/test_ops_attack.py",
    "tests/stress/test_triton_ops.py",
    TOOLS + "training_evaluates_and_writes_checkpoints",
    TOOLS + "test_prints_the_metrics_of_the_last_evaluation",
    TOOLS + "resume_goes_on_from_the_newest_checkpoint",
)


VERSIONS = "import torch, mmcv, numpy as n; print(*(m.__version__ for m in (torch, mmcv, n)))"


class CellError(Exception):
    """A step of a cell failed; its message is the step and the last lines of its output."""


def find_pythons() -> list[Path]:
    """An interpreter of each Python from 3.10 on, of the PATH or of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    found = []
    for minor in range(FIRST_PYTHON, FIRST_PYTHON + 10):
        name = f"python3.{minor}"
        for path in (shutil.which(name), *sorted(pyenv.glob(f"versions/3.{minor}.*/bin/python"))):
            # pyenv's own `python3.10` of the PATH only runs where that version is chosen
            if path and not subprocess.run([path, "-c", ""], capture_output=True).returncode:
                found.append(Path(path))
                break
    return found


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


def cells(
    python: Path, requirement: str, folder: Path, log: Path
) -> Iterator[tuple[str, list[str], str]]:
    """Both sets of packages with one PyTorch, which they share: packages, versions, result."""
    # The one with PyTorch comes first; the other links to its PyTorch.
    first = folder / PACKAGES[0] / "bin/python"
    for packages in PACKAGES:
        interpreter, versions = folder / packages / "bin/python", ["none"] * 3
        pip = (interpreter, "-m", "pip", "install", "--disable-pip-version-check")
        try:
            run(log, python, "-m", "venv", folder / packages)
            run(log, *pip, "packaging", "pytest", "hypothesis")
            if interpreter == first:
                run(log, *pip, requirement, "torchvision")
            else:
                share = (
                    "tests/helpers/share_packages.py",
                    folder / packages,
                    "torch",
                    "torchvision",
                )
                run(log, first, *share)
            run(log, *pip, "--editable", f".[{packages},demo]")
            versions = run(log, interpreter, "-c", VERSIONS).split()[-3:]
            output = run(log, interpreter, "-m", "pytest", "-q", *CONTRACT)
            result = output.strip().splitlines()[-1].strip("= ")
        except CellError as error:
            result = f"FAILED: {error}"
        yield packages, versions, result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pythons", nargs="+", type=Path, default=find_pythons())
    parser.add_argument("--logs", type=Path, default=ROOT / "work_dirs/matrix")
    args = parser.parse_args()
    args.logs.mkdir(parents=True, exist_ok=True)
    failed = False
    print("| Python | packages | PyTorch | mmcv | NumPy | result |")
    print("|---|---|---|---|---|---|", flush=True)
    for python in args.pythons:
        version = subprocess.check_output([python, "-V"], text=True).split()[1]
        for age, requirement in (("oldest", oldest_torch()), ("newest", "torch")):
            log = args.logs / f"python-{version}-{age}-torch.log"
            log.unlink(missing_ok=True)
            with tempfile.TemporaryDirectory() as folder:
                for packages, versions, result in cells(python, requirement, Path(folder), log):
                    row = version, packages, *versions, result
                    print(f"| {' | '.join(row)} |", flush=True)
                    failed |= result.startswith("FAILED")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
