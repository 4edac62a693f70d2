"""Measure what a model costs at an input size: parameters, multiply-adds, activation memory.

MMEngine's counter traces with torch.jit and misses the operators that it has no handle for, and it
knows nothing of memory.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from ..utils.errors import ConfigError
from ..visualization.figures import Figure, make_panels
from .tracing import REST, Memory, Watch, kept_for_backward
from .workload import Size, example_samples, run_prediction

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
    """A tensor that a part gives; stride: input pixels per position, None if it is not a map."""

    shape: tuple[int, ...]
    stride: int | None


@dataclass(frozen=True)
class Row:
    """A part's cost, for one image.

    kept_bytes: from the forward to the backward pass of a training step. peak_bytes: most that
    existed at once in a prediction, all parts', while this one was at work.
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


class MultiplyAdds(Watch):
    """Count multiply-adds of convolutions and matrix products, by part: `counted`.

    They give zeros, which are not computed, and come in PyTorch's ordinary layout, in which FCViT's
    row tiles compute no row twice.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.counted: Counter[str] = Counter()

    def __enter__(self) -> Any:
        # attention as its matrix products, which are counted, not as one fused operator
        self.undo.enter_context(sdpa_kernel(SDPBackend.MATH))
        fused = torch.backends.mha.get_fastpath_enabled()
        self.undo.callback(torch.backends.mha.set_fastpath_enabled, fused)
        torch.backends.mha.set_fastpath_enabled(False)
        return super().__enter__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        count = flop_registry.get(func._overloadpacket)
        if count is None:
            return func(*args, **kwargs)
        device = next(x.device for x in tree_leaves(args) if isinstance(x, Tensor))
        args, kwargs = tree_map_only(Tensor, lambda x: x.to("meta"), (args, kwargs))
        output = func(*args, **kwargs)
        self.counted[self.part] += count(*args, **kwargs, out_val=output) // 2
        return tree_map_only(
            Tensor, lambda x: torch.zeros(x.shape, dtype=x.dtype, device=device), output
        )


def count(model: nn.Module, scope: str, size: Size) -> MultiplyAdds:
    """Count the multiply-adds of a prediction; scope: mmdet, mmseg or mmpretrain."""
    device = next(model.parameters()).device
    inputs = torch.zeros(1, 3, *size, device=device)
    samples = example_samples(scope, size, 1, device)
    with torch.no_grad(), MultiplyAdds(model) as found:
        run_prediction(model, inputs, samples)
    return found


def multiply_adds(model: nn.Module, scope: str, size: Size) -> int:
    """Count all multiply-adds of a prediction, which OpenMMLab's metafiles call FLOPs."""
    return count(model, scope, size).counted.total()


def measure(model: Any, scope: str, size: Size) -> Cost:
    """Measure what a model in evaluation mode costs on one image, on the device where it is."""
    device = next(model.parameters()).device
    inputs = torch.rand(1, 3, *size, device=device)
    found = count(model, scope, size)
    with torch.no_grad(), Memory(model, inputs) as memory:
        run_prediction(model, inputs, example_samples(scope, size, 1, device))
    kept = kept_for_backward(model, inputs, example_samples(scope, size, 1, device))
    owned = {
        name: {p for module in modules for p in module.parameters()}
        for name, modules in found.parts.items()
    }
    owned[REST] = set(model.parameters()).difference(*owned.values())
    rows = [
        Row(
            name,
            sum(p.numel() for p in parameters),
            found.counted[name],
            kept[name],
            memory.peaks[name],
            [Output(shape, stride_of(shape, size)) for shape in found.shapes.get(name, [])],
        )
        for name, parameters in owned.items()
    ]
    rows = [row for row in rows if row.parameters or row.multiply_adds or row.kept_bytes]
    return Cost(size, rows, sum_of("all", rows))


def stride_of(shape: tuple[int, ...], size: Size) -> int | None:
    """Return input pixels per position of a map (1, C, height, width): the roundest that fits."""
    strides = range(1, max(size) + 1) if len(shape) == 4 and shape[0] == 1 else ()
    fits = [s for s in strides if tuple(math.ceil(n / s) for n in size) == tuple(shape[2:])]
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
        [max(1, round(pixels * i / 8 / COARSEST)) * COARSEST for i in range(2, 9)]
        for pixels in size
    )
    sizes = sorted(set(zip(height, width, strict=True)))
    if len(sizes) < 3:
        raise ConfigError(
            f"--sweep: there are too few multiples of {COARSEST} up to {size[0]} {size[1]}; give "
            "a larger --size"
        )
    return sizes


def fit(pixels: Sequence[int], values: Sequence[float]) -> dict[str, float]:
    """Fit start + slope * pixels; residual: the largest deviation, as a share of the fitted."""
    slope, start = np.polyfit(pixels, values, 1).tolist()
    fitted = start + slope * np.asarray(pixels)
    return {
        "start": start,
        "slope": slope,
        "residual": float(np.abs(np.asarray(values) / fitted - 1).max()),
    }


def sweep_of(costs: Sequence[Cost]) -> dict[str, Any]:
    """Return the sizes, and by axis and name of `SERIES` the values and their `fit`."""
    pixels = [math.prod(cost.size) for cost in costs]
    found: dict[str, Any] = {"sizes": [cost.size for cost in costs]}
    for axis, series in SERIES.items():
        unit, found[axis] = 1e9 if axis.endswith("G") else 1e6, {}
        for name, start, attribute in series:
            parts = [[row for row in cost.rows if row.part.startswith(start)] for cost in costs]
            values = [getattr(sum_of(name, rows), attribute) / unit for rows in parts]
            found[axis][name] = {"values": values, **fit(pixels, values)}
    return found


def draw_sweep(sweep: dict[str, Any], title: str) -> Figure:
    """Plot cost against the number of pixels, with the fitted lines and their residuals."""
    figure, grid = make_panels(1, 2, (10, 4.2))
    pixels = np.array([math.prod(size) for size in sweep["sizes"]])
    colors = ("#1f4e79", "#c0392b", "#27ae60")
    for axes, axis in zip(grid[0], SERIES, strict=True):
        for (name, line), color in zip(sweep[axis].items(), colors, strict=False):
            label = f"{name}, off the line by {line['residual']:.1%} at most"
            fitted = line["start"] + line["slope"] * pixels
            axes.plot(pixels / 1e3, line["values"], "o", color=color, markersize=5)
            axes.plot(pixels / 1e3, fitted, color=color, linewidth=1, label=label)
        axes.set(xlabel="thousand pixels", ylabel=axis, xlim=(0, None), ylim=(0, None))
        axes.legend(frameon=False, fontsize=8, loc="upper left")
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11)
    return figure
