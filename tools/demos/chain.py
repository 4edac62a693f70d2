"""Show what pretraining as a classifier gains in detection and segmentation."""

import argparse
import sys
from collections.abc import Sequence

from fcvit_mm.demos import transfer
from fcvit_mm.utils.cli import run_tool, whole_number


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    positive = whole_number(1)
    parser.add_argument("--work-dir", default="work_dirs/chain", help="metrics, plot, logs")
    parser.add_argument("--data-root", default="data", help="folder of the generated datasets")
    parser.add_argument("--seeds", type=whole_number(0), nargs="+", default=(0, 1, 2))
    parser.add_argument("--pretraining", type=positive, default=400, help="iterations")
    parser.add_argument("--iterations", type=positive, default=100, help="with each start")
    parser.add_argument("--processes", type=positive, default=2, help="trainings at a time")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    transfer.run(**vars(parse_args(argv)))


if __name__ == "__main__":
    sys.exit(run_tool(main))
