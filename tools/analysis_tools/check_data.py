"""Check the datasets of a config: annotations, images and label maps."""

import argparse
import sys
from collections.abc import Sequence

from fcvit_mm.datasets import checks
from fcvit_mm.engine.preflight import check_data_exist
from fcvit_mm.utils.cli import add_config, run_tool
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.errors import ConfigError

from rich import box
from rich.console import Console
from rich.table import Table

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


def summary(reports: Sequence[checks.Report]) -> Table:
    """Tabulate what each dataset holds and how much is wrong with it, one row per dataset."""
    table = Table(box=box.SIMPLE)
    table.add_column("dataset")
    for column in ("images", "labeled", "classes", "errors", "warnings"):
        table.add_column(column, justify="right")
    for report in reports:
        labeled = f"{report.labeled:,} {report.unit}" if report.unit else ""
        numbers = report.classes, len(report.errors), len(report.warnings)
        table.add_row(report.name, f"{report.images:,}", labeled, *(f"{n:,}" for n in numbers))
    return table


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
    console.print(summary(reports))
    images, decoded = (sum(getattr(r, key) for r in reports) for key in ("images", "decoded"))
    if decoded < images:
        print(f"{decoded:,} of {images:,} images were decoded; --decode decodes all")
    n = sum(len(report.errors) for report in reports)
    if n:
        kinds = "kind of error" if n == 1 else "kinds of errors"
        raise ConfigError(f"{cfg.filename}: {n} {kinds} in its data, listed above")
    print("no errors")


if __name__ == "__main__":
    sys.exit(run_tool(main))
