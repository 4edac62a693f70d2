"""Count parameters, multiply-adds and activation memory of a model, by part."""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from fcvit_mm.analysis import complexity
from fcvit_mm.engine.build import find_device
from fcvit_mm.utils.cli import add_cfg_options, run_tool, whole_number
from fcvit_mm.utils.config import load_config


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="path of a config file")
    parser.add_argument(
        "--size",
        nargs=2,
        type=whole_number(1),
        metavar=("HEIGHT", "WIDTH"),
        help="of the image (default: as the config's dataset needs)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures to this .json file")
    parser.add_argument(
        "--sweep", metavar="FILE", help="plot cost against size, up to --size, as .png, .pdf, .svg"
    )
    parser.add_argument("--device", default="cpu", help="to measure memory on (default: cpu)")
    add_cfg_options(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    size = tuple(args.size) if args.size else None
    table = complexity.run(cfg, size, find_device(args.device), args.json, args.sweep)
    # a file or a pipe has no width of its own
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    for option, path in (("figures", args.json), ("plot", args.sweep)):
        if path:
            print(f"{option}: {path}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
