"""Generate example data: images of shapes, with instance masks and label maps, or of one each.

    python -m fcvit_mm.datasets.shapes data/shapes --train 400 --val 40 --size 128 128 --seed 0

writes

    data/shapes/images/{train,val}/00000.png
    data/shapes/annotations/instances_{train,val}.json      COCO instances
    data/shapes/label_maps/{train,val}/00000.png            one byte per pixel, as in ADE20K

and with `--task classification`, images of one object each, of 64 pixels by default,

    data/shapes_classification/{train,val}/{circle,square,star,triangle}/00000.png

Every image follows from (seed, split, index, size, task) alone. In a label map 0 is the ground, a
class of its own (`SEMANTIC_CLASSES`) or, with `reduce_zero_label=True`, ignored.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..utils.cli import run_tool, whole_number, writing
from ..visualization.images import write_image
from .coco_writer import annotation, write_instances, write_whole
from .shapes_drawing import CLASSES, SPLITS, TASKS, Sample, make_sample

__all__ = ["CLASSES", "SPLITS", "TASKS", "generate", "make_sample"]

PALETTE = ((231, 76, 60), (52, 152, 219), (46, 204, 113), (241, 196, 15))
SEMANTIC_CLASSES = ("ground", *CLASSES)
SEMANTIC_PALETTE = ((40, 44, 52), *PALETTE)
# Part of what a dataset follows from: to be raised with every change of the images.
VERSION = 1
MIN_SIDE = 32


def generate(
    out: str | Path,
    train: int | None = None,
    val: int | None = None,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    task: str = "dense",
) -> bool:
    """Write a dataset whole or not at all; return whether: False where `out` already held it.

    Args:
        out: the folder, see the module's docstring.
        train, val: numbers of images.
        size: (width, height) in pixels, at least `MIN_SIDE` each.
        task: one of `TASKS`, whose own numbers and size replace those that are None.

    Raises:
        DatasetError: `out` holds something else.
    """
    usual = TASKS[task]
    size = size or usual.size
    numbers = {"train": train or usual.train, "val": val or usual.val}
    parameters: dict[str, Any] = {
        "generator": "fcvit_mm.shapes",
        "version": VERSION,
        **numbers,
        "size": list(size),
        "seed": seed,
        **({"task": task} if task == "classification" else {"segmentation": "polygon"}),
    }

    def write(folder: Path) -> None:
        for split, number in numbers.items():
            samples = (make_sample(seed, split, index, size, task) for index in range(number))
            (_write_classes if task == "classification" else _write_scenes)(folder, split, samples)

    return write_whole(Path(out), parameters, write)


def _write_scenes(folder: Path, split: str, samples: Iterable[Sample]) -> None:
    images, maps = folder / "images" / split, folder / "label_maps" / split
    images.mkdir(parents=True)
    maps.mkdir(parents=True)
    content = []
    for index, one in enumerate(samples):
        name = f"{index:05}.png"
        write_image(images / name, one.image[..., ::-1], direct=True)
        write_image(maps / name, one.label_map(), direct=True)
        labels = (one.labels + 1).tolist()
        found = [annotation(mask, label) for mask, label in zip(one.masks, labels, strict=True)]
        content.append((name, one.image.shape[1::-1], found))
    write_instances(folder / "annotations" / f"instances_{split}.json", CLASSES, content)


def _write_classes(folder: Path, split: str, samples: Iterable[Sample]) -> None:
    for name in CLASSES:
        (folder / split / name).mkdir(parents=True)
    for index, one in enumerate(samples):
        path = folder / split / CLASSES[one.labels[0]] / f"{index:05}.png"
        write_image(path, one.image[..., ::-1], direct=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the dataset that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m fcvit_mm.datasets.shapes",
        description="Write the example dataset of shapes; numbers and size are by default the "
        "task's.",
    )
    positive, side = whole_number(1), whole_number(MIN_SIDE)
    parser.add_argument("out", metavar="OUT", help="folder to write")
    parser.add_argument("--task", choices=TASKS, default="dense", help="what it is for")
    parser.add_argument("--train", type=positive, help="images to train on")
    parser.add_argument("--val", type=positive, help="held-out images")
    parser.add_argument("--size", type=side, nargs=2, metavar=("W", "H"), help="pixels")
    parser.add_argument("--seed", type=whole_number(0), default=0)
    args = parser.parse_args(argv)
    with writing(args.out):
        written = generate(**vars(args))
    print(f"images {'written to' if written else 'already in'} {args.out}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
