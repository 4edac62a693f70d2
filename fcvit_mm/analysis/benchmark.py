"""Measure models side by side: time and peak memory of a prediction or a training step.

All run in one process with random weights on the same images of noise, and take turns, so that a
machine that becomes slower does so for all.
"""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from ..utils.config import load_config
from ..utils.errors import ConfigError, name_failure
from ..visualization.figures import Figure, make_panels
from .tracing import Memory
from .workload import Size, build, example_samples, run_loss, run_prediction

# Backbones of MMPretrain with a map from each stage, as a detector needs them.
STAGES = (0, 1, 2, 3)
PEERS: dict[str, dict[str, Any]] = {
    "ResNet-50": dict(type="mmpretrain.ResNet", depth=50, out_indices=STAGES),
    "ConvNeXt-T": dict(
        type="mmpretrain.ConvNeXt", arch="tiny", out_indices=STAGES, gap_before_final_norm=False
    ),
    "PoolFormer-S24": dict(type="mmpretrain.PoolFormer", arch="s24", out_indices=(0, 2, 4, 6)),
    "Swin-T": dict(
        type="mmpretrain.SwinTransformer", arch="tiny", out_indices=STAGES, pad_small_map=True
    ),
}
PREDICTION, TRAINING = "prediction", "training step"
Call = Callable[[], object]


def interleave(
    calls: Mapping[str, Call], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Return the milliseconds of each call in each round, after a first call of each.

    They take turns, and each round begins with another one. clock: gives seconds.
    """
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for _ in range(repeats):
        for name in names:
            since = clock()
            calls[name]()
            times[name].append(1000 * (clock() - since))
        names = names[1:] + names[:1]
    return times


def medians(calls: Mapping[str, Call], repeats: int) -> dict[str, float]:
    """Return the median of the milliseconds of each call, see `interleave`."""
    return {name: statistics.median(t) for name, t in interleave(calls, repeats).items()}


@dataclass
class Subject:
    """A model to measure, with images and data samples for it."""

    name: str
    model: nn.Module
    inputs: Tensor
    samples: list[Any]

    def run(self) -> None:
        """Predict, or run a forward and a backward pass in training mode, until it is finished."""
        if self.model.training:
            run_loss(self.model, self.inputs, self.samples).backward()
            self.model.zero_grad()
        else:
            with torch.no_grad():
                run_prediction(self.model, self.inputs, self.samples)
        if self.inputs.is_cuda:
            torch.cuda.synchronize(self.inputs.device)


def subjects(
    configs: Sequence[str],
    backbones: bool,
    peers: bool,
    size: Size,
    batch: int,
    device: torch.device,
) -> list[Subject]:
    """Build the models of configs, or their backbones, and `PEERS` if wanted.

    Raises:
        ConfigError: a model can't be built, or two have the same name.
    """
    torch.manual_seed(0)
    inputs = torch.rand(batch, 3, *size, device=device)
    found: list[Subject] = []
    for filename in configs:
        cfg = load_config(filename)
        model, name = build(cfg), Path(filename).stem
        if backbones:
            if not isinstance(getattr(model, "backbone", None), nn.Module):
                raise ConfigError(f"{filename}: the model has no backbone; leave out --backbone")
            model = model.backbone
        if name in (subject.name for subject in found):
            raise ConfigError(f"two models are named {name}; rename one of the config files")
        samples = example_samples(cfg.default_scope, size, batch, device)
        found.append(Subject(name, model.to(device), inputs, samples))
    for name, settings in PEERS.items() if peers else ():
        init_default_scope("mmpretrain")
        model = MODELS.build(settings)
        model.eval()  # a statement of its own: some of MMPretrain's do not return the model
        found.append(Subject(name, model.to(device), inputs, []))
    return found


def peak_memory(subject: Subject) -> int:
    """Return the most bytes at once in a run beyond parameters: activations and gradients.

    On a GPU those that PyTorch's allocator gave out, elsewhere those of tensors.
    """
    device = subject.inputs.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        subject.run()
        return torch.cuda.max_memory_allocated(device) - before
    with Memory(subject.model, subject.inputs) as memory:
        subject.run()
    return memory.peak


@dataclass(frozen=True)
class Result:
    """A model in one activity.

    milliseconds: of each round. time: their median and quartiles, lower and upper. ratio: of the
    medians, to the first model. peak_bytes: see `peak_memory`.
    """

    name: str
    activity: str
    milliseconds: list[float]
    time: dict[str, float]
    ratio: float
    images_per_second: float
    peak_bytes: int


def measure(
    models: Sequence[Subject],
    training: bool,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Result]:
    """Time predictions, and if wanted training steps; a ConfigError if a model does not run."""
    batch, _, height, width = models[0].inputs.shape
    size = f"{height} high and {width} wide"
    results = []
    for activity in (PREDICTION, TRAINING) if training else (PREDICTION,):
        peaks = {}
        for subject in models:
            subject.model.train(activity == TRAINING)
            what = f"{activity} of {subject.name} does not run on images {size}"
            with name_failure(what, "; try a larger --size or --batch"):
                # the first run, too, in which libraries choose their algorithms
                subject.run()
                peaks[subject.name] = peak_memory(subject)
        times = interleave({subject.name: subject.run for subject in models}, repeats, clock)
        first = statistics.median(times[models[0].name])
        for name, milliseconds in times.items():
            lower, median, upper = np.quantile(milliseconds, (0.25, 0.5, 0.75)).tolist()
            spread = {"median": median, "lower": lower, "upper": upper}
            ratio, rate = median / first, 1000 * batch / median
            results.append(Result(name, activity, milliseconds, spread, ratio, rate, peaks[name]))
    return results


def processor() -> str:
    """Return the processor's name, as the system gives it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.split(": ", 1)[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def conditions(device: torch.device) -> dict[str, Any]:
    """Return what the results depend on; load: of the processors, in the last minute."""
    versions = {"torch": torch.__version__, "dtype": "float32"}
    if device.type == "cuda":
        return {
            "machine": torch.cuda.get_device_name(device),
            **versions,
            "memory": "allocated by PyTorch on the GPU beyond the models",
        }
    return {
        "machine": f"{processor()} ({torch.backends.cpu.get_cpu_capability()})",
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        **versions,
        "memory": "of tensors beyond the models and inputs, without workspace inside operators",
    }


def draw(results: Sequence[Result], title: str) -> Figure:
    """Plot time and memory: one row of panels per activity, one bar per model."""
    activities = list(dict.fromkeys(result.activity for result in results))
    names = list(dict.fromkeys(result.name for result in results))
    height = 0.9 + len(activities) * (0.9 + 0.35 * len(names))
    figure, grid = make_panels(len(activities), 2, (10, height), sharey=True)
    for (left, right), activity in zip(grid, activities, strict=True):
        shown = [result for result in results if result.activity == activity]
        colors = ["#1f4e79"] + ["#9bb7d4"] * (len(shown) - 1)
        median, lower, upper = np.array([list(result.time.values()) for result in shown]).T
        errors = [median - lower, upper - median]
        left.barh(names, median, xerr=errors, color=colors, error_kw=dict(capsize=3, lw=1))
        left.set(xlabel=f"{activity}: median and quartiles, ms")
        right.barh(names, [result.peak_bytes / 1e6 for result in shown], color=colors)
        right.set(xlabel=f"{activity}: peak memory, MB")
        for axes in (left, right):
            axes.grid(axis="x", alpha=0.3)
            axes.set_axisbelow(True)
    # the first on top, in all panels, which share this axis
    grid[0, 0].invert_yaxis()
    figure.suptitle(title, fontsize=10)
    return figure
