"""Generate example data: images of shapes, with instance masks and label maps, or of one each.

Every image follows from (seed, split, index, size) alone, so a set of 10 is the beginning of the
set of 1000 with the same seed, and the same call writes the same bytes.

    python -m fcvit_mm.datasets.shapes data/shapes --train 400 --val 40 --size 128 128 --seed 0

writes

    data/shapes/images/{train,val}/00000.png
    data/shapes/annotations/instances_{train,val}.json      COCO instances
    data/shapes/label_maps/{train,val}/00000.png            one byte per pixel, as in ADE20K

and with `--task classification`, images of one object each, of 64 pixels by default,

    data/shapes_classification/{train,val}/{circle,square,star,triangle}/00000.png

In a label map 0 is the ground and i the class `CLASSES[i - 1]`. A config chooses what 0 means:
with `reduce_zero_label=False` the ground is a class of its own (`SEMANTIC_CLASSES`), as in the
configs of this project; with `reduce_zero_label=True`, ADE20K's convention, it is ignored.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..utils.cli import run_tool, whole_number, writing
from ..visualization.images import write_image
from .coco_writer import annotation, write_instances, write_whole
from .shapes_drawing import CLASSES, SPLITS, TASKS, make_sample

__all__ = [
    "CLASSES", "PALETTE", "SEMANTIC_CLASSES", "SEMANTIC_PALETTE", "SPLITS", "TASKS",
    "generate", "main", "make_sample",
]  # fmt: skip

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
    """Write a dataset, whole or not at all; the module's docstring says what lies where.

    Args:
        out: the folder: new, empty, or with this very dataset.
        train, val: numbers of images, 1 or more.
        size: (width, height) in pixels, at least `MIN_SIDE` each.
        seed: 0 or more.
        task: one of `TASKS`, whose own numbers and size are those that are None.

    Returns:
        Whether it was written: False where `out` already held it.

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
    }
    if task == "classification":
        return write_whole(
            Path(out),
            parameters | {"task": task},
            lambda folder: _write_classes(folder, numbers, size, seed),
        )
    files = [f"annotations/instances_{split}.json" for split in SPLITS] + [
        f"{kind}/{split}/{index:05}.png"
        for split, number in numbers.items()
        for kind in ("images", "label_maps")
        for index in range(number)
    ]
    return write_whole(
        Path(out),
        parameters | {"segmentation": "polygon"},
        lambda folder: _write_scenes(folder, numbers, size, seed),
        files,
    )


def _write_scenes(folder: Path, numbers: dict[str, int], size: tuple[int, int], seed: int) -> None:
    for split, number in numbers.items():
        images, maps = folder / "images" / split, folder / "label_maps" / split
        images.mkdir(parents=True)
        maps.mkdir(parents=True)
        content = []
        for index in range(number):
            one = make_sample(seed, split, index, size)
            name = f"{index:05}.png"
            write_image(images / name, one.image[..., ::-1], direct=True)
            write_image(maps / name, one.label_map(), direct=True)
            found = [
                annotation(mask, int(label) + 1)
                for mask, label in zip(one.masks, one.labels, strict=True)
            ]
            content.append((name, size, found))
        write_instances(folder / "annotations" / f"instances_{split}.json", CLASSES, content)


def _write_classes(folder: Path, numbers: dict[str, int], size: tuple[int, int], seed: int) -> None:
    for split, number in numbers.items():
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
        for index in range(number):
            one = make_sample(seed, split, index, size, "classification")
            path = folder / split / CLASSES[one.labels[0]] / f"{index:05}.png"
            write_image(path, one.image[..., ::-1], direct=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the dataset that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m fcvit_mm.datasets.shapes",
        description="Write the example dataset of shapes.",
    )
    positive = whole_number(1)
    parser.add_argument("out", metavar="OUT", help="folder to write")
    parser.add_argument("--task", choices=TASKS, default="dense", help="what it is for")
    parser.add_argument("--train", type=positive, help="images to train on (default: the task's)")
    parser.add_argument("--val", type=positive, help="held-out images (default: the task's)")
    parser.add_argument(
        "--size",
        type=whole_number(MIN_SIDE),
        nargs=2,
        metavar=("W", "H"),
        help="pixels (default: the task's)",
    )
    parser.add_argument("--seed", type=whole_number(0), default=0)
    args = parser.parse_args(argv)
    usual = TASKS[args.task]
    with writing(args.out):
        written = generate(**vars(args))
    done = "written to" if written else "already in"
    print(f"{args.train or usual.train} + {args.val or usual.val} images {done} {args.out}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
