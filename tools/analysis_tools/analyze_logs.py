"""Print loss, learning rate, mAP and mIoU of trainings, and plot them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fcvit_mm.analysis import logs
from fcvit_mm.utils.cli import PLOTS, ending, run_tool, writing
from fcvit_mm.utils.files import write_json

from rich.console import Console
from rich.table import Column, Table


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="WORK_DIR", help="a work directory, or a scalars.json in one"
    )
    parser.add_argument("--keys", nargs="+", help="what to show, such as loss coco/bbox_mAP_50")
    parser.add_argument("--out", type=ending(*PLOTS), metavar="FILE.png", help="plot them")
    parser.add_argument("--json", type=ending(".json"), metavar="FILE", help="write the values")
    return parser.parse_args(argv)


def make_table(found: dict[str, dict[str, Any]], keys: Sequence[str]) -> Table:
    """Make a table of one column per run, from the runs' summaries by name."""
    # names often differ in their ends alone
    result = Table("", *(Column(name, overflow="fold") for name in found))
    rows = {"iterations": "d", "epochs": "d", "seconds_per_iteration": ".3f", "memory_mb": ".0f"}
    for name, form in rows.items():
        if any(name in values for values in found.values()):
            cells = [
                format(values[name], form) if name in values else "" for values in found.values()
            ]
            result.add_row(name.replace("_", " "), *cells)
    for key in keys:
        result.add_row(key, *(_cell(values["keys"].get(key)) for values in found.values()))
    return result


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    cell = "not finite" if entry["last"] is None else f"{entry['last']:.4g}"
    if "best" in entry:
        cell += f" (best {entry['best']:.4g} at {entry['best_iteration']})"
    return cell


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    runs = [logs.read_run(Path(path)) for path in args.runs]
    keys = logs.choose(runs, args.keys)
    found = {run.name: logs.summary(run, keys) for run in runs}
    Console().print(make_table(found, keys))
    for run in runs:
        if n := found[run.name]["not_finite"]:
            run.problems.append(f"{run.name}: {n} values are not finite")
        for problem in run.problems:
            print(f"warning: {problem}", file=sys.stderr)
    if args.json:
        with writing(args.json):
            write_json(args.json, found)
    if args.out:
        with writing(args.out):
            logs.plot(runs, keys, args.out)
        print(f"plot: {args.out}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
