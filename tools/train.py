"""Train a detector, segmentor or classifier."""

import argparse
import sys
from collections.abc import Sequence

from fcvit_mm import engine
from fcvit_mm.utils.cli import add_common_arguments, add_config, run_tool
from fcvit_mm.utils.config import enable_amp, enable_auto_scale_lr, load_config


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config(parser)
    parser.add_argument("--work-dir", help="logs and checkpoints (default: work_dirs/CONFIG)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="PATH",
        help="go on from this checkpoint, or from the newest of the work directory",
    )
    parser.add_argument("--amp", action="store_true", help="mixed precision (needs a GPU)")
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate from the config's base batch size to the actual one",
    )
    add_common_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher, args.verbose)
    if args.amp:
        enable_amp(cfg)
    if args.auto_scale_lr:
        enable_auto_scale_lr(cfg)
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume
    if args.check:
        engine.prepare(cfg, training=True)
    else:
        engine.train(cfg, checked=args.checked)


if __name__ == "__main__":
    sys.exit(run_tool(main))
