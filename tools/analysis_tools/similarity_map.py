"""Draw the similarity of each position to the image's mean, head by head.

Measure, too, how much the contexts that positions receive differ.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fcvit_mm.analysis import similarity
from fcvit_mm.apis import inference, sources
from fcvit_mm.apis.model import find_device
from fcvit_mm.apis.predictor import Predictor, add_arguments
from fcvit_mm.utils.cli import run_tool, whole_number
from fcvit_mm.utils.config import load_config


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("inputs", nargs="+", metavar="IMAGE", help="an image, a folder or a glob")
    parser.add_argument(
        "--out", metavar="DIR", help="images (default: work_dirs/CONFIG/similarity)"
    )
    parser.add_argument("--stage", type=int, choices=(1, 2, 3, 4), default=4)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--block", type=whole_number(1), help="of the stage, from 1 on (default: the last)"
    )
    which.add_argument("--all-blocks", action="store_true", help="of the stage")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    out = Path(args.out or f"{cfg.work_dir}/similarity")
    found = sources.find_sources(args.inputs, out)
    predictor = Predictor(cfg, args.checkpoint, find_device(args.device))
    rows, problems = similarity.run(predictor, found, out, args.stage, args.block, args.all_blocks)
    if rows:
        table = Table("stage", "block", "difference of contexts")
        for row in rows:
            table.add_row(str(row["stage"]), str(row["block"]), f"{row['difference']:.3f}")
        Console().print(table)
        print(f"images: {out}")
    inference.report(problems)


if __name__ == "__main__":
    sys.exit(run_tool(main))
