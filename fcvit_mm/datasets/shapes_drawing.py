"""Draw shapes on textured grounds: what the generated datasets are made of.

Shapes are drawn from signed distances (negative inside, in pixels), which give smooth edges, bevels
and shadows alike. Each class has its own hues; patterns and light it shares with all.
"""

import colorsys
from typing import NamedTuple

import cv2
import numpy as np

CLASSES = ("circle", "square", "triangle", "star")
SPLITS = ("train", "val")


class Task(NamedTuple):
    """What images a task takes, by default."""

    train: int  # how many
    val: int
    size: tuple[int, int]  # (width, height), pixels
    objects: tuple[int, int]  # how many are in a square image, from and to
    radii: tuple[float, float]  # of objects, in shorter sides of the image, from and to


# Objects are about as large in pixels for both.
TASKS = {
    "dense": Task(400, 40, (128, 128), (2, 5), (0.12, 0.25)),
    "classification": Task(4000, 400, (64, 64), (1, 1), (0.2, 0.45)),
}

Array = np.ndarray
Generator = np.random.Generator


class Sample(NamedTuple):
    """An image and its objects, the later ones in front."""

    image: Array  # (H, W, 3), uint8, RGB
    masks: Array  # (N, H, W), bool, the visible part of each object, disjoint
    labels: Array  # (N,), indices into `CLASSES`

    def label_map(self) -> Array:
        """Return (H, W), uint8: 0 the ground, i the class `CLASSES[i - 1]`."""
        return ((self.labels[:, None, None] + 1) * self.masks).sum(0).astype(np.uint8)


def _corners(points: int, *radii: float) -> Array:
    """Return the corners of a polygon, (points, 2), on circles of these radii in turn."""
    angles = np.arange(points) * 2 * np.pi / points - np.pi / 2
    return np.resize(radii, points)[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)


_CORNERS = {
    "square": _corners(4, 1.08),
    "triangle": _corners(3, 1.08),
    "star": _corners(10, 1.12, 0.5),
}


def _distance(shape: str, x: Array, y: Array) -> Array:
    """Return the signed distances of points (x, y), in units of the shape's radius, (H, W) each."""
    if shape == "circle":
        return np.hypot(x, y) - 0.92
    corners = _CORNERS[shape]
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


def _noise(rng: Generator, x: Array, scale: float, octaves: int = 1) -> Array:
    """Return smooth noise, 0 to 1, of the shape of x."""
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


_GROUNDS = ("gradient", "clouds", "stripes", "grain", "checks", "blobs", "speckle")
_SURFACES = ("gradient", "clouds", "stripes", "checks", "dots", "speckle")


def _pattern(rng: Generator, name: str, x: Array, y: Array, scale: float) -> Array:
    """Return a pattern by which two colors are mixed, 0 to 1, (H, W).

    Args:
        x, y: pixels, (H, W) each.
        scale: size of the pattern's largest feature, in pixels.
    """
    if name == "clouds":
        return np.clip(_noise(rng, x, scale, octaves=5) * 1.8 - 0.4, 0, 1)
    if name == "blobs":
        return np.clip(0.5 + 5 * (_noise(rng, x, scale) - rng.uniform(0.4, 0.6)), 0, 1)
    if name == "speckle":
        return np.clip(0.5 + 2 * (_noise(rng, x, 2, octaves=2) - 0.5), 0, 1)
    # the others have a direction
    angle = rng.uniform(0, 2 * np.pi)
    c, s = np.cos(angle), np.sin(angle)
    u, v = c * x + s * y, c * y - s * x
    if name == "gradient":
        return (u - u.min()) / max(float(np.ptp(u)), 1)
    if name == "stripes":
        bend = rng.uniform(0, 1) * scale
        u = u + bend * _noise(rng, x, 2 * scale)
        return np.clip(0.5 + rng.uniform(0.5, 3) * np.sin(2 * np.pi * u / scale), 0, 1)
    if name == "grain":
        # planks of wood: rings stretched along one direction
        u = u + scale * _noise(rng, x, 2 * scale, octaves=2)
        fibers = 0.5 + 0.5 * np.sin(2 * np.pi * u / (0.4 * scale) + np.sin(v / scale))
        return 0.7 * fibers + 0.3 * _noise(rng, x, 2)
    if name == "checks":
        board = np.sin(np.pi * u / scale) * np.sin(np.pi * v / scale)
        return np.clip(0.5 + rng.uniform(2, 6) * board, 0, 1)
    # dots
    cell = scale * 0.8
    distance = np.hypot((u / cell) % 1 - 0.5, (v / cell) % 1 - 0.5) * cell
    return np.clip(0.5 + cell * rng.uniform(0.2, 0.35) - distance, 0, 1)


# The center of each class's hues; by form alone a few minutes do not teach classes apart.
_HUES = {"circle": 0.98, "square": 0.6, "triangle": 0.36, "star": 0.15}


def _rgb(hue: float, saturation: float, value: float) -> Array:
    """Return an RGB color, 0 to 1 each; hue: any number, period 1."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


def _mix(weight: Array, first: Array, second: Array) -> Array:
    return first + weight[..., None] * (second - first)


class _Object(NamedTuple):
    label: int
    center: tuple[float, float]
    radius: float
    angle: float

    def window(self, height: int, width: int) -> tuple[slice, slice]:
        """Return the part of the image that the object and its shadow can reach."""
        reach = 1.9 * self.radius + 4
        cx, cy = self.center
        return (
            slice(max(int(cy - reach), 0), min(int(cy + reach) + 1, height)),
            slice(max(int(cx - reach), 0), min(int(cx + reach) + 1, width)),
        )

    def distance(self, x: Array, y: Array) -> Array:
        """Return the signed distances in pixels of points (x, y) of the image."""
        c, s = np.cos(self.angle), np.sin(self.angle)
        u, v = (x - self.center[0]) / self.radius, (y - self.center[1]) / self.radius
        return self.radius * _distance(CLASSES[self.label], c * u + s * v, c * v - s * u)


def _arrange(rng: Generator, x: Array, y: Array, task: str) -> tuple[list[_Object], Array]:
    """Place objects; return them, back to front, and the masks of what is visible, (N, H, W)."""
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
        cx, cy = (float(rng.uniform(margin, end - margin)) for end in (width, height))
        label = int(rng.integers(len(CLASSES)))
        one = _Object(label, (cx, cy), radius, float(rng.uniform(-0.2, 0.2)))
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
    """Paint an object and its shadow into `canvas`, (H, W, 3), 0 to 1."""
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
    name = _SURFACES[rng.integers(len(_SURFACES))]
    pattern = _pattern(rng, name, x, y, one.radius * rng.uniform(0.35, 0.8))
    surface = _mix(pattern, color, other)

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


def make_sample(
    seed: int, split: str, index: int, size: tuple[int, int] = (128, 128), task: str = "dense"
) -> Sample:
    """Draw image `index` of a split; size: (width, height) in pixels; task: one of `TASKS`."""
    # no image of one task comes from the random numbers of another's
    stream = [1] if task == "classification" else []
    rng = np.random.default_rng([seed, SPLITS.index(split), index, *stream])
    width, height = size
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
    name = _GROUNDS[rng.integers(len(_GROUNDS))]
    canvas = _mix(_pattern(rng, name, x, y, side * rng.uniform(0.12, 0.35)), first, second)
    canvas += 0.03 * (_noise(rng, x, 3, octaves=2)[..., None] - 0.5)

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
