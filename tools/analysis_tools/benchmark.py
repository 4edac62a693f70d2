"""Measure latency, throughput and peak memory of models, side by side."""

import argparse
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from fcvit_mm.analysis import benchmark
from fcvit_mm.apis.model import find_device
from fcvit_mm.utils.cli import PLOTS, ending, run_tool, whole_number


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    positive = whole_number(1)
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="path of a config file")
    parser.add_argument("--backbone", action="store_true", help="measure the backbones alone")
    parser.add_argument(
        "--peers",
        action="store_true",
        help=f"backbones alone, compared with {', '.join(benchmark.PEERS)}",
    )
    parser.add_argument("--train", action="store_true", help="measure a training step, too")
    parser.add_argument(
        "--size",
        nargs=2,
        type=positive,
        metavar=("HEIGHT", "WIDTH"),
        help="of the images (default: as the first config's dataset needs)",
    )
    parser.add_argument("--batch", type=positive, default=1, help="images (default: 1)")
    parser.add_argument("--repeats", type=positive, default=7, help="rounds (default: 7)")
    parser.add_argument("--threads", type=positive, help="of PyTorch on the CPU")
    parser.add_argument("--device", default="cpu", help="such as cuda:1 (default: cpu)")
    parser.add_argument(
        "--json", type=ending(".json"), metavar="FILE", help="write the values to this .json file"
    )
    parser.add_argument(
        "--plot", type=ending(*PLOTS), metavar="FILE", help="draw them, as .png, .pdf or .svg"
    )
    return parser.parse_args(argv)


def make_table(report: benchmark.Report) -> Table:
    """Make a table of one row per model, one section per activity."""
    table = Table(
        title=report.title,
        caption="; ".join(f"{key}: {value}" for key, value in report.conditions.items()),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
    )
    for column in ("activity", "model"):
        table.add_column(column, no_wrap=True)
    for column in ("median, ms", "quartiles, ms", "ratio", "images/s", "peak, MB"):
        table.add_column(column, justify="right")
    for i, result in enumerate(report.results):
        if i and result.activity != report.results[i - 1].activity:
            table.add_section()
        table.add_row(
            result.activity,
            result.name,
            f"{result.time.median:.1f}",
            f"{result.time.lower:.1f} to {result.time.upper:.1f}",
            f"{result.ratio:.2f}",
            f"{result.images_per_second:.2f}",
            f"{result.peak_bytes / 1e6:.1f}",
        )
    return table


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    # a file or a pipe has no width of its own
    console = Console(width=None if sys.stdout.isatty() else 160)
    with console.status("measuring"):
        report = benchmark.run(
            args.configs,
            tuple(args.size) if args.size else None,
            args.batch,
            args.repeats,
            args.backbone,
            args.peers,
            args.train,
            args.threads,
            find_device(args.device),
            args.json,
            args.plot,
        )
    console.print(make_table(report))
    for what, path in (("values", args.json), ("plot", args.plot)):
        if path:
            print(f"{what}: {path}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
