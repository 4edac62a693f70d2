"""How fast models are side by side: latency, throughput, peak memory, a training step.

All run in one process with random weights on the same images of noise, and take turns, so that a
machine that becomes slower does so for all. Post-processing belongs to a whole model's prediction,
reading and preparing images does not.
"""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import MODELS, init_default_scope
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ..utils.config import load_config
from ..utils.errors import ConfigError
from ..visualization.figures import make_panels, save_figure
from . import complexity
from .complexity import Size

# Backbones of MMPretrain with a map from each stage, as a detector needs them.
PEERS: dict[str, dict[str, Any]] = {
    "ResNet-50": dict(type="mmpretrain.ResNet", depth=50, out_indices=(0, 1, 2, 3)),
    "ConvNeXt-T": dict(
        type="mmpretrain.ConvNeXt",
        arch="tiny",
        out_indices=(0, 1, 2, 3),
        gap_before_final_norm=False,
    ),
    "PoolFormer-S24": dict(type="mmpretrain.PoolFormer", arch="s24", out_indices=(0, 2, 4, 6)),
    "Swin-T": dict(
        type="mmpretrain.SwinTransformer",
        arch="tiny",
        out_indices=(0, 1, 2, 3),
        pad_small_map=True,
    ),
}
PREDICTION, TRAINING = "prediction", "training step"
Call = Callable[[], object]


# -------------------------------------------------------------------------------------- timing


def interleave(
    calls: dict[str, Call],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
    finish: Call = lambda: None,
) -> dict[str, list[float]]:
    """Milliseconds of each call in each round; each is called once before.

    In a round the calls take turns, and each round begins with another one.

    Args:
        calls: what to time, by name.
        repeats: number of rounds.
        clock: gives seconds.
        finish: waits until a device has done what it was asked for.
    """
    for call in calls.values():
        call()
    finish()
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for i in range(repeats):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            since = clock()
            calls[name]()
            finish()
            times[name].append(1000 * (clock() - since))
    return times


@dataclass(frozen=True)
class Spread:
    """The median of some values and their quartiles."""

    median: float
    lower: float
    upper: float


def spread(values: Sequence[float]) -> Spread:
    lower, median, upper = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return Spread(median, lower, upper)


def medians(calls: dict[str, Call], repeats: int) -> dict[str, float]:
    """The median of the milliseconds of each call, see `interleave`."""
    return {name: statistics.median(t) for name, t in interleave(calls, repeats).items()}


# -------------------------------------------------------------------------------------- models


@dataclass
class Subject:
    """A model to measure, with images and data samples for it."""

    name: str
    model: nn.Module
    inputs: Tensor
    samples: list[Any]

    def predict(self) -> object:
        with torch.no_grad():
            return complexity.run_prediction(self.model, self.inputs, self.samples)

    def train(self) -> None:
        """A forward and a backward pass."""
        complexity.run_loss(self.model, self.inputs, self.samples).backward()
        self.model.zero_grad()


def subjects(
    configs: Sequence[str],
    backbones: bool,
    peers: bool,
    size: Size,
    batch: int,
    device: torch.device,
) -> list[Subject]:
    """Build what is to be measured, in the order of the command line.

    Args:
        configs: names of configs, see `runtime.load_config`.
        backbones: of the configs' models take the backbones alone.
        peers: add `PEERS`.
        size: height and width of the images.
        batch: number of images.
        device: to measure on.

    Raises:
        ConfigError: something can't be built, or two have the same name.
    """
    torch.manual_seed(0)
    inputs = torch.rand(batch, 3, *size, device=device)
    found = []
    for filename in configs:
        cfg = load_config(filename)
        model, name = complexity.build(cfg), Path(filename).stem
        if backbones:
            if not isinstance(getattr(model, "backbone", None), nn.Module):
                raise ConfigError(f"{filename}: the model has no backbone; leave out --backbone")
            model = model.backbone
        samples = complexity.example_samples(cfg.default_scope, size, batch, device)
        found.append(Subject(name, model.to(device), inputs, samples))
    if peers:
        init_default_scope("mmpretrain")
        for name, settings in PEERS.items():
            model = MODELS.build(settings)
            model.eval()  # a statement of its own: some of MMPretrain's do not return the model
            found.append(Subject(name, model.to(device), inputs, []))
    names = [subject.name for subject in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two models are named {name}; rename one of the config files")
    return found


def peak_memory(subject: Subject, run: Call) -> int:
    """Most bytes at once in a run beyond the model's parameters: activations and gradients.

    On a GPU those that PyTorch's allocator gave out, elsewhere those of tensors, see `cost.Memory`.
    """
    device = subject.inputs.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with complexity.memory_of(subject.model, subject.inputs) as memory:
        run()
    return memory.peak


# ----------------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Result:
    """A model in one activity.

    milliseconds: of each round. time: their spread. ratio: of the medians, to the first model.
    images_per_second: at the median. peak_bytes: see `peak_memory`.
    """

    name: str
    activity: str
    milliseconds: list[float]
    time: Spread
    ratio: float
    images_per_second: float
    peak_bytes: int


def measure(
    models: Sequence[Subject],
    training: bool,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Result]:
    """Time predictions, and training steps if wanted, of all models in turn.

    Raises:
        ConfigError: a model does not run on its images.
    """
    batch, _, height, width = models[0].inputs.shape
    device = models[0].inputs.device

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    results = []
    for activity in (PREDICTION, TRAINING) if training else (PREDICTION,):
        calls: dict[str, Call] = {
            subject.name: subject.predict if activity == PREDICTION else subject.train
            for subject in models
        }
        peaks = {}
        for subject in models:
            subject.model.train(activity == TRAINING)
            name, remedy = f"{activity} of {subject.name}", "a larger --size or --batch"
            with complexity.saying_what_fails(name, (height, width), remedy):
                # the first run, too, in which libraries choose their algorithms
                calls[subject.name]()
                peaks[subject.name] = peak_memory(subject, calls[subject.name])
        times = interleave(calls, repeats, clock, finish)
        spreads = {name: spread(values) for name, values in times.items()}
        first = spreads[models[0].name].median
        results += [
            Result(
                name,
                activity,
                times[name],
                found,
                found.median / first,
                1000 * batch / found.median,
                peaks[name],
            )
            for name, found in spreads.items()
        ]
    return results


def processor() -> str:
    """The processor's name, as the system gives it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.split(": ", 1)[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def conditions(device: torch.device) -> dict[str, Any]:
    """What the figures depend on. load: processes that wanted a processor in the last minute."""
    if device.type == "cuda":
        return {
            "machine": torch.cuda.get_device_name(device),
            "torch": torch.__version__,
            "dtype": "float32",
            "memory": "allocated by PyTorch on the GPU beyond the models",
        }
    return {
        "machine": f"{processor()} ({torch.backends.cpu.get_cpu_capability()})",
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "dtype": "float32",
        "memory": "of tensors beyond the models and inputs, without workspace inside operators",
    }


# ------------------------------------------------------------------------------------- results


def table(results: Sequence[Result], title: str, caption: str) -> Table:
    """A row a model, a section an activity."""
    found = Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
    )
    found.add_column("activity", no_wrap=True)
    found.add_column("model", no_wrap=True)
    for column in ("median, ms", "quartiles, ms", "ratio", "images/s", "peak, MB"):
        found.add_column(column, justify="right")
    for activity in dict.fromkeys(result.activity for result in results):
        for result in results:
            if result.activity == activity:
                found.add_row(
                    activity,
                    result.name,
                    f"{result.time.median:.1f}",
                    f"{result.time.lower:.1f} to {result.time.upper:.1f}",
                    f"{result.ratio:.2f}",
                    f"{result.images_per_second:.2f}",
                    f"{result.peak_bytes / 1e6:.1f}",
                )
        found.add_section()
    return found


def draw(results: Sequence[Result], title: str) -> Any:
    """Medians with their quartiles, and memory, a row of panels an activity, a bar a model."""
    activities = list(dict.fromkeys(result.activity for result in results))
    names = list(dict.fromkeys(result.name for result in results))
    height = 0.9 + len(activities) * (0.9 + 0.35 * len(names))
    figure, grid = make_panels(len(activities), 2, (10, height), sharey=True)
    for (left, right), activity in zip(grid, activities, strict=True):
        shown = [result for result in results if result.activity == activity]
        colors = ["#1f4e79"] + ["#9bb7d4"] * (len(shown) - 1)
        spreads = [result.time for result in shown]
        middle = np.array([s.median for s in spreads])
        errors = [middle - [s.lower for s in spreads], [s.upper for s in spreads] - middle]
        left.barh(names, middle, xerr=errors, color=colors, error_kw=dict(capsize=3, lw=1))
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


def run(
    configs: Sequence[str],
    size: Size | None = None,
    batch: int = 1,
    repeats: int = 7,
    backbones: bool = False,
    peers: bool = False,
    training: bool = False,
    threads: int | None = None,
    device: torch.device | None = None,
    json_file: str | None = None,
    plot_file: str | None = None,
    console: Console | None = None,
) -> Table:
    """Measure models side by side; write what is asked for.

    Args:
        configs: names of configs, see `runtime.load_config`.
        size: height and width of the images (default: the first config's, `cost.default_size`).
        batch: number of images.
        repeats: number of rounds.
        backbones: measure the backbones alone.
        peers: add `PEERS`, and measure the backbones alone.
        training: measure a training step, too: a forward and a backward pass.
        threads: of PyTorch on the CPU (default: PyTorch's own choice).
        device: to measure on (default: the CPU).
        json_file: path for all figures.
        plot_file: path for a plot.
        console: shows meanwhile what is done, on a terminal.

    Raises:
        ConfigError: a model can't be built or run, or a file can't be written.
    """
    json_path = complexity.check_target("--json", json_file, (".json",))
    plot_path = complexity.check_target("--plot", plot_file, (".png", ".pdf", ".svg"))
    if threads:
        torch.set_num_threads(threads)
    device = device or torch.device("cpu")
    size = size or complexity.default_size(load_config(configs[0]))
    backbones = backbones or peers
    with (console or Console()).status("building") as status:
        models = subjects(configs, backbones, peers, size, batch, device)
        circumstances = conditions(device)
        status.update(f"measuring {len(models)} models")
        results = measure(models, training, repeats)
    what = "backbones" if backbones else "models"
    inputs = f"{batch}x3x{size[0]}x{size[1]}"
    title = f"{what}, {inputs} (height x width), medians of {repeats} rounds"
    caption = "; ".join(f"{key}: {value}" for key, value in circumstances.items())
    if json_path:
        content = {
            "conditions": circumstances,
            "models": what,
            "inputs": inputs,
            "repeats": repeats,
            "results": [asdict(result) for result in results],
        }
        complexity.write_json(json_path, content)
    if plot_path:
        save_figure(draw(results, f"{title}\n{_short(circumstances)}"), plot_path)
    return table(results, title, caption)


def _short(circumstances: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value}" for key, value in circumstances.items() if key not in ("memory", "machine")
    )
