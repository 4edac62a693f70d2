"""Check the datasets of a config: annotations, images and label maps."""

import argparse
import sys
from collections.abc import Sequence

from fcvit_mm.engine.preflight import check_data
from fcvit_mm.utils.cli import add_cfg_options, run_tool
from fcvit_mm.utils.config import load_config


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="path of a config file")
    parser.add_argument(
        "--decode",
        action="store_true",
        help="decode every image, where otherwise its beginning and end are read",
    )
    add_cfg_options(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    check_data(load_config(args.config, args.cfg_options), args.decode)


if __name__ == "__main__":
    sys.exit(run_tool(main))
