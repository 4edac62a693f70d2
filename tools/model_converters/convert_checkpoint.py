"""Write the weights of an FCViT checkpoint, and nothing else, to .pth or .safetensors."""

import argparse
import sys
from collections.abc import Sequence

from fcvit_mm.models.weights import convert_checkpoint
from fcvit_mm.utils.cli import run_tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", metavar="SRC", help="path or URL of a checkpoint")
    parser.add_argument("target", metavar="DST", help="file to write, .pth or .safetensors")
    parser.add_argument(
        "--no-ema",
        dest="ema",
        action="store_false",
        help="take the plain weights where the file has averaged ones too",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    print(convert_checkpoint(args.source, args.target, args.ema))


if __name__ == "__main__":
    sys.exit(run_tool(main))
