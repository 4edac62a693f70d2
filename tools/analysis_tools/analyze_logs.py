"""Print loss, learning rate, mAP and mIoU of trainings, and plot them."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fcvit_mm.analysis import logs
from fcvit_mm.utils.cli import PLOTS, ending, run_tool, writing
from fcvit_mm.utils.files import atomic_write


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="WORK_DIR", help="a work directory, or a scalars.json in one"
    )
    parser.add_argument("--keys", nargs="+", help="what to show, such as loss coco/bbox_mAP_50")
    parser.add_argument("--out", type=ending(*PLOTS), metavar="FILE.png", help="plot them")
    parser.add_argument("--json", type=ending(".json"), metavar="FILE", help="write the figures")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    runs = [logs.read_run(Path(path)) for path in args.runs]
    keys = logs.choose(runs, args.keys)
    Console().print(logs.table(runs, keys))
    found = {run.name: logs.summary(run, keys) for run in runs}
    for run in runs:
        if n := found[run.name]["not_finite"]:
            run.problems.append(f"{run.name}: {n} values are not finite")
        for problem in run.problems:
            print(f"warning: {problem}", file=sys.stderr)
    if args.json:
        with writing(args.json), atomic_write(args.json) as partial:
            partial.write_text(json.dumps(found, indent=1))
    if args.out:
        with writing(args.out):
            logs.plot(runs, keys, args.out)
        print(f"plot: {args.out}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
