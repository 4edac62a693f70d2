"""Check the data sets of a config: python tools/check_data.py CONFIG."""

import argparse

from fcvit_mm.engine import runner


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check the data sets of a config.")
    parser.add_argument("config", help="path of a config file")
    parser.add_argument(
        "--decode",
        action="store_true",
        help="decode every picture, where otherwise its beginning and end are read",
    )
    runner.add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    runner.check_data(runner.load_config(args.config, args.cfg_options), args.decode)


if __name__ == "__main__":
    runner.run_tool(main)
