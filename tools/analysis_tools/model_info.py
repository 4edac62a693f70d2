"""Count parameters, multiply-adds and activation memory of a model, by part."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from fcvit_mm.analysis import complexity
from fcvit_mm.analysis.workload import build, default_size
from fcvit_mm.apis.model import find_device
from fcvit_mm.utils.cli import (
    PLOTS,
    add_config,
    check_writable,
    ending,
    run_tool,
    whole_number,
)
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.errors import name_failure
from fcvit_mm.utils.files import write_json
from fcvit_mm.visualization.figures import save_figure

import torch
from rich import box
from rich.console import Console
from rich.table import Table


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config(parser)
    parser.add_argument(
        "--size",
        nargs=2,
        type=whole_number(1),
        metavar=("HEIGHT", "WIDTH"),
        help="of the image (default: as the config's test pipeline makes it)",
    )
    parser.add_argument(
        "--json", type=ending(".json"), metavar="FILE", help="write the values to this .json file"
    )
    parser.add_argument(
        "--sweep",
        type=ending(*PLOTS),
        metavar="FILE",
        help="plot cost against size, up to --size, as .png, .pdf, .svg",
    )
    parser.add_argument("--device", default="cpu", help="to measure memory on (default: cpu)")
    return parser.parse_args(argv)


def as_text(outputs: Iterable[complexity.Output]) -> list[tuple[str, str]]:
    """Return lines of shapes and strides: channels with maps, HEIGHTxWIDTH, or whole shapes."""
    lines: dict[str, dict[str, str]] = {}
    for output in outputs:
        shape = output.shape[1:] if output.shape[:1] == (1,) else output.shape
        if output.stride is None:
            lines["x".join(map(str, shape))] = {}
        else:
            channels, height, width = shape
            lines.setdefault(f"{channels}:", {})[f"{height}x{width}"] = str(output.stride)
    return [(" ".join([head, *maps]), " ".join(maps.values())) for head, maps in lines.items()]


def make_table(cost: complexity.Cost, title: str) -> Table:
    """Make a table of one row per part; the caption says which memory is which."""
    table = Table(
        title=title,
        caption="multiply-adds: of convolutions and matrix products in a prediction; kept: from "
        "the forward to the backward pass of a training step; peak: most at once in a prediction "
        "while the part is at work. Both memories without parameters and gradients",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
    )
    table.add_column("part", no_wrap=True)
    for column in ("parameters, M", "multiply-adds, G", "share", "kept, MB", "peak, MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("channels: output maps", "strides"):
        table.add_column(column, no_wrap=True)
    for row in (*cost.rows, cost.total):
        if row is cost.total:
            table.add_section()
        lines = as_text(row.outputs)
        table.add_row(
            row.part,
            f"{row.parameters / 1e6:.3f}",
            f"{row.multiply_adds / 1e9:.3f}",
            f"{row.multiply_adds / cost.total.multiply_adds:.1%}",
            f"{row.kept_bytes / 1e6:.1f}",
            f"{row.peak_bytes / 1e6:.1f}",
            "\n".join(text for text, _ in lines),
            "\n".join(strides for _, strides in lines),
        )
    return table


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    check_writable("--json", args.json)
    check_writable("--sweep", args.sweep)
    cfg = load_config(args.config, args.cfg_options)
    device = find_device(args.device)
    model = build(cfg).to(device)
    size = tuple(args.size or default_size(cfg))
    name, costs = Path(cfg.filename).stem, []
    for one in [size, *(complexity.sweep_sizes(size) if args.sweep else [])]:
        what = f"{name} does not run on images {one[0]} high and {one[1]} wide"
        with name_failure(what, "; try a larger --size"):
            costs.append(complexity.measure(model, cfg.default_scope, one))
    cost, *swept = costs
    conditions = f"float32 on {device}, PyTorch {torch.__version__}"
    title = f"{name}, one image of {size[0]}x{size[1]} (height x width), {conditions}"
    # a file or a pipe has no width of its own
    Console(width=None if sys.stdout.isatty() else 160).print(make_table(cost, title))
    content = {"config": name, "device": str(device), "torch": torch.__version__, **asdict(cost)}
    if args.sweep:
        content["sweep"] = complexity.sweep_of(swept)
        figure = complexity.draw_sweep(content["sweep"], f"{name}: one image, {conditions}")
        save_figure(figure, args.sweep)
        print(f"plot: {args.sweep}")
    if args.json:
        write_json(args.json, content)
        print(f"values: {args.json}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
