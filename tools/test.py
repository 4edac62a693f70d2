"""Measure mAP, mIoU or top-1 accuracy of a checkpoint."""

import argparse
import sys
from collections.abc import Sequence

from fcvit_mm import engine
from fcvit_mm.utils.cli import (
    add_common_arguments,
    add_config,
    check_writable,
    ending,
    parse_model,
    run_tool,
)
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.options import dump_predictions, enable_tta, list_classes

from mmengine.dist import is_main_process


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config(parser, checkpoint=True)
    parser.add_argument("--work-dir", help="logs (default: work_dirs/CONFIG)")
    parser.add_argument(
        "--out",
        type=ending(".pkl", ".pickle"),
        metavar="FILE",
        help="write the predictions to this .pkl file",
    )
    parser.add_argument(
        "--show-dir", metavar="DIR", help="draw ground truth and predictions into this directory"
    )
    parser.add_argument("--tta", action="store_true", help="test-time augmentation")
    add_common_arguments(parser)
    return parse_model(parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    check_writable("--out", args.out)
    cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher, args.verbose)
    cfg.load_from = args.checkpoint
    if args.check:
        engine.prepare(cfg, training=False)
        return
    list_classes(cfg)
    if args.tta:
        enable_tta(cfg)
    if args.out:
        dump_predictions(cfg, args.out)
    if args.show_dir:
        # with matplotlib and supervision, which other tests need not import
        from fcvit_mm.apis.drawing_hook import draw_predictions

        draw_predictions(cfg, args.show_dir)
    engine.test(cfg, checked=args.checked)
    if args.show_dir and is_main_process():
        print(f"images: {args.show_dir}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
