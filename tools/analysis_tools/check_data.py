"""Check the datasets of a config: annotations, images and label maps."""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from fcvit_mm.datasets import checks
from fcvit_mm.engine.preflight import check_data_exist
from fcvit_mm.utils.cli import add_cfg_options, run_tool
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.errors import ConfigError

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


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
    cfg = load_config(args.config, args.cfg_options)
    check_data_exist(cfg, LOADERS)
    console = Console()
    reports = checks.check(cfg, LOADERS, args.decode, console)
    for report in reports:
        for kind, sentences in (("error", report.errors), ("warning", report.warnings)):
            for sentence in sentences:
                print(f"{report.name}: {kind}: {sentence}")
    console.print(checks.summary(reports))
    n = sum(len(report.errors) for report in reports)
    if n:
        kinds = "kind of error" if n == 1 else "kinds of errors"
        raise ConfigError(f"{cfg.filename}: {n} {kinds} in its data, listed above")


if __name__ == "__main__":
    sys.exit(run_tool(main))
