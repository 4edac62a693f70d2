"""Test a checkpoint and draw its confusion matrix, of objects or of pixels."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fcvit_mm import engine
from fcvit_mm.evaluation.confusion_matrix import ConfusionMatrix
from fcvit_mm.utils.cli import add_config, fraction, parse_model, run_tool, writing
from fcvit_mm.utils.config import load_config, task_of
from fcvit_mm.utils.errors import ConfigError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config(parser, checkpoint=True)
    parser.add_argument(
        "--out",
        metavar="NAME",
        help="of NAME.png and NAME.json (default: work_dirs/CONFIG/confusion)",
    )
    parser.add_argument("--score-threshold", type=fraction, default=0.3, metavar="SCORE")
    parser.add_argument("--iou-threshold", type=fraction, default=0.5, metavar="IOU")
    parser.add_argument("--masks", action="store_true", help="compare masks of objects, not boxes")
    return parse_model(parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    out = Path(args.out or f"{cfg.work_dir}/confusion")
    if out.suffix in (".png", ".json"):
        out = out.with_suffix("")
    task = task_of(cfg)
    if task == "classification":
        raise ConfigError(
            f"{cfg.filename} is a classifier; MMPretrain's ConfusionMatrix in test_evaluator "
            "makes its matrix"
        )
    if args.masks and task != "detection":
        raise ConfigError(f"--masks: {cfg.filename} is not of a model with masks of objects")
    cfg.load_from = args.checkpoint
    metric = dict(
        type=ConfusionMatrix.__name__,
        _scope_="mmengine",
        out=str(out),
        score_threshold=args.score_threshold,
        iou_threshold=args.iou_threshold,
        masks=args.masks,
    )
    others = cfg.test_evaluator
    # the first, so that it says what the others need as well
    cfg.test_evaluator = [metric, *(others if isinstance(others, list | tuple) else [others])]
    with writing(f"--out {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        engine.test(cfg)
    print(f"confusion matrix: {out}.png, {out}.json")


if __name__ == "__main__":
    sys.exit(run_tool(main))
