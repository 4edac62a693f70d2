"""Draw the similarity of each position to the image's mean, head by head.

Measure, too, how much the contexts that positions receive differ.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fcvit_mm.analysis import similarity
from fcvit_mm.apis import inference, sources
from fcvit_mm.apis.model import find_device
from fcvit_mm.apis.predictor import Predictor
from fcvit_mm.utils.cli import add_config, parse_model, run_tool, whole_number, writing
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.errors import ConfigError
from fcvit_mm.utils.files import make_folder, write_json
from fcvit_mm.visualization.figures import save_figure
from fcvit_mm.visualization.images import read_image, write_image

import numpy as np
from rich.console import Console
from rich.table import Table


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config(parser, checkpoint=True)
    parser.add_argument("--device", help="such as cuda:1 or cpu (default: the GPU if there is one)")
    parser.add_argument("inputs", nargs="+", metavar="IMAGE", help="an image, a folder or a glob")
    parser.add_argument(
        "--out", metavar="DIR", help="images (default: work_dirs/CONFIG/similarity)"
    )
    parser.add_argument("--stage", type=int, choices=(1, 2, 3, 4), default=4)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--block", type=whole_number(1), help="of the stage, from 1 on (default: the last)"
    )
    which.add_argument("--all-blocks", action="store_true", help="of the stage")
    return parse_model(parser, argv)


def write_maps(name: Path, image: np.ndarray, contexts: Sequence[similarity.Context]) -> None:
    """Write a grid, NAME.png, and NAME/ with one overlay per map."""
    save_figure(similarity.draw_grid(image, contexts), name.with_name(f"{name.name}.png"))
    for context in contexts:
        place = f"stage{context.stage}_block{context.block}_context{context.part}"
        for head, values in enumerate(context.similarity, 1):
            drawn = similarity.overlay(image, values, context.limit)
            write_image(name / f"{place}_head{head}.png", drawn)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    out = Path(args.out or f"{cfg.work_dir}/similarity")
    found = sources.find_sources(args.inputs, out)
    predictor = Predictor(cfg, args.checkpoint, find_device(args.device))
    looks, problems = [], []
    with writing(f"--out {out}"):
        make_folder(out)
        for source in found:
            try:
                if source.moving:
                    raise ConfigError(f"{source.path} is a video; give images")
                image, contexts = similarity.contexts_of(predictor, read_image(str(source.path)))
            except ConfigError as error:
                problems.append(str(error))
                continue
            looks.append(contexts)
            if args.all_blocks:
                chosen = [context for context in contexts if context.stage == args.stage]
            else:
                chosen = similarity.choose(contexts, args.stage, args.block)
            write_maps(out / source.name.with_suffix(""), image, chosen)
        if looks:
            rows = similarity.differences(looks)
            save_figure(similarity.draw_differences(rows), out / "difference.png")
            write_json(out / "difference.json", {"images": len(looks), "blocks": rows})
            table = Table("stage", "block", "difference of contexts")
            for row in rows:
                table.add_row(str(row["stage"]), str(row["block"]), f"{row['difference']:.3f}")
            Console().print(table)
            print(f"images: {out}")
    inference.report(problems)


if __name__ == "__main__":
    sys.exit(run_tool(main))
