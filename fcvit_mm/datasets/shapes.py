"""Example data: images of shapes on textured grounds, with instance masks and label maps.

Every image follows from (seed, split, index, size) alone, so a set of 10 is the beginning of the
set of 1000 with the same seed, and the same call writes the same bytes. As things in the world do,
each class has its colors, spread around a hue of its own; patterns and light it shares with all.

    python -m fcvit_mm.datasets.shapes data/shapes --train 400 --val 40 --size 128 128 --seed 0

writes

    data/shapes/images/{train,val}/00000.png
    data/shapes/annotations/instances_{train,val}.json      COCO instances
    data/shapes/label_maps/{train,val}/00000.png            one byte a pixel, as in ADE20K

and with `--task classification`, images of one object each, of 64 pixels by default,

    data/shapes_classification/{train,val}/{circle,square,star,triangle}/00000.png

In a label map 0 is the ground and i the class `CLASSES[i - 1]`. A config chooses what 0 means:
with `reduce_zero_label=False` the ground is a class of its own (`SEMANTIC_CLASSES`), as in the
configs of this project; with `reduce_zero_label=True`, ADE20K's convention, it is ignored.

Shapes are drawn from signed distances (negative inside, in pixels), which give smooth edges, bevels
and shadows alike. Shape letters: H height, W width, both in pixels.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..utils.errors import DatasetError
from .coco_writer import SEGMENTATIONS, annotation, write_image, write_instances, write_whole

CLASSES = ("circle", "square", "triangle", "star")
PALETTE = ((231, 76, 60), (52, 152, 219), (46, 204, 113), (241, 196, 15))
SEMANTIC_CLASSES = ("ground", *CLASSES)
SEMANTIC_PALETTE = ((40, 44, 52), *PALETTE)
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Task:
    """What images a task takes, by default.

    train, val: how many. size: (width, height), pixels. objects: how many are in a square image,
    from and to. radii: of the objects, as shares of the image's shorter side, from and to.
    """

    train: int
    val: int
    size: tuple[int, int]
    objects: tuple[int, int]
    radii: tuple[float, float]


# Objects are about as large in pixels for both.
TASKS = {
    "dense": Task(400, 40, (128, 128), (2, 5), (0.12, 0.25)),
    "classification": Task(4000, 400, (64, 64), (1, 1), (0.2, 0.45)),
}
# Part of what a dataset follows from: to be raised with every change of the images.
VERSION = 1
MIN_SIDE = 32

Array = np.ndarray
Generator = np.random.Generator


@dataclass(frozen=True)
class Sample:
    """An image and its objects, the later ones in front.

    image: (H, W, 3), uint8, RGB. masks: (N, H, W), bool, the visible part of each object, disjoint.
    labels: (N,), indices into `CLASSES`.
    """

    image: Array
    masks: Array
    labels: Array

    def label_map(self) -> Array:
        """(H, W), uint8: 0 the ground, i the class `CLASSES[i - 1]`."""
        return ((self.labels[:, None, None] + 1) * self.masks).sum(0).astype(np.uint8)


# Signed distances. x, y: coordinates in units of the object's radius, (H, W) each.


def _polygon(*vertices: tuple[float, float]) -> Callable[[Array, Array], Array]:
    corners = np.array(vertices)

    def distance(x: Array, y: Array) -> Array:
        nearest = np.full(x.shape, np.inf)
        inside = np.zeros(x.shape, bool)
        for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            ex, ey = bx - ax, by - ay
            along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
            nearest = np.minimum(nearest, (x - ax - along * ex) ** 2 + (y - ay - along * ey) ** 2)
            # Even-odd rule: which points see this edge on their right.
            if ey != 0:
                inside ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) * ex / ey)
        # Less a little, which rounds the corners.
        return np.where(inside, -1, 1) * np.sqrt(nearest) - 0.06

    return distance


def _regular(points: int, *radii: float) -> Callable[[Array, Array], Array]:
    """A polygon whose corners lie on circles of these radii in turn."""
    angles = np.arange(points) * 2 * np.pi / points - np.pi / 2
    radius = np.resize(radii, points)
    return _polygon(*zip(radius * np.cos(angles), radius * np.sin(angles), strict=True))


_DISTANCES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": lambda x, y: np.hypot(x, y) - 0.92,
    "square": _regular(4, 1.08),
    "triangle": _regular(3, 1.08),
    "star": _regular(10, 1.12, 0.5),
}

# Patterns. Each gives an (H, W) array of 0 to 1, by which two colors are mixed. x, y: pixels.
# scale: size of the pattern's largest feature, in pixels.


def _noise(rng: Generator, x: Array, y: Array, scale: float, octaves: int = 1) -> Array:
    height, width = x.shape
    total = np.zeros(x.shape, np.float32)
    for octave in range(octaves):
        cell = max(scale / 2**octave, 1)
        grid = rng.random((int(height / cell) + 3, int(width / cell) + 3), np.float32)
        size = (int(grid.shape[1] * cell) + 1, int(grid.shape[0] * cell) + 1)
        fine = cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC)
        top, left = (int(v) for v in rng.integers(0, int(cell) + 1, 2))
        total += fine[top : top + height, left : left + width] / 2**octave
    return np.clip(total / (2 - 0.5 ** (octaves - 1)), 0, 1)


def _turned(rng: Generator, x: Array, y: Array) -> tuple[Array, Array]:
    angle = rng.uniform(0, 2 * np.pi)
    c, s = np.cos(angle), np.sin(angle)
    return c * x + s * y, c * y - s * x


def _gradient(rng: Generator, x: Array, y: Array, scale: float) -> Array:
    u, _ = _turned(rng, x, y)
    return (u - u.min()) / max(float(np.ptp(u)), 1)


def _clouds(rng: Generator, x: Array, y: Array, scale: float) -> Array:
    return np.clip(_noise(rng, x, y, scale, octaves=5) * 1.8 - 0.4, 0, 1)


def _stripes(rng: Generator, x: Array, y: Array, scale: float) -> Array:
    u, _ = _turned(rng, x, y)
    bend = rng.uniform(0, 1) * scale
    u = u + bend * _noise(rng, x, y, 2 * scale)
    return np.clip(0.5 + rng.uniform(0.5, 3) * np.sin(2 * np.pi * u / scale), 0, 1)


def _grain(rng: Generator, x: Array, y: Array, scale: float) -> Array:
    """Planks of wood: rings stretched along one direction."""
    u, v = _turned(rng, x, y)
    u = u + scale * _noise(rng, x, y, 2 * scale, octaves=2)
    fibres = 0.5 + 0.5 * np.sin(2 * np.pi * u / (0.4 * scale) + np.sin(v / scale))
    return 0.7 * fibres + 0.3 * _noise(rng, x, y, 2)


def _checks(rng: Generator, x: Array, y: Array, scale: float) -> Array:
    u, v = _turned(rng, x, y)
    sharp = rng.uniform(2, 6)
    board = np.sin(np.pi * u / scale) * np.sin(np.pi * v / scale)
    return np.clip(0.5 + sharp * board, 0, 1)


def _dots(rng: Generator, x: Array, y: Array, scale: float) -> Array:
    u, v = _turned(rng, x, y)
    cell = scale * 0.8
    distance = np.hypot((u / cell) % 1 - 0.5, (v / cell) % 1 - 0.5) * cell
    return np.clip(0.5 + cell * rng.uniform(0.2, 0.35) - distance, 0, 1)


def _blobs(rng: Generator, x: Array, y: Array, scale: float) -> Array:
    return np.clip(0.5 + 5 * (_noise(rng, x, y, scale) - rng.uniform(0.4, 0.6)), 0, 1)


def _speckle(rng: Generator, x: Array, y: Array, scale: float) -> Array:
    return np.clip(0.5 + 2 * (_noise(rng, x, y, 2, octaves=2) - 0.5), 0, 1)


Pattern = Callable[[Generator, Array, Array, float], Array]
_GROUNDS: tuple[Pattern, ...] = (
    _gradient,
    _clouds,
    _stripes,
    _grain,
    _checks,
    _blobs,
    _speckle,
)
_SURFACES: tuple[Pattern, ...] = (_gradient, _clouds, _stripes, _checks, _dots, _speckle)


# The centre of each class's hues; by form alone a few minutes do not teach classes apart.
_HUES = {"circle": 0.98, "square": 0.6, "triangle": 0.36, "star": 0.15}


def _rgb(hue: float, saturation: float, value: float) -> Array:
    """An RGB color, 0 to 1 each, from hue (any number, period 1), saturation and value."""
    phase = (np.array([5, 3, 1]) + 6 * hue) % 6
    return value * (1 - saturation * np.clip(np.minimum(phase, 4 - phase), 0, 1))


def _mix(weight: Array, first: Array, second: Array) -> Array:
    return first + weight[..., None] * (second - first)


@dataclass(frozen=True)
class _Object:
    label: int
    centre: tuple[float, float]
    radius: float
    angle: float

    def window(self, height: int, width: int) -> tuple[slice, slice]:
        """The part of the image that the object and its shadow can reach."""
        reach = 1.9 * self.radius + 4
        (cx, cy) = self.centre
        return (
            slice(max(int(cy - reach), 0), min(int(cy + reach) + 1, height)),
            slice(max(int(cx - reach), 0), min(int(cx + reach) + 1, width)),
        )

    def distance(self, x: Array, y: Array) -> Array:
        """Signed distance in pixels at the points (x, y) of the image."""
        c, s = np.cos(self.angle), np.sin(self.angle)
        u, v = (x - self.centre[0]) / self.radius, (y - self.centre[1]) / self.radius
        return self.radius * _DISTANCES[CLASSES[self.label]](c * u + s * v, c * v - s * u)


def _arrange(rng: Generator, x: Array, y: Array, task: str) -> tuple[list[_Object], Array]:
    """Objects, back to front, and the (N, H, W) masks of what is visible of each."""
    height, width = x.shape
    side = min(height, width)
    crowd = height * width / side**2
    wanted = round(float(rng.uniform(*TASKS[task].objects)) * crowd)
    objects: list[_Object] = []
    owner = np.full(x.shape, -1)
    areas: list[int] = []
    for _ in range(6 * wanted):
        if len(objects) == wanted:
            break
        radius = side * float(rng.uniform(*TASKS[task].radii))
        margin = 0.6 * radius
        centre = (
            float(rng.uniform(margin, width - margin)),
            float(rng.uniform(margin, height - margin)),
        )
        label = int(rng.integers(len(CLASSES)))
        one = _Object(label, centre, radius, float(rng.uniform(-0.2, 0.2)))
        window = one.window(height, width)
        covered = np.zeros(x.shape, bool)
        covered[window] = one.distance(x[window], y[window]) <= 0
        left = np.bincount(owner[~covered] + 1, minlength=len(objects) + 1)[1:]
        # What is hardly to be seen could not be named by anybody.
        if any(seen < 0.6 * area for seen, area in zip(left, areas, strict=True)):
            continue
        owner[covered] = len(objects)
        areas.append(int(covered.sum()))
        objects.append(one)
    return objects, owner == np.arange(len(objects))[:, None, None]


def _paint(
    rng: Generator, canvas: Array, one: _Object, x: Array, y: Array, light: tuple[float, float]
) -> None:
    """Paints an object and its shadow into `canvas`, (H, W, 3), 0 to 1."""
    window = one.window(*x.shape)
    x, y, under = x[window], y[window], canvas[window]

    lift = one.radius * rng.uniform(0.08, 0.35)
    blur = 1 + 0.8 * lift
    dropped = one.distance(x + lift * light[0], y + lift * light[1])
    shadow = np.clip(0.5 - dropped / (2 * blur), 0, 1)
    under *= 1 - (rng.uniform(0.35, 0.6) * shadow**2 * (3 - 2 * shadow))[..., None]

    distance = one.distance(x, y)
    ground = under.mean((0, 1))
    while True:
        hue = _HUES[CLASSES[one.label]] + rng.normal(0, 0.05)
        saturation, value = rng.uniform(0.55, 0.95), rng.uniform(0.55, 1)
        color = _rgb(hue, saturation, value)
        if np.abs(color - ground).sum() > 0.7:
            break
    other = _rgb(
        hue + rng.normal(0, 0.04),
        np.clip(saturation + rng.uniform(-0.25, 0.1), 0, 1),
        np.clip(value * rng.uniform(0.7, 1.25), 0, 1),
    )
    pattern = _SURFACES[rng.integers(len(_SURFACES))]
    surface = _mix(pattern(rng, x, y, one.radius * rng.uniform(0.35, 0.8)), color, other)

    # A bevel: the surface bends away near the edge, over its whole width where it is a dome.
    bevel = max(one.radius * rng.choice([0.12, 0.3, 0.9]), 1.5)
    steep = np.clip(1 + distance / bevel, 0, 1)
    down, right = np.gradient(distance)
    facing = steep * (right * light[0] + down * light[1])
    shade = 1 + 0.4 * facing - 0.12 * steep
    gloss = rng.uniform(0, 0.35) * np.clip(facing, 0, 1) ** 4
    lit = np.clip(surface * shade[..., None] + gloss[..., None], 0, 1)

    coverage = np.clip(0.5 - distance, 0, 1)
    under += coverage[..., None] * (lit - under)


def draw(rng: Generator, width: int, height: int, task: str = "dense") -> Sample:
    """Draws an image of `width` x `height` pixels; task: one of `TASKS`."""
    y, x = np.mgrid[:height, :width] + 0.5
    side = min(height, width)
    objects, masks = _arrange(rng, x, y, task)

    hue = rng.uniform(0, 1)
    first = _rgb(hue, rng.uniform(0.03, 0.25), rng.uniform(0.3, 0.85))
    second = _rgb(
        hue + rng.normal(0, 0.1),
        rng.uniform(0.03, 0.25),
        np.clip(first.max() * rng.uniform(0.65, 1.3), 0.15, 0.95),
    )
    ground = _GROUNDS[rng.integers(len(_GROUNDS))]
    canvas = _mix(ground(rng, x, y, side * rng.uniform(0.12, 0.35)), first, second)
    canvas += 0.03 * (_noise(rng, x, y, 3, octaves=2)[..., None] - 0.5)

    angle = rng.uniform(0, 2 * np.pi)
    light = (float(np.cos(angle)), float(np.sin(angle)))
    for one in objects:
        _paint(rng, canvas, one, x, y, light)

    # Light that falls off away from where it comes from, and a camera's noise.
    fall = (x / width - 0.5) * light[0] + (y / height - 0.5) * light[1]
    canvas *= (1 + rng.uniform(0, 0.4) * fall)[..., None]
    canvas += rng.normal(0, rng.uniform(0.002, 0.015), canvas.shape)
    image = np.round(np.clip(canvas, 0, 1) * 255).astype(np.uint8)
    return Sample(image, masks, np.array([one.label for one in objects], int))


def make_sample(
    seed: int, split: str, index: int, size: tuple[int, int] = (128, 128), task: str = "dense"
) -> Sample:
    """Image `index` of a split; size: (width, height) in pixels; task: one of `TASKS`."""
    # no image of one task comes from the random numbers of another's
    stream = [1] if task == "classification" else []
    return draw(np.random.default_rng([seed, SPLITS.index(split), index, *stream]), *size, task)


def generate(
    out: str | Path,
    train: int | None = None,
    val: int | None = None,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    segmentation: str = "polygon",
    task: str = "dense",
) -> bool:
    """Writes a dataset, whole or not at all; the module's head says what lies where.

    Args:
        out: the folder: new, empty, or with this very dataset.
        train, val: numbers of images.
        size: (width, height) in pixels, at least 32 each.
        seed: 0 or more.
        segmentation: 'polygon' or 'rle', see `fcvit_mm.datasets.coco_writer.annotation`.
        task: one of `TASKS`, whose own numbers and size are those that are None.

    Returns:
        Whether it was written: False where `out` already held it.

    Raises:
        DatasetError: a value is not allowed, or `out` holds something else.
    """
    if task not in TASKS:
        raise DatasetError(f"task is {task!r}: it must be one of {', '.join(TASKS)}")
    usual = TASKS[task]
    size = usual.size if size is None else size
    numbers = {
        "train": usual.train if train is None else train,
        "val": usual.val if val is None else val,
    }
    for split, number in numbers.items():
        if number < 1:
            raise DatasetError(f"{split} is {number}: at least 1 image is needed")
    if min(size) < MIN_SIDE:
        raise DatasetError(
            f"size is {size[0]} x {size[1]}: both sides must have at least {MIN_SIDE} pixels"
        )
    if seed < 0:
        raise DatasetError(f"seed is {seed}: it must be 0 or more")
    if segmentation not in SEGMENTATIONS:
        raise DatasetError(
            f"segmentation is {segmentation!r}: it must be one of {', '.join(SEGMENTATIONS)}"
        )

    parameters: dict[str, Any] = {
        "generator": "fcvit_mm.shapes",
        "version": VERSION,
        **numbers,
        "size": list(size),
        "seed": seed,
    }
    if task == "classification":
        parameters["task"] = task
        return write_whole(
            Path(out), parameters, lambda folder: _write_classes(folder, numbers, size, seed)
        )
    parameters["segmentation"] = segmentation
    files = [f"annotations/instances_{split}.json" for split in SPLITS]
    for split, number in numbers.items():
        for folder in ("images", "label_maps"):
            files += [f"{folder}/{split}/{index:05}.png" for index in range(number)]
    return write_whole(
        Path(out),
        parameters,
        lambda folder: _write_scenes(folder, numbers, size, seed, segmentation),
        files,
    )


def _write_scenes(
    folder: Path, numbers: dict[str, int], size: tuple[int, int], seed: int, segmentation: str
) -> None:
    for split, number in numbers.items():
        images, maps = folder / "images" / split, folder / "label_maps" / split
        images.mkdir(parents=True)
        maps.mkdir(parents=True)
        content = []
        for index in range(number):
            one = make_sample(seed, split, index, size)
            name = f"{index:05}.png"
            write_image(images / name, one.image)
            write_image(maps / name, one.label_map())
            found = [
                annotation(mask, int(label) + 1, segmentation)
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
            write_image(folder / split / CLASSES[one.labels[0]] / f"{index:05}.png", one.image)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fcvit_mm.datasets.shapes",
        description="Write the example dataset of shapes.",
    )
    parser.add_argument("out", metavar="OUT", help="folder to write")
    parser.add_argument("--task", choices=TASKS, default="dense", help="what it is for")
    parser.add_argument("--train", type=int, help="images to train on (default: the task's)")
    parser.add_argument("--val", type=int, help="held-out images (default: the task's)")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("W", "H"), help="pixels (default: the task's)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--segmentation",
        choices=SEGMENTATIONS,
        default="polygon",
        help="how masks are stored; with polygon those with a hole are still RLE",
    )
    options = parser.parse_args(arguments)
    try:
        written = generate(
            options.out,
            options.train,
            options.val,
            tuple(options.size) if options.size else None,
            options.seed,
            options.segmentation,
            options.task,
        )
    except (DatasetError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    done = "written to" if written else "already in"
    counts = [
        number if number is not None else getattr(TASKS[options.task], split)
        for split, number in (("train", options.train), ("val", options.val))
    ]
    print(f"{counts[0]} + {counts[1]} images {done} {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
