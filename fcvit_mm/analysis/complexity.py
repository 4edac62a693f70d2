"""What a model costs at an input size: parameters, multiply-adds and activation memory, by part.

A model with random weights sees one image of noise. Multiply-adds are those of convolutions and
matrix products in a prediction; rows that FCViT's strips compute twice count once. Memory is what
the model needs on the device at hand, strips included: `Memory` says of what.
"""

import errno
import gc
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.structures import InstanceData, PixelData
from rich import box
from rich.table import Table
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from ..engine.build import build_model, check_model, task_of
from ..models.fcvit import FCViT
from ..utils.errors import ConfigError, first_line
from ..utils.files import atomic_write, make_folder
from ..visualization.figures import make_panels, save_figure

Size = tuple[int, int]  # height, width
Parts = dict[str, list[nn.Module]]

# Height and width of an image, by the end of a config's name ...
SIZES: dict[str, Size] = {
    "ade20k": (512, 512),
    "cityscapes": (512, 1024),
    "coco": (800, 1280),
    "coins": (128, 128),
    "in1k": (224, 224),
    "shapes": (128, 128),
}
# ... and for other names by the toolbox.
SCOPE_SIZES: dict[str, Size] = {
    "mmdet": SIZES["coco"],
    "mmseg": SIZES["ade20k"],
    "mmpretrain": SIZES["in1k"],
}
# What belongs to no part: resizing, losses.
REST = "rest"
# Of the size of a sweep's largest image, along each side.
SWEEP = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
# The coarsest stride: sizes of a sweep are its multiples, so that no stage rounds.
COARSEST = 32


def default_size(cfg: Config) -> Size:
    """Height and width of the images that a config is for.

    Raises:
        ConfigError: its default_scope is none of OpenMMLab's.
    """
    task_of(cfg)  # or there is no such scope
    return SIZES.get(Path(cfg.filename).stem.split("_")[-1]) or SCOPE_SIZES[cfg.default_scope]


# ------------------------------------------------------------------------------ running a model


def build(cfg: Config) -> Any:
    """The model of a config, in evaluation mode, on the CPU, each time with the same weights.

    A two-stage detector keeps as many proposals and detections as are wanted at most, none is
    suppressed: what it computes depends on the input size alone.

    Raises:
        ConfigError: it can't be built.
    """
    check_model(cfg)
    cfg = cfg.copy()
    torch.manual_seed(0)
    test_cfg: Any = cfg.model.get("test_cfg") or {}
    train_cfg: Any = cfg.model.get("train_cfg") or {}
    if "rpn" in test_cfg:
        test_cfg.rpn.nms.iou_threshold = test_cfg.rcnn.nms.iou_threshold = 1.0
        test_cfg.rcnn.score_thr = 0.0
    if "rpn_proposal" in train_cfg:
        train_cfg.rpn_proposal.nms.iou_threshold = 1.0
    return build_model(cfg).eval()


def example_samples(scope: str, size: Size, batch: int, device: torch.device) -> list[Any]:
    """Data samples of OpenMMLab with a truth to train on, of class 0.

    For detection four objects, boxes and masks, in the quarters of the image; for segmentation
    the class everywhere.
    """
    return [_example_sample(scope, size).to(device) for _ in range(batch)]


def _example_sample(scope: str, size: Size) -> Any:
    height, width = size
    info: dict[str, Any] = dict.fromkeys(
        ("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), size
    )
    info |= {"scale_factor": (1.0, 1.0), "padding_size": [0, 0, 0, 0], "img_id": 0}
    if scope == "mmdet":
        from mmdet.structures import DetDataSample
        from mmdet.structures.mask import BitmapMasks

        masks = np.zeros((4, height, width), np.uint8)
        boxes = []
        for i, mask in enumerate(masks):
            top, left = i // 2 * height // 2, i % 2 * width // 2
            bottom, right = top + (height + 1) // 2, left + (width + 1) // 2
            mask[top:bottom, left:right] = 1
            boxes.append((left, top, right, bottom))
        sample = DetDataSample(metainfo=info)
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor(boxes, dtype=torch.float32),
            labels=torch.zeros(4, dtype=torch.long),
            masks=BitmapMasks(masks, height, width),
        )
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
        )
    elif scope == "mmseg":
        from mmseg.structures import SegDataSample

        sample = SegDataSample(metainfo=info)
        sample.gt_sem_seg = PixelData(data=torch.zeros(1, height, width, dtype=torch.long))
    else:
        from mmpretrain.structures import DataSample

        sample = DataSample(metainfo=info).set_gt_label(0)
    return sample


def run_prediction(model: nn.Module, inputs: Tensor, samples: list[Any]) -> Any:
    """What a whole model of OpenMMLab predicts; the outputs of any other module."""
    if isinstance(model, BaseModel):
        return model(inputs, samples, mode="predict")
    return model(inputs)


def run_loss(model: nn.Module, inputs: Tensor, samples: list[Any]) -> Tensor:
    """A loss to call backward() of; for a backbone the sum of its outputs' means."""
    if isinstance(model, BaseModel):
        return model.parse_losses(model(inputs, samples, mode="loss"))[0]
    return torch.stack([out.mean() for out in tree_leaves(model(inputs))]).sum()


@contextmanager
def saying_what_fails(name: str, size: Size, remedy: str) -> Iterator[None]:
    """Turn what a model raises into a ConfigError that names a way out."""
    try:
        yield
    except Exception as error:  # a config names arbitrary classes, which fail in their own ways
        raise ConfigError(
            f"{name} does not run on images {size[0]} high and {size[1]} wide: "
            f"{first_line(error)}; try {remedy}"
        ) from error


# --------------------------------------------------------------------------------------- parts


def parts_of(model: nn.Module) -> Parts:
    """The modules of each part, in the order of the model: stem, stages, neck, heads.

    FCViT's stages begin with the downsampling before them and end with their output norms. Other
    backbones, and the RoI heads of detectors, fall into their children.
    """
    parts: Parts = {}
    if isinstance(model, FCViT):
        parts["stem"] = [model.patch_embed]
        for i in range(0, len(model.network), 2):
            norm = getattr(model, f"norm{i}", None)
            parts[f"stage {i // 2 + 1}"] = [
                *model.network[max(i - 1, 0) : i + 1],
                *([norm] if norm is not None else []),
            ]
        return parts
    for name, child in model.named_children():
        inner = parts_of(child) if name in ("backbone", "roi_head") else {}
        parts |= {f"{name}: {key}": modules for key, modules in inner.items()} or {name: [child]}
    return parts


class Watch:
    """Follows which part of a model is at work.

    Args:
        parts: see `parts_of`.
        total: what it gives is booked to the part in whose time it grew.

    Attributes:
        part: the part whose module is being called, the innermost one.
        booked: growth of `total` by part.
        shapes: of the tensors that a part gave: its module that was last called from outside of it.
    """

    def __init__(self, parts: Parts, total: Callable[[], int] = lambda: 0) -> None:
        self.parts, self.total = parts, total
        self.path = [REST]
        self.booked: Counter[str] = Counter()
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    @property
    def part(self) -> str:
        return self.path[-1]

    def book(self) -> None:
        """Book what has grown since the last time."""
        self.booked[self.part] += self.total() - self.booked.total()

    def __enter__(self) -> "Watch":
        self.undo = ExitStack()
        owners: dict[nn.Module, str] = {}
        for name, modules in self.parts.items():
            for module in (inner for outer in modules for inner in outer.modules()):
                owners.setdefault(module, name)
        for module, name in owners.items():
            # `forward`, as the segmentors of MMSegmentation call it directly, past any hook
            module.forward = self.followed(name, module.forward)
            self.undo.callback(delattr, module, "forward")
        return self

    def __exit__(self, *_: object) -> None:
        self.book()
        self.undo.close()

    def followed(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def follow(*args: Any, **kwargs: Any) -> Any:
            self.book()
            self.path.append(name)
            try:
                output = forward(*args, **kwargs)
            finally:
                self.book()
                self.path.pop()
            if self.part != name:
                # the tensors themselves would stay in memory
                self.shapes[name] = [
                    tuple(x.shape) for x in tree_leaves(output) if isinstance(x, Tensor)
                ]
            return output

        return follow


# ------------------------------------------------------------------------------------ counting


class _NoArithmetic(TorchDispatchMode):
    """Zeros instead of what convolutions and matrix products compute, which is their shape's.

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
    """Attention as its matrix products, which the counter knows, not as one fused operator."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def count(model: nn.Module, scope: str, size: Size) -> Watch:
    """Count the multiply-adds of a prediction, by part: `booked`, with `shapes`.

    Args:
        model: in evaluation mode.
        scope: mmdet, mmseg or mmpretrain.
        size: height and width of the image.
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
    """All multiply-adds of a prediction, which OpenMMLab's metafiles call FLOPs; see `count`."""
    return count(model, scope, size).booked.total()


# -------------------------------------------------------------------------------------- memory


class Memory(TorchDispatchMode):
    """The bytes of what operators make, as long as it is there.

    Workspace inside an operator is not seen. Views share their tensor's bytes.

    Args:
        watch: says which part makes a tensor.
        apart: tensors that are not counted, such as parameters and inputs.

    Attributes:
        alive: bytes of each tensor and the part that made it, by storage.
        peaks: most bytes that were there at once, all parts', by the part then at work.
    """

    def __init__(self, watch: Watch, apart: Iterable[Tensor]) -> None:
        super().__init__()
        self.watch = watch
        self.apart = {id(s): s for s in (tensor.untyped_storage() for tensor in apart)}
        self.alive: dict[int, tuple[str, int]] = {}
        self.now = 0
        self.peaks: Counter[str] = Counter()

    @property
    def peak(self) -> int:
        return max(self.peaks.values(), default=0)

    def kept(self) -> Counter[str]:
        """Bytes that are there now, by the part that made them."""
        gc.collect()
        found: Counter[str] = Counter()
        for part, size in self.alive.values():
            found[part] += size
        return found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self.see(tensor.untyped_storage())
        return output

    def see(self, storage: Any) -> None:
        key, part = id(storage), self.watch.part
        if key not in self.apart and key not in self.alive:
            self.alive[key] = part, storage.nbytes()
            self.now += storage.nbytes()
            finalize(storage, self.forget, key)
        self.peaks[part] = max(self.peaks[part], self.now)

    def forget(self, key: int) -> None:
        self.now -= self.alive.pop(key)[1]


def memory_of(model: nn.Module, inputs: Tensor) -> Memory:
    """To measure a model's activations with: all but its parameters, buffers and the inputs."""
    return Memory(Watch(parts_of(model)), (*model.parameters(), *model.buffers(), inputs))


def keep_statistics(model: nn.Module) -> None:
    """Put BatchNorm into evaluation mode, which in training does not take a single position."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def peak_in_prediction(model: nn.Module, inputs: Tensor, samples: list[Any]) -> Memory:
    """Run a prediction; `peaks` of the result."""
    with torch.no_grad(), (memory := memory_of(model, inputs)), memory.watch:
        run_prediction(model, inputs, samples)
    return memory


def kept_for_backward(model: nn.Module, inputs: Tensor, samples: list[Any]) -> Counter[str]:
    """Bytes that are there between the forward and the backward pass of a training step, by part.

    The model is in evaluation mode before and after.
    """
    model.train()
    keep_statistics(model)
    try:
        with (memory := memory_of(model, inputs)), memory.watch:
            loss = run_loss(model, inputs, samples)
        kept = memory.kept()
        assert loss.requires_grad
    finally:
        model.eval()
    return kept


# --------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Output:
    """A tensor that a part gives.

    shape: whole, the batch of one first. stride: input pixels a position, None unless it is a map.
    """

    shape: tuple[int, ...]
    stride: int | None


@dataclass(frozen=True)
class Row:
    """A part's cost, for one image.

    parameters: numbers. multiply_adds: of a prediction. kept_bytes: from the forward to the
    backward pass of a training step. peak_bytes: most that was there at once in a prediction, all
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
    """What a model costs at a size, (height, width): the parts' rows and that of all."""

    size: Size
    rows: list[Row]
    total: Row


def stride_of(length: Size, size: Size) -> int | None:
    """Input pixels a position of a map (height, width): the roundest number that fits, if any."""
    fits = [
        stride
        for stride in range(1, max(size) + 1)
        if tuple(math.ceil(pixels / stride) for pixels in size) == tuple(length)
    ]
    # by the largest power of two that divides it
    return max(fits, key=lambda stride: stride & -stride, default=None)


def _output(shape: tuple[int, ...], size: Size) -> Output:
    is_map = len(shape) == 4 and shape[0] == 1
    return Output(shape, stride_of((shape[2], shape[3]), size) if is_map else None)


def sum_of(name: str, rows: Sequence[Row]) -> Row:
    """The rows as one: sums, but the largest of the peaks, and the last one's outputs."""
    return Row(
        name,
        sum(row.parameters for row in rows),
        sum(row.multiply_adds for row in rows),
        sum(row.kept_bytes for row in rows),
        max((row.peak_bytes for row in rows), default=0),
        rows[-1].outputs if rows else [],
    )


def measure(model: Any, scope: str, size: Size) -> Cost:
    """What a model costs on one image, on the device where it is.

    Args:
        model: of OpenMMLab, in evaluation mode.
        scope: mmdet, mmseg or mmpretrain.
        size: height and width of the image.
    """
    device = next(model.parameters()).device
    inputs = torch.rand(1, 3, *size, device=device)
    counted = count(model, scope, size)
    peaks = peak_in_prediction(model, inputs, example_samples(scope, size, 1, device)).peaks
    kept = kept_for_backward(model, inputs, example_samples(scope, size, 1, device))
    parts = parts_of(model)
    parameters = {
        name: {id(p): p.numel() for module in modules for p in module.parameters()}
        for name, modules in parts.items()
    }
    everything = {id(p): p.numel() for p in model.parameters()}
    parameters[REST] = {
        key: n for key, n in everything.items() if not any(key in it for it in parameters.values())
    }
    rows = [
        Row(
            name,
            sum(parameters[name].values()),
            counted.booked[name],
            kept[name],
            peaks[name],
            [_output(shape, size) for shape in counted.shapes.get(name, [])],
        )
        for name in (*parts, REST)
    ]
    rows = [row for row in rows if row.parameters or row.multiply_adds or row.kept_bytes]
    return Cost(size, rows, sum_of("all", rows))


def as_text(outputs: Iterable[Output]) -> list[tuple[str, str]]:
    """Lines of shapes and strides: channels with their maps, HEIGHTxWIDTH, or whole shapes."""
    lines: dict[str, dict[str, str]] = {}
    for output in outputs:
        shape = output.shape[1:] if output.shape[:1] == (1,) else output.shape
        if output.stride is None:
            lines["x".join(map(str, shape))] = {}
        else:
            channels, height, width = shape
            lines.setdefault(f"{channels}:", {})[f"{height}x{width}"] = str(output.stride)
    return [(" ".join([head, *maps]), " ".join(maps.values())) for head, maps in lines.items()]


def table(cost: Cost, title: str) -> Table:
    """A row a part; the caption says which memory is which."""
    found = Table(
        title=title,
        caption="multiply-adds: of convolutions and matrix products in a prediction; kept: from "
        "the forward to the backward pass of a training step; peak: most at once in a prediction "
        "while the part is at work. Both memories without parameters and gradients",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
    )
    found.add_column("part", no_wrap=True)
    for column in ("parameters, M", "multiply-adds, G", "share", "kept, MB", "peak, MB"):
        found.add_column(column, justify="right", no_wrap=True)
    found.add_column("channels: output maps", no_wrap=True)
    found.add_column("strides", no_wrap=True)
    for row in (*cost.rows, cost.total):
        texts, strides = zip(*as_text(row.outputs), strict=True) if row.outputs else ((), ())
        if row is cost.total:
            found.add_section()
        found.add_row(
            row.part,
            f"{row.parameters / 1e6:.3f}",
            f"{row.multiply_adds / 1e9:.3f}",
            f"{row.multiply_adds / cost.total.multiply_adds:.1%}",
            f"{row.kept_bytes / 1e6:.1f}",
            f"{row.peak_bytes / 1e6:.1f}",
            "\n".join(texts),
            "\n".join(strides),
        )
    return found


def write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


# --------------------------------------------------------------------------------------- sweep


def sweep_sizes(size: Size) -> list[Size]:
    """Sizes of about the same shape up to `size`, multiples of the coarsest stride.

    Raises:
        ConfigError: there are fewer than three.
    """
    sizes = {
        tuple(max(1, round(share * pixels / COARSEST)) * COARSEST for pixels in size)
        for share in SWEEP
    }
    if len(sizes) < 3:
        raise ConfigError(
            f"--sweep: there are too few multiples of {COARSEST} up to {size[0]} {size[1]}; give "
            "a larger --size"
        )
    return sorted((height, width) for height, width in sizes)


@dataclass(frozen=True)
class Line:
    """start + slope * pixels, fitted by least squares; residual: the largest deviation, as a share
    of the fitted value."""

    start: float
    slope: float
    residual: float

    def at(self, pixels: Any) -> np.ndarray:
        """The fitted values at some numbers of pixels."""
        return self.start + self.slope * np.asarray(pixels)


def fit(pixels: Sequence[float], values: Sequence[float]) -> Line:
    slope, start = np.polyfit(pixels, values, 1)
    line = Line(float(start), float(slope), 0.0)
    fitted = line.at(pixels)
    return Line(line.start, line.slope, float(np.abs(np.asarray(values) / fitted - 1).max()))


# What a sweep plots: a name, the rows that it adds up, the figure.
Series = tuple[str, Callable[[Row], bool], str]
SERIES: dict[str, list[Series]] = {
    "multiply-adds, G": [
        ("whole model", lambda row: True, "multiply_adds"),
        ("backbone", lambda row: row.part.startswith("backbone"), "multiply_adds"),
    ],
    "activation memory, MB": [
        ("kept for the backward pass", lambda row: True, "kept_bytes"),
        ("kept, backbone", lambda row: row.part.startswith("backbone"), "kept_bytes"),
        ("peak in prediction", lambda row: True, "peak_bytes"),
    ],
}


def lines_of(costs: Sequence[Cost]) -> dict[str, dict[str, tuple[list[float], Line]]]:
    """Values at each size, in the unit of the axis, and the line through them, for `SERIES`."""
    pixels = [math.prod(cost.size) for cost in costs]
    found: dict[str, dict[str, tuple[list[float], Line]]] = {}
    for axis, series in SERIES.items():
        unit = 1e9 if axis.endswith("G") else 1e6
        found[axis] = {}
        for name, wanted, figure in series:
            rows = [sum_of(name, [row for row in cost.rows if wanted(row)]) for cost in costs]
            values = [getattr(row, figure) / unit for row in rows]
            found[axis][name] = values, fit(pixels, values)
    return found


def draw_sweep(costs: Sequence[Cost], title: str) -> Any:
    """Cost against the number of pixels, with the fitted lines and their residuals."""
    figure, grid = make_panels(1, 2, (10, 4.2))
    pixels = np.array([math.prod(cost.size) for cost in costs])
    for axes, (axis, series) in zip(grid[0], lines_of(costs).items(), strict=True):
        for (name, (values, line)), color in zip(
            series.items(), ("#1f4e79", "#c0392b", "#27ae60"), strict=False
        ):
            axes.plot(pixels / 1e3, values, "o", color=color, markersize=5)
            axes.plot(
                pixels / 1e3,
                line.at(pixels),
                color=color,
                linewidth=1,
                label=f"{name}, off the line by {line.residual:.1%} at most",
            )
        axes.set(xlabel="thousand pixels", ylabel=axis, xlim=(0, None), ylim=(0, None))
        axes.legend(frameon=False, fontsize=8, loc="upper left")
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11)
    return figure


def check_target(option: str, filename: str | None, endings: Sequence[str]) -> Path | None:
    """The path of a file to write, made sure of before anything takes long.

    Raises:
        ConfigError: another ending, or nothing can be written there.
    """
    if filename is None:
        return None
    path = Path(filename)
    if path.suffix not in endings:
        raise ConfigError(f"{option} {filename} must end in {' or '.join(endings)}")
    try:
        make_folder(path.parent)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as error:
        raise ConfigError(f"{option} {filename} can't be written: {error.strerror}") from error
    return path


# ---------------------------------------------------------------------------------------- whole


def run(
    cfg: Config,
    size: Size | None = None,
    device: torch.device | None = None,
    json_file: str | None = None,
    sweep_file: str | None = None,
) -> Table:
    """Measure the model of a config; write what is asked for.

    Args:
        cfg: of a detector, a segmentor or a classifier.
        size: height and width of the image (default: `default_size`).
        device: where memory is measured (default: the CPU).
        json_file: path for the figures.
        sweep_file: path for a plot of cost against size.

    Raises:
        ConfigError: the model can't be built or run, or a file can't be written.
    """
    json_path = check_target("--json", json_file, (".json",))
    sweep_path = check_target("--sweep", sweep_file, (".png", ".pdf", ".svg"))
    device = device or torch.device("cpu")
    model = build(cfg).to(device)
    size = size or default_size(cfg)
    sizes = sweep_sizes(size) if sweep_path else []
    name = Path(cfg.filename).stem

    def measured(size: Size) -> Cost:
        with saying_what_fails(name, size, "a larger --size"):
            return measure(model, cfg.default_scope, size)

    cost, costs = measured(size), [measured(size) for size in sizes]
    where = f"float32 on {device}, PyTorch {torch.__version__}"
    title = f"{name}, one image of {size[0]}x{size[1]} (height x width), {where}"
    content = {"config": name, "device": str(device), "torch": torch.__version__, **asdict(cost)}
    if sweep_path:
        save_figure(draw_sweep(costs, f"{name}: one image, {where}"), sweep_path)
        content["sweep"] = {
            "sizes": sizes,
            **{
                axis: {
                    line_name: {"values": values, **asdict(line)}
                    for line_name, (values, line) in series.items()
                }
                for axis, series in lines_of(costs).items()
            },
        }
    if json_path:
        write_json(json_path, content)
    return table(cost, title)
