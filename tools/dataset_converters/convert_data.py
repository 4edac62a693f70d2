"""Convert labeled images (Pascal VOC, YOLO, LabelMe, COCO) to COCO's format and label maps."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fcvit_mm.datasets import checks
from fcvit_mm.datasets.checks.report import print_reports, raise_errors
from fcvit_mm.datasets.formats import NAMES
from fcvit_mm.utils.cli import fraction, require, run_tool, whole_number
from fcvit_mm.utils.errors import ConfigError

from rich.console import Console


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("src", type=Path, metavar="SRC", help="folder of images and annotations")
    parser.add_argument("dst", type=Path, metavar="DST", help="folder to write, new or empty")
    parser.add_argument(
        "--format",
        choices=["auto", *NAMES],
        default="auto",
        help="of the annotations (default: recognize it); CVAT and Label Studio export coco",
    )
    parser.add_argument(
        "--label-maps", action="store_true", help="write label maps for segmentation, too"
    )
    parser.add_argument(
        "--val",
        type=fraction,
        default=0.2,
        help="share of the images for validation, where SRC is not split (default: 0.2)",
    )
    parser.add_argument(
        "--seed", type=whole_number(0), default=0, help="of the drawing of those (default: 0)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    for module in ("defusedxml", "imagehash"):
        require(module, "data")
    from fcvit_mm.datasets.conversion import convert

    console = Console()
    progress = console if console.is_terminal else None
    try:
        dataset = convert(
            args.src, args.dst, args.format, args.label_maps, args.val, args.seed, progress
        )
    except OSError as error:
        what = f"{error.filename or args.dst} can't be read or written"
        raise ConfigError(f"{what}: {error.strerror or error}") from error
    for warning in dataset.report.warnings:
        print(f"warning: {warning}")
    objects = [one for samples in dataset.splits.values() for s in samples for one in s.objects]
    outlined = sum("segmentation" in one for _, one in objects)
    print(f"{len(objects):,} objects, {outlined:,} with an outline, written to {args.dst}")
    print(f"classes: {', '.join(map(repr, dataset.classes))}")
    reports = []
    for cfg in dataset.configs():
        found = checks.check(cfg, [key for key in cfg if key.endswith("_dataloader")])
        for report in found:
            report.name += " label maps" if cfg.default_scope == "mmseg" else ""
        reports += found
    raise_errors(args.dst, print_reports(reports, console))
    print("no errors")


if __name__ == "__main__":
    sys.exit(run_tool(main))
