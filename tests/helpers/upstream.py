"""Compare the tests of MMEngine, MMCV and MMDetection with and without `import fcvit_mm`.

    python tests/helpers/upstream.py ../mmengine ../mmcv ../mmdetection
    python tests/helpers/upstream.py ../mmcv -k "nms or roi_align or focal"

The folders are checkouts of the projects; of these only the tests are used, and MMDetection's
configs: what they test is installed. Status 1 where a test fails only after the import.
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

# The working directory leaves sys.path, or the checkout would be tested in place of the package.
# MMDetection looks for its configs next to its sources, where an installed one has none.
RUN = """
import sys
sys.path.pop(0)
{first}
try:
    import mmdet.testing._utils as mmdet_utils
    mmdet_utils._get_config_directory = lambda: "configs"
except Exception as error:
    print("MMDetection can't be imported:", error)
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


def run_suite(folder: Path, paths: list[str], select: str, first: str) -> dict[str, str]:
    """Run tests of a checkout in a process of their own; return the outcome of each by its name."""
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary, "report.xml")
        options = ["-q", "--tb=line", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
        command = [sys.executable, "-c", RUN.format(first=first), *options, "-k", select]
        status = subprocess.run([*command, f"--junitxml={report}", *paths], cwd=folder).returncode
        if not report.exists():  # a crash takes the report along
            return {"the whole run": f"ended with status {status}"}
        cases = ElementTree.parse(report).iter("testcase")
        return {
            f"{case.get('classname')}::{case.get('name')}": next(
                (child.tag for child in case if child.tag in ("failure", "error", "skipped")),
                "passed",
            )
            for case in cases
        }


def compare(folder: Path, select: str) -> list[str]:
    """Run a checkout's tests twice, print how they end; return those that fail with us alone."""
    package = next((name for name in SUITES if (folder / name).is_dir()), None)
    if package is None:
        sys.exit(f"{folder} is no checkout of MMEngine, MMCV or MMDetection")
    new = []
    for path in SUITES[package]:
        plain, ours = (
            run_suite(folder, [path], select, first) for first in ("", "import fcvit_mm")
        )
        broken = sorted(
            name
            for name, outcome in ours.items()
            if outcome not in ("passed", "skipped") and plain.get(name) in ("passed", "skipped")
        )
        for what, outcomes in (("without", plain), ("with", ours)):
            counts = sorted(Counter(outcomes.values()).items())
            line = ", ".join(f"{number} {outcome}" for outcome, number in counts)
            print(f"{package} {path} {what} fcvit_mm: {line}", flush=True)
        new += broken
    return new


def main() -> int:
    """Compare the suites of the folders given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("-k", default="", metavar="WORDS", help="as pytest's -k")
    args = parser.parse_args()
    new = [name for folder in args.folders for name in compare(folder.resolve(), args.k)]
    print("\n".join(f"fails with fcvit_mm alone: {name}" for name in new) or "no new failure")
    return min(len(new), 1)


if __name__ == "__main__":
    sys.exit(main())
