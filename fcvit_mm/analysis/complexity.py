"""Measure what a model costs at an input size: parameters, multiply-adds, activation memory.

A model with random weights sees one image of noise. Multiply-adds are those of convolutions and
matrix products in a prediction, counted by `torch.utils.flop_counter`; rows that FCViT's row tiles
compute twice count once. MMEngine's counter traces with torch.jit and misses the operators that it
has no handle for, and it knows nothing of memory: see `tracing` for that.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from ..utils.cli import check_writable
from ..utils.files import write_json
from ..visualization.figures import save_figure
from .cost import Cost, Row, draw_sweep, output_of, sum_of, sweep_content, sweep_sizes
from .tracing import REST, Watch, kept_for_backward, parts_of, peak_in_prediction
from .workload import Size, build, default_size, example_samples, name_failure, run_prediction


class _NoArithmetic(TorchDispatchMode):
    """Give zeros instead of computing convolutions and matrix products, counted by shape alone.

    They come in PyTorch's ordinary layout, in which FCViT computes no row twice.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in flop_registry:
            return func(*args, **kwargs)
        device = next(x.device for x in tree_leaves(args) if isinstance(x, Tensor))
        args, kwargs = tree_map_only(Tensor, lambda x: x.to("meta"), (args, kwargs))
        return tree_map_only(
            Tensor,
            lambda x: torch.zeros(x.shape, dtype=x.dtype, device=device),
            func(*args, **kwargs),
        )


@contextmanager
def _one_operator_each() -> Iterator[None]:
    """Run attention as its matrix products, which the counter knows, not as one fused operator."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def count(model: nn.Module, scope: str, size: Size) -> Watch:
    """Count the multiply-adds of a prediction of a model in evaluation mode, by part: `booked`.

    scope: mmdet, mmseg or mmpretrain. `shapes` are those of the parts' outputs.
    """
    device = next(model.parameters()).device
    inputs = torch.zeros(1, 3, *size, device=device)
    samples = example_samples(scope, size, 1, device)
    counter = FlopCounterMode(display=False)
    watch = Watch(parts_of(model), lambda: counter.get_total_flops() // 2)
    with torch.no_grad(), _one_operator_each(), _NoArithmetic(), counter, watch:
        run_prediction(model, inputs, samples)
    return watch


def multiply_adds(model: nn.Module, scope: str, size: Size) -> int:
    """Count all multiply-adds of a prediction, which OpenMMLab's metafiles call FLOPs."""
    return count(model, scope, size).booked.total()


def measure(model: Any, scope: str, size: Size) -> Cost:
    """Measure what a model in evaluation mode costs on one image, on the device where it is."""
    device = next(model.parameters()).device
    inputs = torch.rand(1, 3, *size, device=device)
    counted = count(model, scope, size)
    peaks = peak_in_prediction(model, inputs, example_samples(scope, size, 1, device)).peaks
    kept = kept_for_backward(model, inputs, example_samples(scope, size, 1, device))
    owned = {
        name: {p: p.numel() for module in modules for p in module.parameters()}
        for name, modules in parts_of(model).items()
    }
    owned[REST] = {
        p: p.numel() for p in model.parameters() if not any(p in part for part in owned.values())
    }
    rows = [
        Row(
            name,
            sum(parameters.values()),
            counted.booked[name],
            kept[name],
            peaks[name],
            [output_of(shape, size) for shape in counted.shapes.get(name, [])],
        )
        for name, parameters in owned.items()
    ]
    rows = [row for row in rows if row.parameters or row.multiply_adds or row.kept_bytes]
    return Cost(size, rows, sum_of("all", rows))


def run(
    cfg: Config,
    size: Size | None = None,
    device: torch.device | None = None,
    json_file: Path | None = None,
    sweep_file: Path | None = None,
) -> Cost:
    """Measure the model of a config; a ConfigError if it can't be built or run.

    Args:
        size: of the image (default: `default_size`).
        device: where memory is measured (default: the CPU).
        json_file, sweep_file: for the values, and for a plot of cost against size.
    """
    check_writable("--json", json_file)
    check_writable("--sweep", sweep_file)
    device = device or torch.device("cpu")
    model = build(cfg).to(device)
    size = size or default_size(cfg)
    name = Path(cfg.filename).stem
    costs = []
    for one in [size, *(sweep_sizes(size) if sweep_file else [])]:
        with name_failure(name, one, "a larger --size"):
            costs.append(measure(model, cfg.default_scope, one))
    cost, *swept = costs
    content = {"config": name, "device": str(device), "torch": torch.__version__, **asdict(cost)}
    if sweep_file:
        title = f"{name}: one image, float32 on {device}, PyTorch {torch.__version__}"
        save_figure(draw_sweep(swept, title), sweep_file)
        content["sweep"] = sweep_content(swept)
    if json_file:
        write_json(json_file, content)
    return cost
