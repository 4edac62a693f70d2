"""Compare the tests of MMEngine, MMCV and MMDetection with and without `import fcvit_mm`.

    python tests/helpers/upstream.py ../mmengine ../mmcv ../mmdetection
    python tests/helpers/upstream.py ../mmcv -k "nms or roi_align or focal"

The folders are checkouts of the projects; of these only the tests are used, and MMDetection's
configs: what they test is installed. Their tests need `parameterized`, `expecttest` and `lmdb`.
Status 1 where a test passes without the import and fails with it. Where mmcv is not compiled, its
own tests can't be collected without us, or are skipped; what they then fail on is printed.
"""

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

# By the package that a checkout holds: the tests that our changes could break.
SUITES = {
    "mmengine": ["tests/test_runner", "tests/test_hooks", "tests/test_fileio"],
    "mmcv": ["tests/test_ops"],
    "mmdet": ["tests/test_models/test_detectors"],
}

FAILED = ("failure", "error")

# The working directory leaves sys.path, or the checkout would be tested in place of the package.
# MMDetection looks for its configs next to its sources, where an installed one has none.
RUN = """
import os, sys
sys.path.pop(0)
{first}
if os.path.isdir("mmdet"):
    try:
        import mmdet.testing._utils as mmdet_utils
        mmdet_utils._get_config_directory = lambda: "configs"
    except ImportError as error:  # of mmcv's operators, as in the tests themselves
        print("MMDetection can't be imported:", error)
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


def run_suite(folder: Path, path: str, select: str, first: str) -> dict[str, str]:
    """Run tests of a checkout in a process of their own; return the outcome of each by its name."""
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary, "report.xml")
        options = ["-q", "--tb=line", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
        command = [sys.executable, "-c", RUN.format(first=first), *options, "-k", select]
        status = subprocess.run([*command, f"--junitxml={report}", path], cwd=folder).returncode
        if not report.exists():  # a crash takes the report along
            sys.exit(f"{folder.name} {path}: the run of the tests ended with status {status}")
        cases = ElementTree.parse(report).iter("testcase")
        return {
            f"{case.get('classname')}::{case.get('name')}": next(
                (child.tag for child in case if child.tag in ("failure", "error", "skipped")),
                "passed",
            )
            for case in cases
        }


def compare(folder: Path, path: str, select: str) -> list[str]:
    """Run tests of a checkout twice and print how they end; return those that we break."""
    plain, ours = (run_suite(folder, path, select, first) for first in ("", "import fcvit_mm"))
    for what, outcomes in (("without", plain), ("with", ours)):
        counts = sorted(Counter(outcomes.values()).items())
        line = ", ".join(f"{number} {outcome}" for outcome, number in counts)
        print(f"{folder.name} {path} {what} fcvit_mm: {line}", flush=True)
    for name, outcome in ours.items():
        before = plain.get(name, "not collected")
        if outcome in FAILED and before not in FAILED:
            print(f"{name}: {before} without fcvit_mm, {outcome} with it")
    return [
        name for name, outcome in ours.items() if outcome in FAILED and plain.get(name) == "passed"
    ]


def main() -> int:
    """Compare the suites of the folders given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("-k", default="", metavar="WORDS", help="as pytest's -k")
    args = parser.parse_args()
    new = []
    for folder in map(Path.resolve, args.folders):
        package = next((name for name in SUITES if (folder / name).is_dir()), None)
        if package is None:
            parser.error(f"{folder} is no checkout of MMEngine, MMCV or MMDetection")
        for path in SUITES[package]:
            new += compare(folder, path, args.k)
    print(
        f"{len(new)} tests pass without fcvit_mm alone: {', '.join(new)}"
        if new
        else "no new failure"
    )
    return min(len(new), 1)


if __name__ == "__main__":
    sys.exit(main())
