"""A real photograph as a dataset: the 24 Greek coins from Pompeii that scikit-image carries.

The light is uneven, so the coins are labeled as scikit-image's documentation labels them ("Label
image regions": Otsu's threshold, closing, clearing of the border, connected components) after the
light of the ground has been subtracted. The upper three rows are for training, the lowest row for
testing: the image is divided between the two, so no pixel is in both.

Tiles that overlap are cut from each part; every coin lies whole in at least one of them. A part of
a coin that is too small to be called one is marked as a crowd, which COCO's evaluation ignores.

    python -m fcvit_mm.datasets.coins data/coins

writes data/coins/images/{train,test}/*.png, annotations/instances_{train,test}.json and row.png,
the lowest row in one piece. The names of tiles say where they lie: X-Y.png, in pixels.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..utils.cli import run_tool, writing
from ..utils.errors import DatasetError
from ..visualization.images import write_image
from .coco_writer import annotation, write_instances, write_whole

CLASSES = ("coin",)
PALETTE = ((255, 196, 0),)
SPLITS = ("train", "test")
COINS = 24
# Of a tile, (width, height), and between two; in pixels. The widest coin has 62.
TILE = (128, 128)
STEP = 32
# A part of a coin smaller than this share of it is a crowd.
ENOUGH = 0.3
VERSION = 1

Array = np.ndarray
Box = tuple[int, int, int, int]


def photograph() -> Array:
    """Return the image of coins: (303, 384), uint8, gray."""
    try:
        from skimage import data
    except ImportError as error:
        raise DatasetError(
            "the image of coins comes with scikit-image, which is not installed: "
            "pip install scikit-image (or pip install 'fcvit-mm[demo]')"
        ) from error
    return data.coins()


def label(image: Array) -> Array:
    """Label the coins: (H, W), int, 0 the ground, 1 to 24 the coins, row by row from the left."""
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

    by_height = sorted(found, key=lambda part: part.centroid[0])
    rows = [by_height[i : i + 6] for i in range(0, COINS, 6)]
    labels = np.zeros(image.shape, int)
    for row in rows:
        for part in sorted(row, key=lambda part: part.centroid[1]):
            labels[parts == part.label] = labels.max() + 1
    return labels


def parting(labels: Array) -> int:
    """Return the row of pixels at which the part of the image with the lowest coins begins."""
    lowest = labels > COINS - 6
    above = np.flatnonzero(((labels > 0) & ~lowest).any(1))[-1]
    below = np.flatnonzero(lowest.any(1))[0]
    if above >= below:
        raise RuntimeError("the lowest row of coins overlaps the one above")
    return int(above + below + 1) // 2


def tiles(region: Box) -> Iterator[Box]:
    """Cut a region into tiles, (left, top, right, bottom) each: they end where the region does."""

    def starts(first: int, end: int, length: int) -> list[int]:
        last = max(end - length, first)
        return [*range(first, last, STEP), last]

    left, top, right, bottom = region
    for y in starts(top, bottom, TILE[1]):
        for x in starts(left, right, TILE[0]):
            yield x, y, min(x + TILE[0], right), min(y + TILE[1], bottom)


def regions(labels: Array) -> dict[str, Box]:
    """Return where each split lies in the image."""
    height, width = labels.shape
    line = parting(labels)
    return {"train": (0, 0, width, line), "test": (0, line, width, height)}


def generate(out: str | Path) -> bool:
    """Write the dataset, whole or not at all.

    Returns:
        Whether it was written: False where `out` already held it.

    Raises:
        DatasetError: scikit-image is missing, or `out` holds something else.
    """
    image = photograph()
    labels = label(image)
    parts = regions(labels)

    def write(folder: Path) -> None:
        for split, region in parts.items():
            _write_tiles(folder, split, region, image, labels)
        left, top, right, bottom = parts["test"]
        write_image(folder / "row.png", image[top:bottom, left:right], direct=True)

    parameters = {
        "generator": "fcvit_mm.coins",
        "version": VERSION,
        "tile": list(TILE),
        "step": STEP,
        "enough": ENOUGH,
    }
    files = ["row.png", *(f"annotations/instances_{split}.json" for split in SPLITS)]
    for split, region in parts.items():
        files += [f"images/{split}/{left:03}-{top:03}.png" for left, top, _, _ in tiles(region)]
    return write_whole(Path(out), parameters, write, files)


def _write_tiles(folder: Path, split: str, region: Box, image: Array, labels: Array) -> None:
    areas = np.bincount(labels.ravel())
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
