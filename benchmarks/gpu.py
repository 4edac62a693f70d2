"""Compare training on a GPU with the reference implementation.

    python benchmarks/gpu.py [MEASURE ...]

Each ratio is that of two medians of one run, in which what is compared takes turns, with cuDNN's
benchmark mode on, in mixed precision. The reference implementation is tests/helpers/plain.py, with
the same weights. Prints tables in Markdown. Measures:

    ceilings   how much the GPU copies and multiplies per second
    layers     each layer at each stage: kernels of fcvit_mm compared with PyTorch's operators, in
               the same layout and contiguous, as the reference implementation is
    backbone   a training step of the backbone, forward and backward, and its peak memory
    mask_rcnn  a whole training iteration of Mask R-CNN, optimizer included
"""

import argparse
import gc
import runpy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from fcvit_mm import FCViT
from fcvit_mm.analysis.benchmark import medians
from fcvit_mm.ops.triton import dispatch
from fcvit_mm.utils.cli import whole_number
from fcvit_mm.utils.config import load_config

ROOT = Path(__file__).parents[1]
PlainFCViT = runpy.run_path(str(ROOT / "tests/helpers/plain.py"))["PlainFCViT"]
ARCH = "s12"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
Row = tuple[str, ...]


@dataclass
class Settings:
    """What all measures share."""

    batch: int
    size: tuple[int, int]
    dtype: torch.dtype
    repeats: int


def finished(run: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that waits until the run has ended on the GPU."""

    def call() -> None:
        run()
        torch.cuda.synchronize()

    return call


def compare(what: str, runs: dict[str, Callable[[], Any]], repeats: int) -> Iterator[Row]:
    """Compare the first run with each of the others."""
    for run in runs.values():  # compiles and chooses kernels
        for _ in range(3):
            run()
    found = medians({name: finished(run) for name, run in runs.items()}, repeats)
    (_, ours), *others = found.items()
    for name, theirs in others:
        yield what, name, f"{ours / theirs:.2f}", f"{ours:.2f} ms, {theirs:.2f} ms"


def peak(run: Callable[[], Any]) -> float:
    """Return the peak memory of tensors in a run, in MB, without what was allocated before."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def kernels(run: Callable[[], Any]) -> tuple[float, float]:
    """Return the milliseconds in which kernels run, and how many there are.

    In the rest of a run's time the GPU waits for launches.
    """
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    events = [event for event in found.key_averages() if event.device_type.name == "CUDA"]
    time = sum(event.self_device_time_total for event in events) / 1e3
    return time, sum(event.count for event in events)


def models(triton: bool = True) -> tuple[FCViT, nn.Module]:
    """Build FCViT, with or without Triton kernels, and its reference implementation."""
    torch.manual_seed(0)
    fast, plain = FCViT(ARCH, layer_scale_init=0.1, triton=triton), PlainFCViT(ARCH)
    plain.load_state_dict(fast.state_dict())
    return fast.cuda(), plain.cuda()


def ceilings(settings: Settings) -> Iterator[Row]:
    data = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(data)
    matrix = torch.randn(8192, 8192, dtype=settings.dtype, device="cuda")
    runs = {"copy": lambda: other.copy_(data), "product": lambda: matrix @ matrix}
    for run in runs.values():
        run()
    found = medians({name: finished(run) for name, run in runs.items()}, settings.repeats)
    yield "copy", "", "", f"{2 * data.numel() / found['copy'] / 1e9:.2f} TB/s, read and written"
    yield "matrix product", "", "", f"{2 * 8192**3 / found['product'] / 1e9:.0f} TFLOP/s"


def layers(settings: Settings) -> Iterator[Row]:
    dispatch.set_timer(lambda form, run: form == "plain")  # the kernels, faster or not
    yield from _layers(settings)
    dispatch.set_timer()


def _layers(settings: Settings) -> Iterator[Row]:
    fast, _ = models()
    dtype = settings.dtype
    for i, (dim, stride) in enumerate(zip(fast.out_channels, fast.strides, strict=True)):
        shape = (settings.batch, dim, *(side // stride for side in settings.size))
        stage: Any = fast.network[2 * i]
        block = stage[0]
        parts: dict[str, nn.Module] = {
            "depthwise 11x11": block.token_mixer.dw1,
            "global context": block.token_mixer.gc1,
            "norm": block.norm1,
            "channel mixer": block.channel_mixer,
        }
        for name, part in parts.items():
            x = torch.randn(shape, device="cuda", dtype=torch.float32 if name == "norm" else dtype)
            flat = x.clone().requires_grad_()
            x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
            grad = torch.randn_like(x, dtype=dtype)
            wanted = list(part.parameters())
            pytorch = partial(type(part).forward, part)

            def run(
                forward: Callable[[Tensor], Tensor] = part,
                x: Tensor = x,
                grad: Tensor = grad,
                wanted: Any = wanted,
            ) -> None:
                with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                    out = forward(x)
                torch.autograd.grad(out, [x, *wanted], grad.to(out.dtype))

            runs: dict[str, Callable[[], Any]] = {
                "kernel": run,
                "PyTorch": partial(run, pytorch),
                "PyTorch, contiguous": partial(run, pytorch, flat),
            }
            yield from compare(f"{name}, {'x'.join(map(str, shape))}", runs, settings.repeats)


def backbone(settings: Settings) -> Iterator[Row]:
    x = torch.randn(settings.batch, 3, *settings.size, device="cuda")
    dtype = settings.dtype
    fast, plain = models()
    without, _ = models(triton=False)

    def step(model: nn.Module, x: Tensor = x) -> None:
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            outs = model(x)
        sum(out.float().mean() for out in outs).backward()
        model.zero_grad()

    runs = {
        "FCViT": lambda: step(fast),
        "reference": lambda: step(plain),
        "FCViT without kernels": lambda: step(without),
    }
    yield from compare("backbone, forward and backward", runs, settings.repeats)
    for what, unit, measure in (
        ("kernel time", "ms", lambda run: kernels(run)[0]),
        ("kernel launches", "", lambda run: kernels(run)[1]),
        ("peak memory", "MB", peak),
    ):
        (_, ours), *others = ((name, measure(run)) for name, run in runs.items())
        for name, theirs in others:
            values = f"{ours:.0f} {unit}, {theirs:.0f} {unit}"
            yield f"backbone, {what}", name, f"{ours / theirs:.2f}", values


def mask_rcnn(settings: Settings) -> Iterator[Row]:
    from mmdet.testing import demo_mm_inputs

    init_default_scope("mmdet")
    batch, dtype = settings.batch, settings.dtype
    cfg = load_config(str(ROOT / "configs/detection/mask_rcnn_fcvit_s12_coco.py"))
    cfg.model.backbone.init_cfg = None
    data = demo_mm_inputs(
        batch, [(3, *settings.size)] * batch, num_items=[8] * batch, with_mask=True, num_classes=80
    )
    runs: dict[str, Callable[[], Any]] = {}
    for name, backbone in zip(("FCViT", "reference"), models(), strict=True):
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        model.backbone = backbone
        model.cuda().train()
        optimizer = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-5))
        if dtype != torch.float32:
            name_of_dtype = str(dtype).partition(".")[2]
            optimizer = AmpOptimWrapper(dtype=name_of_dtype, optimizer=optimizer.optimizer)
        runs[name] = partial(model.train_step, data, optimizer)
    yield from compare("Mask R-CNN, a training iteration", runs, settings.repeats)
    ours, theirs = (peak(run) for run in runs.values())
    values = f"{ours:.0f} MB, {theirs:.0f} MB"
    yield "Mask R-CNN, peak memory", "reference", f"{ours / theirs:.2f}", values


MEASURES = {f.__name__: f for f in (ceilings, layers, backbone, mask_rcnn)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measures", nargs="*", metavar="MEASURE", help=", ".join(MEASURES))
    parser.add_argument("--batch", type=whole_number(1), default=2, help="images, %(default)s")
    parser.add_argument(
        "--size", type=whole_number(32), nargs=2, default=(800, 1344), metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument("--repeats", type=whole_number(1), default=9)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    args = parser.parse_intermixed_args()
    for name in args.measures:
        if name not in MEASURES:
            parser.error(f"there is no measure {name}; there are {', '.join(MEASURES)}")
    if not torch.cuda.is_available():
        parser.error("no GPU was found; benchmarks/speed.py measures on a CPU")
    torch.backends.cudnn.benchmark = True
    shape = "x".join(map(str, (args.batch, 3, *args.size)))
    print(
        f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, {args.dtype}, "
        f"FCViT-{ARCH}, {shape}, medians of {args.repeats}\n"
    )
    print("| measurement | compared with | ratio | medians |\n|---|---|---|---|", flush=True)
    settings = Settings(args.batch, tuple(args.size), DTYPES[args.dtype], args.repeats)
    for name in args.measures or MEASURES:
        for row in MEASURES[name](settings):
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
