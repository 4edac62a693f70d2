"""A real photograph as a dataset: the 24 Greek coins from Pompeii that scikit-image carries.

    python -m fcvit_mm.datasets.coins data/coins

writes data/coins/images/{train,test}/X-Y.png, overlapping tiles, named for where they lie in the
photograph, annotations/instances_{train,test}.json, and row.png, all that is for testing: the
lowest row of coins. Every coin lies whole in at least one tile. A part of a coin that is too small
to be called one is marked as a crowd, which COCO's evaluation ignores.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.cli import require, run_tool, writing
from ..visualization.images import write_image
from .coco_writer import annotation, write_instances, write_whole

CLASSES = ("coin",)
PALETTE = ((255, 196, 0),)
COINS = 24
# Side of a tile, and from one to the next; in pixels. The widest coin has 62.
TILE = 128
STEP = 32
# A part of a coin smaller than this share of it is a crowd.
ENOUGH = 0.3
VERSION = 1

Array = np.ndarray
Box = tuple[int, int, int, int]

# Where each split lies in the image, (left, top, right, bottom): between the lowest row of coins
# and the one above it.
REGIONS: dict[str, Box] = {"train": (0, 0, 384, 225), "test": (0, 225, 384, 303)}


def photograph() -> Array:
    """Return the image of coins: (303, 384), uint8, gray."""
    require("skimage", "demo")
    from skimage import data

    return data.coins()


def label(image: Array) -> Array:
    """Label the coins: (H, W), int, 0 the ground, 1 to 24 the coins, row by row from the left.

    The recipe is "Label image regions" of scikit-image's documentation (Otsu's threshold, closing,
    clearing of the border, connected components), after subtracting the uneven light.
    """
    from scipy import ndimage
    from skimage import filters, measure, morphology, segmentation

    # The ground's light: the darkest value nearby, and "nearby" reaches past any coin.
    ground = ndimage.minimum_filter(ndimage.median_filter(image, 5).astype(float), 81)
    flat = image - filters.gaussian(ground, 40)
    mask = flat > filters.threshold_otsu(flat)
    mask = morphology.closing(mask, morphology.footprint_rectangle((3, 3)))
    mask = segmentation.clear_border(ndimage.binary_fill_holes(mask))
    # Opening takes off the threads that scratches on the ground leave at a coin's rim.
    parts = measure.label(morphology.opening(mask, morphology.disk(3)))
    found = [part for part in measure.regionprops(parts) if part.area >= 500]
    if len(found) != COINS:
        raise RuntimeError(f"{len(found)} coins found in the image, not {COINS}")

    found.sort(key=lambda part: part.centroid[0])
    labels = np.zeros(image.shape, int)
    for first in range(0, COINS, 6):
        row = sorted(found[first : first + 6], key=lambda part: part.centroid[1])
        for number, part in enumerate(row, first + 1):
            labels[parts == part.label] = number
    return labels


def tiles(region: Box) -> Iterator[Box]:
    """Cut a region into tiles, (left, top, right, bottom) each: they end where the region does."""
    left, top, right, bottom = region
    for y in [*range(top, bottom - TILE, STEP), max(bottom - TILE, top)]:
        for x in [*range(left, right - TILE, STEP), max(right - TILE, left)]:
            yield x, y, min(x + TILE, right), min(y + TILE, bottom)


def generate(out: str | Path) -> bool:
    """Write the dataset whole or not at all; return whether: False where `out` already held it.

    Raises:
        ConfigError: scikit-image is missing, or `out` holds something else.
    """
    parameters = {"generator": "fcvit_mm.coins", "version": VERSION, "tile": [TILE, TILE],
                  "step": STEP, "enough": ENOUGH}  # fmt: skip
    return write_whole(Path(out), parameters, _write)


def _write(folder: Path) -> None:
    image = photograph()
    labels = label(image)
    areas = np.bincount(labels.ravel())
    for split, region in REGIONS.items():
        images = folder / "images" / split
        images.mkdir(parents=True)
        content = []
        for left, top, right, bottom in tiles(region):
            window = slice(top, bottom), slice(left, right)
            name = f"{left:03}-{top:03}.png"
            write_image(images / name, image[window], direct=True)
            found = []
            for coin in np.unique(labels[window])[1:]:
                mask = labels[window] == coin
                found.append(annotation(mask, 1, iscrowd=bool(mask.sum() < ENOUGH * areas[coin])))
            content.append((name, (right - left, bottom - top), found))
        write_instances(folder / "annotations" / f"instances_{split}.json", CLASSES, content)
    left, top, right, bottom = REGIONS["test"]
    write_image(folder / "row.png", image[top:bottom, left:right], direct=True)


def row_item(dataset: Any, folder: Path) -> Any:
    """Return the lowest row of coins as an item of the `CocoDataset` of its tiles in `folder`."""
    left, top, right, bottom = REGIONS["test"]
    labels = label(photograph())[top:bottom, left:right]
    info = {"file_name": str((folder / "row.png").resolve()), "img_id": 0,
            "width": right - left, "height": bottom - top}  # fmt: skip
    objects = [annotation(labels == coin, 1) for coin in np.unique(labels)[1:]]
    return dataset.pipeline(
        dataset.parse_data_info({"raw_img_info": info, "raw_ann_info": objects})
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Write the dataset into the folder that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m fcvit_mm.datasets.coins", description="Write the dataset of coins."
    )
    parser.add_argument("out", metavar="OUT", help="folder to write")
    args = parser.parse_args(argv)
    with writing(args.out):
        written = generate(args.out)
    print(f"{COINS} coins {'written to' if written else 'already in'} {args.out}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
