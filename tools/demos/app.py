"""Serve a page that shows what a model finds in an image, and where it looks."""

import argparse
import sys
from collections.abc import Sequence

from fcvit_mm.apis.model import find_device
from fcvit_mm.apis.predictor import Predictor
from fcvit_mm.utils.cli import (
    add_config,
    number_between,
    parse_model,
    require,
    run_tool,
    whole_number,
)
from fcvit_mm.utils.config import load_config


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config(parser, checkpoint=True)
    parser.add_argument("--device", help="such as cuda:1 or cpu (default: the GPU if there is one)")
    parser.add_argument("--port", type=whole_number(1), default=7860)
    parser.add_argument(
        "--scale",
        type=number_between(0.1, 16),
        default=1.0,
        help="size of the drawn image relative to the input's (default: 1)",
    )
    return parse_model(parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    require("gradio", "app")
    from fcvit_mm.demos import app

    cfg = load_config(args.config, args.cfg_options)
    predictor = Predictor(cfg, args.checkpoint, find_device(args.device))
    app.run(
        predictor,
        f"{args.config}, {args.checkpoint}",
        args.port,
        lambda address: print(f"page: {address} (Ctrl-C ends it)", flush=True),
        args.scale,
    )


if __name__ == "__main__":
    sys.exit(run_tool(main))
