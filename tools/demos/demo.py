"""Generate data, train FCViT-tiny on them and draw what it finds."""

import argparse
import sys
from collections.abc import Sequence

from fcvit_mm.demos import demo
from fcvit_mm.utils.cli import run_tool, whole_number


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=demo.TASKS, default=demo.TASKS[0])
    parser.add_argument("--data", choices=demo.DATA, default=demo.DATA[0])
    parser.add_argument("--work-dir", help="log, weights, images (default: work_dirs/demo_...)")
    parser.add_argument("--data-root", help="folder of the data (default: data/shapes, data/coins)")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="of the training")
    parser.add_argument("--iterations", type=whole_number(1), help="default: the config's")
    parser.add_argument(
        "--images",
        type=whole_number(1),
        nargs=2,
        metavar=("TRAIN", "VAL"),
        help="numbers of generated images; others than usual need a --data-root of their own",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    demo.run(**vars(parse_args(argv)))


if __name__ == "__main__":
    sys.exit(run_tool(main))
