"""Compare the tests of MMEngine, MMCV and MMDetection with and without `import fcvit_mm`.

    python tests/helpers/upstream.py ../mmengine ../mmcv ../mmdetection
    python tests/helpers/upstream.py ../mmcv -k "nms or roi_align or focal"

The folders are checkouts of the projects; of these only the tests are used, and MMDetection's
configs: what they test is installed. Their tests need `parameterized`, `expecttest` and `lmdb`.
Each file is run in a process of its own. Printed are counts, the messages of failures with us, and
the tests that pass without us alone; status 1 where there are any. Where mmcv is not compiled, its
own tests and MMDetection's fail without us, or are skipped.
"""

import argparse
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

# By the package that a checkout holds: what its tests import, and those that we could break.
SUITES = {
    "mmengine": ("mmengine.runner", ["tests/test_runner", "tests/test_hooks", "tests/test_fileio"]),
    "mmcv": ("mmcv.ops", ["tests/test_ops"]),
    "mmdet": ("mmdet.testing._utils", ["tests/test_models/test_detectors"]),
}
KINDS = ("passed", "failure", "error", "skipped")

# Of a test: how it ended (passed, skipped, failure or error) and the first line of its message.
Outcomes = dict[str, tuple[str, str]]


def in_child(function: Callable[..., None], *args: object) -> int:
    """Call a function in a copy of this process; return the status that it ends with."""
    process = multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    process.join()
    return process.exitcode or 0


def run_file(file: Path, report: Path, options: list[str], limit: int) -> None:
    """Run one file of tests, and write pytest's report."""
    signal.alarm(limit)  # ends the process, in compiled code too
    quiet = ["-q", "--tb=line", "-p", "no:cacheprovider"]
    sys.exit(pytest.main([*quiet, *options, f"--junitxml={report}", str(file)]))


def run_files(package: str, files: list[Path], reports: Path, ours: bool, *how: object) -> None:
    """Import what is compared once, then run each file in a copy of this process."""
    if ours:
        import fcvit_mm  # noqa: F401
    try:  # what is installed, before pytest puts the checkout ahead of it
        module = importlib.import_module(SUITES[package][0])
    except ImportError as error:  # of mmcv's operators, as in the tests
        print(f"{package}: {error}", flush=True)
    else:  # MMDetection looks for configs next to its sources, where an installed one has none
        vars(module).update(_get_config_directory=lambda: "configs")
    for number, file in enumerate(files):
        in_child(run_file, file, reports / f"{number}.xml", *how)


def run_suite(folder: Path, package: str, path: str, ours: bool, *how: object) -> Outcomes:
    """Run the tests below a path of a checkout; return how each ends, by its name."""
    os.chdir(folder)
    with tempfile.TemporaryDirectory() as temporary:
        reports, outcomes = Path(temporary), {}
        files = sorted(Path(path).rglob("test_*.py"))
        if in_child(run_files, package, files, reports, ours, *how):
            sys.exit(f"{package} {path}: the tests could not be run")
        for number, file in enumerate(files):
            report = reports / f"{number}.xml"
            if not report.exists():  # a crash takes it along
                outcomes[str(file)] = "error", f"{file} crashed, or took too long"
                continue
            for case in ElementTree.parse(report).iter("testcase"):
                bad = next((child for child in case if child.tag in KINDS), None)
                message = "" if bad is None else bad.get("message", "").partition("\n")[0]
                name = f"{case.get('classname')}::{case.get('name')}"
                outcomes[name] = "passed" if bad is None else bad.tag, message
    return outcomes


def compare(folder: Path, package: str, path: str, *how: object) -> list[str]:
    """Run tests of a checkout twice and print how they end; return those that we break."""
    plain, ours = (run_suite(folder, package, path, ours, *how) for ours in (False, True))
    print(f"\n{package} {path}")
    for what, outcomes in (("without", plain), ("with", ours)):
        counts = Counter(kind for kind, _ in outcomes.values())
        print(f"{what:7}" + "".join(f"{counts[kind]:6} {kind}" for kind in KINDS))
    reasons = Counter(reason for kind, reason in ours.values() if kind in ("failure", "error"))
    for reason, count in reasons.most_common():
        print(f"{count:13} failed with us: {reason[:150]}")
    broken = [name for name in plain if plain[name][0] == "passed" != ours.get(name, ("",))[0]]
    for name in broken:
        print("NEW", name, *ours.get(name, ["not collected"]), flush=True)
    return broken


def main() -> int:
    """Compare the suites of the folders given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("-k", default="", metavar="WORDS", help="as pytest's -k")
    parser.add_argument("--timeout", type=int, default=600, metavar="SECONDS", help="for a file")
    args = parser.parse_args()
    broken = []
    for folder in map(Path.resolve, args.folders):
        package = next((name for name in SUITES if (folder / name).is_dir()), None)
        if package is None:
            parser.error(f"{folder} is no checkout of MMEngine, MMCV or MMDetection")
        for path in SUITES[package][1]:
            broken += compare(folder, package, path, ["-k", args.k], args.timeout)
    print(f"{len(broken)} tests pass without fcvit_mm alone" if broken else "no new failure")
    return min(len(broken), 1)


if __name__ == "__main__":
    sys.exit(main())
