"""Draw what a model finds in images and videos."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fcvit_mm.apis import batch, inference, sources
from fcvit_mm.apis.model import find_device
from fcvit_mm.apis.predictor import Predictor
from fcvit_mm.checkpoint.mmengine_backends import find_address
from fcvit_mm.checkpoint.reader import fetch, sha256
from fcvit_mm.utils.cli import (
    add_config,
    fraction,
    number_between,
    parse_model,
    run_tool,
    whole_number,
)
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.errors import ConfigError
from fcvit_mm.visualization.draw import COLOR_BY

import torch
from rich.console import Console

# What another process of a run, or one that goes on with it, may have otherwise.
FREE = ("batch_size", "device", "max_frames", "out", "resume", "track")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config(parser, checkpoint=True)
    parser.add_argument("--device", help="such as cuda:1 or cpu (default: the GPU if there is one)")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="an image, a video, a folder, a .txt file with one path per line, a glob, or the "
        "number of a webcam",
    )
    parser.add_argument("--out", metavar="DIR", help="results (default: work_dirs/CONFIG/infer)")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with what a killed run has left in --out, or begin one that can be resumed, as "
        "under torchrun",
    )
    parser.add_argument("--no-draw", action="store_true", help="write no drawn images")
    parser.add_argument("--batch-size", type=whole_number(1), default=1)
    parser.add_argument(
        "--score-threshold",
        type=fraction,
        default=0.3,
        metavar="SCORE",
        help="least score of a detection (default: 0.3)",
    )
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="show these alone")
    parser.add_argument("--max-frames", type=whole_number(1), metavar="N", help="of each video")
    parser.add_argument(
        "--color-by",
        choices=COLOR_BY,
        default=COLOR_BY[0],
        help="one color per class (the default) or per instance",
    )
    parser.add_argument(
        "--scale",
        type=number_between(0.1, 16),
        default=1.0,
        help="size of the drawn images relative to the input's (default: 1)",
    )
    parser.add_argument(
        "--slice",
        type=whole_number(1),
        metavar="N",
        help="predict for large images in tiles of NxN pixels, and join what is found",
    )
    parser.add_argument(
        "--overlap",
        type=number_between(0.05, 0.9),
        default=0.2,
        metavar="PART",
        help="of neighboring tiles, relative to their side (default: 0.2)",
    )
    parser.add_argument(
        "--track", action="store_true", help="number the objects of a detector through each video"
    )
    return parse_model(parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    out = Path(args.out or f"{cfg.work_dir}/infer")
    # as torchrun tells its processes
    rank, processes = (int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE"))
    in_shards = bool(args.resume or processes)
    if not in_shards:
        found = sources.find_sources(args.inputs, out)
    elif args.track or args.max_frames:
        raise ConfigError(
            "--track and --max-frames are for videos; with --resume, and under torchrun, images "
            "alone are predicted for"
        )
    device = args.device
    if processes and device is None and (gpus := torch.cuda.device_count()):
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % gpus}"
    predictor = Predictor(cfg, args.checkpoint, find_device(device))
    options: dict[str, Any] = dict(
        batch_size=args.batch_size,
        threshold=args.score_threshold,
        classes=args.classes,
        color_by=args.color_by,
        scale=args.scale,
        console=Console() if rank == 0 else None,
        slice=args.slice,
        overlap=args.overlap,
        draw=not args.no_draw,
    )
    problems: list[str] = []
    if in_shards:
        settings = {key: value for key, value in vars(args).items() if key not in FREE}
        settings["sha256"] = sha256(fetch(find_address(args.checkpoint)))
        lines = batch.run(predictor, args.inputs, out, settings, rank, max(processes, 1), **options)
    else:
        lines, problems = inference.run(
            predictor, found, out, max_frames=args.max_frames, track=args.track, **options
        )
    if lines:
        print("\n".join(lines))
    inference.report(problems)


if __name__ == "__main__":
    sys.exit(run_tool(main))
