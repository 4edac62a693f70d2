"""Draw what the pipeline of a config feeds the model, with boxes and masks."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fcvit_mm.analysis import browse_dataset
from fcvit_mm.utils.cli import add_config, run_tool, whole_number
from fcvit_mm.utils.config import load_config

from rich.console import Console
from rich.table import Table


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config(parser)
    parser.add_argument("--split", choices=("train", "val", "test"), default="train")
    parser.add_argument("--number", type=whole_number(1), default=8, help="default: 8")
    parser.add_argument("--out", metavar="DIR", help="images (default: work_dirs/CONFIG/data)")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="of the augmentations")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    out = Path(args.out or f"{cfg.work_dir}/data")
    looks = browse_dataset.run(cfg, args.split, args.number, out, args.seed)
    table = Table("item", "file", "size", "objects or pixels per class")
    for found in looks:
        contents = ", ".join(f"{name} {n}" for name, n in found.contents.items())
        width, height = found.size
        table.add_row(str(found.index), found.path or "mixed", f"{width}x{height}", contents)
    total: Counter[str] = Counter()
    for found in looks:
        total.update(found.contents)
    sizes = sorted({found.size for found in looks}, key=lambda size: size[0] * size[1])
    (small, large), n = (sizes[0], sizes[-1]), len(looks)
    table.add_section()
    table.add_row(
        "all",
        f"{n} items",
        "{}x{}".format(*small) + ("" if small == large else " to {}x{}".format(*large)),
        ", ".join(f"{name} {count / n:.1f} each" for name, count in total.most_common()),
    )
    Console().print(table)
    print(f"images: {out}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
