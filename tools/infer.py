"""What a model finds in pictures and videos: python tools/infer.py CONFIG CHECKPOINT INPUT..."""

import argparse
from pathlib import Path

from rich.console import Console

from fcvit_mm import infer, predict, runtime


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What a model finds in pictures and videos.")
    predict.add_arguments(parser)
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="a picture, a video, a folder, a glob, or the number of a webcam",
    )
    parser.add_argument("--out", metavar="DIR", help="results (default: work_dirs/CONFIG/infer)")
    parser.add_argument("--batch-size", type=runtime.whole_number(1), default=1)
    parser.add_argument(
        "--score-threshold",
        type=runtime.fraction,
        default=0.3,
        metavar="SCORE",
        help="least score of a detection (default: 0.3)",
    )
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="show these alone")
    parser.add_argument(
        "--max-frames", type=runtime.whole_number(1), metavar="N", help="of each video"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = runtime.load_config(args.config, args.cfg_options)
    out = Path(args.out or f"{cfg.work_dir}/infer")
    sources = infer.find_sources(args.inputs, out)
    predictor = predict.Predictor(cfg, args.checkpoint, predict.find_device(args.device))
    lines, problems = infer.run(
        predictor,
        sources,
        out,
        args.batch_size,
        args.score_threshold,
        args.classes,
        args.max_frames,
        Console(),
    )
    print("\n".join(lines))
    infer.report(problems)


if __name__ == "__main__":
    runtime.run_tool(main)
