"""Export a model to ONNX or torch.export."""

import argparse
import sys
from collections.abc import Sequence

from fcvit_mm.apis import export
from fcvit_mm.apis.predictor import Predictor
from fcvit_mm.utils.cli import add_config, ending, parse_model, run_tool
from fcvit_mm.utils.config import load_config

import torch


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config(parser, checkpoint=True)
    parser.add_argument(
        "out", type=ending(".onnx", ".pt2"), help="file.onnx, or file.pt2 for torch.export"
    )
    parser.add_argument(
        "--part",
        choices=("whole", "features"),
        default="whole",
        help="features: backbone and neck alone",
    )
    return parse_model(parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    export.kind_of(cfg, args.part)
    predictor = Predictor(cfg, args.checkpoint, torch.device("cpu"))
    print("exporting, then comparing with PyTorch on several images ...", flush=True)
    worst = export.run(predictor, args.out, args.part)
    print(f"saved {args.out}: largest difference from PyTorch {worst:.1e} of the largest value")


if __name__ == "__main__":
    sys.exit(run_tool(main))
