"""Train a detector, segmentor or classifier."""

import argparse
import sys
from collections.abc import Sequence

from fcvit_mm import engine
from fcvit_mm.utils.cli import add_common_arguments, add_config, run_tool, whole_number
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.options import (
    LOGGERS,
    add_loggers,
    enable_amp,
    enable_auto_scale_lr,
    start_from_scratch,
    stop_early,
)


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
    parser.add_argument(
        "--from-scratch",
        action="store_true",
        help="start from random weights, with layer_scale_init=0.1",
    )
    parser.add_argument("--amp", action="store_true", help="mixed precision (needs a GPU)")
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate from the config's base batch size to the actual one",
    )
    parser.add_argument("--seed", type=whole_number(0), help="of all randomness (default: drawn)")
    parser.add_argument(
        "--patience",
        type=whole_number(1),
        metavar="N",
        help="end after N evaluations in which the metric of the best checkpoint did not improve",
    )
    parser.add_argument(
        "--logger",
        nargs="+",
        choices=[*LOGGERS],
        default=[],
        help="write losses and metrics for these, too",
    )
    add_common_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher, args.verbose)
    if args.from_scratch:
        start_from_scratch(cfg)
    if args.amp:
        enable_amp(cfg)
    if args.auto_scale_lr:
        enable_auto_scale_lr(cfg)
    if args.seed is not None:
        cfg.randomness = dict(cfg.get("randomness") or {}, seed=args.seed)
    if args.patience:
        stop_early(cfg, args.patience)
    if args.logger:
        add_loggers(cfg, args.logger)
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume
    if args.check:
        engine.prepare(cfg, training=True)
    else:
        engine.train(cfg, checked=args.checked)


if __name__ == "__main__":
    sys.exit(run_tool(main))
