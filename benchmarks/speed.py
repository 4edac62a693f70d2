"""Compare FCViT's speed with the reference implementation and its peers, on a CPU.

    python benchmarks/speed.py [MEASURE ...]

Each ratio is that of two medians of one run, in which what is compared takes turns. The reference
implementation is tests/helpers/plain.py, with the same weights; the peers are MMPretrain's. Prints
a table in Markdown, times in milliseconds.
"""

import argparse
import copy
import os
import runpy
import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

import fcvit_mm
from fcvit_mm import FCViT
from fcvit_mm.analysis.benchmark import PEERS, Call, interleave, medians, processor
from fcvit_mm.apis.export import RUNTIMES, trace
from fcvit_mm.apis.export.graphs import Graph
from fcvit_mm.apis.export.layers import for_runtimes
from fcvit_mm.ops.depthwise_conv import weight_gradient
from fcvit_mm.utils.cli import whole_number
from fcvit_mm.utils.config import load_config

ROOT = Path(__file__).parents[1]
PLAIN = runpy.run_path(str(ROOT / "tests/helpers/plain.py"))
PlainFCViT, saved_bytes = PLAIN["PlainFCViT"], PLAIN["saved_bytes"]
ARCH = "s12"
Row = tuple[str, str, str, str]  # measurement, compared with, ratio, medians


def compare(what: str, calls: dict[str, Call], repeats: int) -> Iterator[Row]:
    """Compare the first call with each of the others."""
    (first, ours), *others = medians(calls, repeats).items()
    for name, theirs in others:
        yield what, name, f"{ours / theirs:.2f}", f"{first} {ours:.0f}, {name} {theirs:.0f}"


def models() -> tuple[Any, Any]:
    """Build FCViT and its reference implementation, with the same weights."""
    torch.manual_seed(0)
    fast, plain = FCViT(ARCH, layer_scale_init=0.1), PlainFCViT(ARCH)
    plain.load_state_dict(fast.state_dict())
    return fast, plain


def inference(repeats: int) -> Iterator[Row]:
    fast, plain = models()
    fast.eval(), plain.eval()
    since = time.perf_counter()
    fused = fcvit_mm.fuse(copy.deepcopy(fast))
    preparation = time.perf_counter() - since
    with torch.no_grad():
        for batch in (1, 2):
            x = torch.randn(batch, 3, 512, 512)
            calls: dict[str, Call] = {"fused": partial(fused, x), "reference": partial(plain, x)}
            ready = f" (prepared in {preparation:.2f} s)" if batch == 1 else ""
            yield from compare(f"inference, {batch}x3x512x512{ready}", calls, repeats)
        x = torch.randn(1, 3, 512, 512)
        calls = {"not fused": partial(fast, x), "reference": partial(plain, x)}
        yield from compare("inference, 1x3x512x512, not fused", calls, repeats)


def compiled(repeats: int) -> Iterator[Row]:
    fast, plain = models()
    x = torch.randn(1, 3, 512, 512)
    ours = torch.compile(fcvit_mm.fuse(fast.eval()), options={"freezing": True})
    plain.eval()
    with torch.no_grad():
        calls: dict[str, Call] = {"compiled": partial(ours, x), "reference": partial(plain, x)}
        yield from compare("inference, torch.compile, 1x3x512x512", calls, repeats)


def training(repeats: int) -> Iterator[Row]:
    x = torch.randn(2, 3, 512, 512)
    pair = dict(zip(("fast", "reference"), models(), strict=True))

    def step(model: nn.Module) -> None:
        sum(out.mean() for out in model(x)).backward()
        model.zero_grad()

    calls: dict[str, Call] = {name: partial(step, model) for name, model in pair.items()}
    yield from compare("forward and backward, 2x3x512x512", calls, repeats)
    fast, plain = (saved_bytes(model, x) / 1e6 for model in pair.values())
    yield (
        "memory saved for backward, 2x3x512x512",
        "reference",
        f"{fast / plain:.2f}",
        f"{fast:.0f} MB, {plain:.0f} MB",
    )


def gradients(repeats: int) -> Iterator[Row]:
    """Compare the weight gradients of the 11x11 depthwise convolutions, stage by stage."""
    fast, _ = models()
    for dim, stride in zip(fast.out_channels, fast.strides, strict=True):
        shape = (2, dim, 512 // stride, 512 // stride)
        x, grad = (
            torch.randn(shape).contiguous(memory_format=torch.channels_last) for _ in range(2)
        )
        weight = torch.randn(dim, 1, 11, 11, requires_grad=True)
        out = torch.conv2d(x, weight, padding=5, groups=dim)
        calls: dict[str, Call] = {
            "Fourier transform": partial(weight_gradient, x, grad, 11),
            "oneDNN": partial(torch.autograd.grad, out, weight, grad, retain_graph=True),
        }
        yield from compare(f"weight gradient 11x11, {'x'.join(map(str, shape))}", calls, repeats)


def pixels(repeats: int) -> Iterator[Row]:
    fast, _ = models()
    fast.eval()
    sizes = {"1333x800": (800, 1333), "224x224": (224, 224)}
    images = {name: torch.randn(1, 3, *size) for name, size in sizes.items()}
    with torch.no_grad():
        calls: dict[str, Call] = {name: partial(fast, x) for name, x in images.items()}
        large, small = (
            1e6 * found / (height * width)
            for found, (height, width) in zip(
                medians(calls, repeats).values(), sizes.values(), strict=True
            )
        )
    values = f"{large:.0f} ns per pixel, {small:.0f} ns"
    yield "time per pixel, 1333x800", "224x224", f"{large / small:.2f}", values


def peers(repeats: int) -> Iterator[Row]:
    x = torch.randn(1, 3, 512, 512)
    fast, _ = models()
    built = {name: MODELS.build(cfg) for name, cfg in PEERS.items()}
    for model in (fast, *built.values()):
        model.eval()  # some of MMPretrain's models do not return themselves
    with torch.no_grad():
        calls: dict[str, Call] = {"FCViT-s12": partial(fast, x)}
        calls |= {name: partial(model, x) for name, model in built.items()}
        yield from compare("inference, 1x3x512x512", calls, repeats)


def mask_rcnn(repeats: int) -> Iterator[Row]:
    from mmdet.testing import demo_mm_inputs

    init_default_scope("mmdet")
    cfg = load_config(str(ROOT / "configs/detection/mask_rcnn_fcvit_s12_coco.py"))
    cfg.model.backbone.init_cfg = None
    data = demo_mm_inputs(2, [(3, 400, 640)] * 2, with_mask=True, num_classes=80)
    calls: dict[str, Call] = {}
    for name, backbone in zip(("fast", "reference"), models(), strict=True):
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        model.backbone = backbone
        model.train()
        optimizer = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-5))
        calls[name] = partial(model.train_step, data, optimizer)
    yield from compare("Mask R-CNN, a training iteration, 2 images of 640x400", calls, repeats)


class Backbone(Graph):
    """A backbone as it is exported: images -> its maps."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone(images))


def exported(repeats: int) -> Iterator[Row]:
    """Compare ONNX Runtime and OpenVINO, in each precision, with PyTorch.

    With one thread, processor time is compared, which other programs change less.
    """
    x = torch.randn(1, 3, 512, 512)
    fast, _ = models()
    networks = {f"FCViT-{ARCH}": fast, "ResNet-50": MODELS.build(PEERS["ResNet-50"])}
    calls: dict[str, Call] = {}
    for name, network in networks.items():
        network.eval()
        calls[f"{name}, PyTorch"] = partial(network, x)
        with torch.no_grad():
            program = trace(Backbone(for_runtimes(copy.deepcopy(network))), ".onnx")
        for runtime in (RUNTIMES[".onnx"], RUNTIMES[".xml"]):
            for precision in runtime.precisions:
                model = runtime.convert(program)
                if precision == "int8":
                    model = runtime.quantize(model, [x.numpy()])
                run = runtime.run(model, precision, torch.get_num_threads())
                calls[f"{name}, {runtime.name} {precision}"] = partial(run, x)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    with torch.no_grad():
        times = interleave(calls, repeats, clock)
    found = {name: statistics.median(each) for name, each in times.items()}
    for name, time_ms in found.items():
        own = found[f"{name.partition(',')[0]}, PyTorch"]
        yield f"{name}, 1x3x512x512", "PyTorch", f"{time_ms / own:.2f}", f"{time_ms:.0f}, {own:.0f}"


MEASURES = {
    "inference": inference,
    "compiled": compiled,
    "training": training,
    "gradients": gradients,
    "pixels": pixels,
    "peers": peers,
    "mask_rcnn": mask_rcnn,
    "exported": exported,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measures", nargs="*", metavar="MEASURE", help=", ".join(MEASURES))
    parser.add_argument("--repeats", type=whole_number(1), default=7)
    parser.add_argument("--threads", type=whole_number(1), default=2)
    args = parser.parse_intermixed_args()
    for name in args.measures:
        if name not in MEASURES:
            parser.error(f"there is no measure {name}; there are {', '.join(MEASURES)}")
    torch.set_num_threads(args.threads)
    print(
        f"{processor()} ({torch.backends.cpu.get_cpu_capability()}), {args.threads} threads of "
        f"{os.cpu_count()} processors, PyTorch {torch.__version__}, float32, FCViT-{ARCH}, "
        f"medians of {args.repeats}\n"
    )
    print("| measurement | compared with | ratio | medians, ms |\n|---|---|---|---|", flush=True)
    for name in args.measures or MEASURES:
        for row in MEASURES[name](args.repeats):
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
