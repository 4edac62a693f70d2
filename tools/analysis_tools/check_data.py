"""Check the datasets of a config: annotations, images and label maps."""

import argparse
import sys
from collections.abc import Sequence

from fcvit_mm.datasets import checks
from fcvit_mm.datasets.checks.report import print_reports, raise_errors
from fcvit_mm.engine.preflight import check_data_exist
from fcvit_mm.utils.cli import add_config, run_tool
from fcvit_mm.utils.config import load_config

from rich.console import Console

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config(parser)
    parser.add_argument(
        "--decode",
        action="store_true",
        help="decode every image, where otherwise as many are decoded as take a minute",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    check_data_exist(cfg, LOADERS)
    console = Console()
    reports = checks.check(cfg, LOADERS, args.decode, console)
    errors = print_reports(reports, console)
    images, decoded = (sum(getattr(r, key) for r in reports) for key in ("images", "decoded"))
    if decoded < images:
        print(f"{decoded:,} of {images:,} images were decoded; --decode decodes all")
    raise_errors(cfg.filename, errors)
    print("no errors")


if __name__ == "__main__":
    sys.exit(run_tool(main))
