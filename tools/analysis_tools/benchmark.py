"""Measure latency, throughput and peak memory of models, side by side."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fcvit_mm.analysis import benchmark
from fcvit_mm.analysis.workload import default_size
from fcvit_mm.apis.model import find_device
from fcvit_mm.utils.cli import PLOTS, check_writable, ending, run_tool, whole_number
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.files import write_json
from fcvit_mm.visualization.figures import save_figure

import torch
from rich import box
from rich.console import Console
from rich.table import Table


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
        help="of the images (default: as the first config's test pipeline makes them)",
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


def make_table(
    title: str, conditions: dict[str, Any], results: Sequence[benchmark.Result]
) -> Table:
    """Make a table of one row per model, one section per activity."""
    table = Table(
        title=title,
        caption="; ".join(f"{key}: {value}" for key, value in conditions.items()),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
    )
    for column in ("activity", "model"):
        table.add_column(column, no_wrap=True)
    for column in ("median, ms", "quartiles, ms", "ratio", "images/s", "peak, MB"):
        table.add_column(column, justify="right")
    for i, result in enumerate(results):
        if i and result.activity != results[i - 1].activity:
            table.add_section()
        table.add_row(
            result.activity,
            result.name,
            "{median:.1f}".format(**result.time),
            "{lower:.1f} to {upper:.1f}".format(**result.time),
            f"{result.ratio:.2f}",
            f"{result.images_per_second:.2f}",
            f"{result.peak_bytes / 1e6:.1f}",
        )
    return table


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    check_writable("--json", args.json)
    check_writable("--plot", args.plot)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = find_device(args.device)
    size = tuple(args.size or default_size(load_config(args.configs[0])))
    backbones = args.backbone or args.peers
    # a file or a pipe has no width of its own
    console = Console(width=None if sys.stdout.isatty() else 160)
    with console.status("measuring"):
        models = benchmark.subjects(args.configs, backbones, args.peers, size, args.batch, device)
        conditions = benchmark.conditions(device)
        results = benchmark.measure(models, args.train, args.repeats)
    what, inputs = "backbones" if backbones else "models", f"{args.batch}x3x{size[0]}x{size[1]}"
    title = f"{what}, {inputs} (height x width), medians of {args.repeats} rounds"
    console.print(make_table(title, conditions, results))
    if args.json:
        content = {"conditions": conditions, "models": what, "inputs": inputs}
        rows = [asdict(result) for result in results]
        write_json(args.json, {**content, "repeats": args.repeats, "results": rows})
        print(f"values: {args.json}")
    if args.plot:
        kept = (f"{k} {v}" for k, v in conditions.items() if k not in ("memory", "machine"))
        save_figure(benchmark.draw(results, f"{title}\n{', '.join(kept)}"), args.plot)
        print(f"plot: {args.plot}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
