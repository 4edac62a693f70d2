"""Test a checkpoint and draw its confusion matrix, of objects or of pixels."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fcvit_mm.evaluation import confusion_matrix
from fcvit_mm.utils.cli import add_cfg_options, fraction, run_tool
from fcvit_mm.utils.config import load_config


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="path of a config file")
    parser.add_argument("checkpoint", help="path or URL of a checkpoint")
    parser.add_argument(
        "--out",
        metavar="NAME",
        help="of NAME.png and NAME.json (default: work_dirs/CONFIG/confusion)",
    )
    parser.add_argument("--score-threshold", type=fraction, default=0.3, metavar="SCORE")
    parser.add_argument("--iou-threshold", type=fraction, default=0.5, metavar="IOU")
    parser.add_argument("--masks", action="store_true", help="compare masks of objects, not boxes")
    add_cfg_options(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    out = Path(args.out or f"{cfg.work_dir}/confusion")
    if out.suffix in (".png", ".json"):
        out = out.with_suffix("")
    confusion_matrix.run(
        cfg,
        args.checkpoint,
        out,
        score_threshold=args.score_threshold,
        iou_threshold=args.iou_threshold,
        masks=args.masks,
    )
    print(f"confusion matrix: {out}.png, {out}.json")


if __name__ == "__main__":
    sys.exit(run_tool(main))
