"""Count parameters, multiply-adds and activation memory of a model, by part."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from fcvit_mm.analysis import complexity
from fcvit_mm.analysis.cost import Cost, Output
from fcvit_mm.apis.model import find_device
from fcvit_mm.utils.cli import PLOTS, add_cfg_options, ending, run_tool, whole_number
from fcvit_mm.utils.config import load_config


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="path of a config file")
    parser.add_argument(
        "--size",
        nargs=2,
        type=whole_number(1),
        metavar=("HEIGHT", "WIDTH"),
        help="of the image (default: as the config's dataset needs)",
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
    add_cfg_options(parser)
    return parser.parse_args(argv)


def as_text(outputs: Iterable[Output]) -> list[tuple[str, str]]:
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


def make_table(cost: Cost, title: str) -> Table:
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
    cfg = load_config(args.config, args.cfg_options)
    size = tuple(args.size) if args.size else None
    device = find_device(args.device)
    cost = complexity.run(cfg, size, device, args.json, args.sweep)
    title = (
        f"{Path(cfg.filename).stem}, one image of {cost.size[0]}x{cost.size[1]} (height x width), "
        f"float32 on {device}, PyTorch {torch.__version__}"
    )
    # a file or a pipe has no width of its own
    Console(width=None if sys.stdout.isatty() else 160).print(make_table(cost, title))
    for option, path in (("values", args.json), ("plot", args.sweep)):
        if path:
            print(f"{option}: {path}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
