"""Check the datasets of a config: python tools/check_data.py CONFIG."""

import argparse

from fcvit_mm.engine.preflight import check_data
from fcvit_mm.utils.cli import add_cfg_options, run_tool
from fcvit_mm.utils.config import load_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check the datasets of a config.")
    parser.add_argument("config", help="path of a config file")
    parser.add_argument(
        "--decode",
        action="store_true",
        help="decode every image, where otherwise its beginning and end are read",
    )
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_data(load_config(args.config, args.cfg_options), args.decode)


if __name__ == "__main__":
    run_tool(main)
