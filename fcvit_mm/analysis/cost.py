"""What a model costs, part by part, and the lines through its cost at several sizes."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..utils.errors import ConfigError
from ..visualization.figures import Figure, make_panels
from .workload import Size

# Of the size of a sweep's largest image, along each side.
SHARES = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
# The coarsest stride: sizes of a sweep are its multiples, so that no stage rounds.
COARSEST = 32
# What a sweep plots, by axis: name, beginning of the parts that it adds up, their attribute.
SERIES = {
    "multiply-adds, G": [
        ("whole model", "", "multiply_adds"),
        ("backbone", "backbone", "multiply_adds"),
    ],
    "activation memory, MB": [
        ("kept for the backward pass", "", "kept_bytes"),
        ("kept, backbone", "backbone", "kept_bytes"),
        ("peak in prediction", "", "peak_bytes"),
    ],
}


@dataclass(frozen=True)
class Output:
    """A tensor that a part gives.

    shape: whole, the batch of one first. stride: input pixels per position, None if not a map.
    """

    shape: tuple[int, ...]
    stride: int | None


@dataclass(frozen=True)
class Row:
    """A part's cost, for one image.

    parameters: numbers. multiply_adds: of a prediction. kept_bytes: from the forward to the
    backward pass of a training step. peak_bytes: most that existed at once in a prediction, all
    parts', while this one was at work.
    """

    part: str
    parameters: int
    multiply_adds: int
    kept_bytes: int
    peak_bytes: int
    outputs: list[Output]


@dataclass(frozen=True)
class Cost:
    """What a model costs at a size (height, width): one row per part, and that of all."""

    size: Size
    rows: list[Row]
    total: Row


def output_of(shape: tuple[int, ...], size: Size) -> Output:
    """Describe a tensor of a part, for images of a size."""
    is_map = len(shape) == 4 and shape[0] == 1
    return Output(shape, stride_of((shape[2], shape[3]), size) if is_map else None)


def stride_of(length: Size, size: Size) -> int | None:
    """Return input pixels per position of a map (height, width): the roundest that fits, if any."""
    strides = range(1, max(size) + 1)
    fits = [s for s in strides if tuple(math.ceil(n / s) for n in size) == tuple(length)]
    # by the largest power of two that divides it
    return max(fits, key=lambda stride: stride & -stride, default=None)


def sum_of(name: str, rows: Sequence[Row]) -> Row:
    """Add up rows: sums, but the largest of the peaks, and the last one's outputs."""
    return Row(
        name,
        sum(row.parameters for row in rows),
        sum(row.multiply_adds for row in rows),
        sum(row.kept_bytes for row in rows),
        max((row.peak_bytes for row in rows), default=0),
        rows[-1].outputs if rows else [],
    )


def sweep_sizes(size: Size) -> list[Size]:
    """Return sizes up to `size`, of about its shape; a ConfigError for fewer than three."""
    height, width = (
        [max(1, round(share * pixels / COARSEST)) * COARSEST for share in SHARES] for pixels in size
    )
    sizes = sorted(set(zip(height, width, strict=True)))
    if len(sizes) < 3:
        raise ConfigError(
            f"--sweep: there are too few multiples of {COARSEST} up to {size[0]} {size[1]}; give "
            "a larger --size"
        )
    return sizes


@dataclass(frozen=True)
class Line:
    """start + slope * pixels; residual: the largest deviation, as a share of the fitted value."""

    start: float
    slope: float
    residual: float

    def at(self, pixels: Any) -> np.ndarray:
        """Return the fitted values at some numbers of pixels."""
        return self.start + self.slope * np.asarray(pixels)


def fit(pixels: Sequence[float], values: Sequence[float]) -> Line:
    """Fit a line by least squares."""
    slope, start = np.polyfit(pixels, values, 1).tolist()
    residual = np.abs(np.asarray(values) / Line(start, slope, 0.0).at(pixels) - 1).max()
    return Line(start, slope, float(residual))


def lines_of(costs: Sequence[Cost]) -> dict[str, dict[str, tuple[list[float], Line]]]:
    """Return by axis and name the values at each size, in the axis' unit, and their line."""
    pixels = [math.prod(cost.size) for cost in costs]
    found: dict[str, dict[str, tuple[list[float], Line]]] = {axis: {} for axis in SERIES}
    for axis, series in SERIES.items():
        unit = 1e9 if axis.endswith("G") else 1e6
        for name, start, attribute in series:
            rows = [
                sum_of(name, [row for row in cost.rows if row.part.startswith(start)])
                for cost in costs
            ]
            values = [getattr(row, attribute) / unit for row in rows]
            found[axis][name] = values, fit(pixels, values)
    return found


def sweep_content(costs: Sequence[Cost]) -> dict[str, Any]:
    """Return the sizes, and by axis and name values and line, for a JSON file."""
    lines = {
        axis: {name: {"values": values, **asdict(line)} for name, (values, line) in series.items()}
        for axis, series in lines_of(costs).items()
    }
    return {"sizes": [cost.size for cost in costs], **lines}


def draw_sweep(costs: Sequence[Cost], title: str) -> Figure:
    """Plot cost against the number of pixels, with the fitted lines and their residuals."""
    figure, grid = make_panels(1, 2, (10, 4.2))
    pixels = np.array([math.prod(cost.size) for cost in costs])
    colors = ("#1f4e79", "#c0392b", "#27ae60")
    for axes, (axis, series) in zip(grid[0], lines_of(costs).items(), strict=True):
        for (name, (values, line)), color in zip(series.items(), colors, strict=False):
            label = f"{name}, off the line by {line.residual:.1%} at most"
            axes.plot(pixels / 1e3, values, "o", color=color, markersize=5)
            axes.plot(pixels / 1e3, line.at(pixels), color=color, linewidth=1, label=label)
        axes.set(xlabel="thousand pixels", ylabel=axis, xlim=(0, None), ylim=(0, None))
        axes.legend(frameon=False, fontsize=8, loc="upper left")
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11)
    return figure
