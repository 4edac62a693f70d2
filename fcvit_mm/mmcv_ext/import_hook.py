"""A stand-in for `mmcv._ext`, the compiled operators of mmcv.

Installed from a package index, mmcv often comes without its compiled operators, or with some that
were built for another PyTorch; MMDetection and MMSegmentation cannot be imported then. The
operators below give the same results from torchvision's compiled operators, or from plain PyTorch
where torchvision has no equal, on the CPU and on CUDA.

| operator of the extension                         | here                                        |
|---------------------------------------------------|---------------------------------------------|
| nms                                               | torchvision (offset 1: PyTorch)             |
| softnms                                           | PyTorch                                     |
| roi_align_forward, _backward: average             | torchvision (huge or not finite: PyTorch)   |
| roi_align_forward, _backward: maximum             | PyTorch                                     |
| roi_pool_forward, _backward                       | PyTorch (torchvision's rounds the boxes)    |
| deform_conv_forward, _backward_input, _parameters | torchvision                                 |
| modulated_deform_conv_forward, _backward          | torchvision                                 |
| ms_deform_attn_forward, _backward                 | mmcv's own form in PyTorch, for the CPU     |
| sigmoid_focal_loss_forward, _backward             | PyTorch                                     |
| get_compiler_version, get_compiling_cuda_version  | say that nothing is compiled                |
| any other                                         | NotImplementedError, when it is called      |

Names and order of the arguments are those of the extension (mmcv/ops/csrc/pytorch/pybind.cpp),
which writes most results into tensors that the caller hands over. Half-precision inputs are
computed in float32 and rounded once, at the end; float64 stays float64. docs/operators.md says what
is promised, and where results differ from the extension's on purpose.

Letters of shapes: B images, C channels, H x W pixels, K boxes, P x Q bins of a box.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, version
from importlib.util import module_from_spec
from logging import INFO, WARNING
from multiprocessing import parent_process
from types import ModuleType
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor
from torch.nn import functional

_EXTENSION = "mmcv._ext"
_OPERATORS: dict[str, Callable[..., Any]] = {}


def install() -> None:
    """Let the import of `mmcv._ext` find the stand-in wherever no compiled one can be loaded.

    Cheap: what is there is looked at when `mmcv._ext` is first imported, which `import mmcv.ops`
    does. A second call does nothing. Without mmcv it has no effect.
    """
    if not any(isinstance(finder, _ExtensionFinder) for finder in sys.meta_path):
        # ahead of the finder of files, which would hand out an extension that cannot be loaded
        sys.meta_path.insert(0, _ExtensionFinder())


class _ExtensionFinder(MetaPathFinder):
    """Finds `mmcv._ext`, whether or not there is a file of that name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _EXTENSION:
            return None
        compiled = PathFinder.find_spec(fullname, path)
        origin = compiled.origin if compiled else __package__
        return ModuleSpec(fullname, _ExtensionLoader(compiled), origin=origin)


class _ExtensionLoader(Loader):
    """Loads the compiled extension; the stand-in where there is none or where it fails to load."""

    def __init__(self, compiled: ModuleSpec | None) -> None:
        self.compiled = compiled

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        if self.compiled is None or self.compiled.loader is None:  # nothing, or a mere folder
            self.compiled = None
            _say(
                INFO,
                f"mmcv has no compiled operators here: {__package__}, built on torchvision's, stands "
                f"in for them. To compile them: {_build_command()}",
            )
            return None
        try:
            module = module_from_spec(self.compiled)
            self.compiled.loader.exec_module(module)
            return module
        except (ImportError, OSError) as error:
            _say(
                WARNING,
                f"mmcv's compiled operators ({self.compiled.origin}) cannot be loaded: {error}. "
                f"Most often they were built for another PyTorch than the installed "
                f"{torch.__version__}. {__package__}, built on torchvision's, stands in for them. "
                f"To rebuild them: {_build_command()}",
            )
            self.compiled, spec.origin = None, __package__
            return None

    def exec_module(self, module: ModuleType) -> None:
        if self.compiled is None:
            import torchvision  # noqa: F401  registers torch.ops.torchvision

            vars(module).update(_OPERATORS, __doc__=__doc__, __getattr__=_unimplemented)


def _say(level: int, message: str) -> None:
    """Log in one process of each machine: not in its other ranks, nor in worker processes."""
    rank = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    if rank == "0" and parent_process() is None:
        print_log(message, logger="current", level=level)


def _build_command() -> str:
    # neither what pip builds in isolation nor the wheel in its cache would fit the installed torch
    pip = "pip install --no-build-isolation --no-cache-dir --no-deps --force-reinstall --no-binary"
    try:
        return f"{pip} onedl-mmcv onedl-mmcv=={version('onedl-mmcv')}"
    except PackageNotFoundError:
        # mmcv 2.1.0 is the last that mmdet 3.3.0 and mmsegmentation 1.2.2 accept
        return f"pip uninstall -y mmcv-lite; pip install 'setuptools<82'; {pip} mmcv mmcv==2.1.0"


def _unimplemented(name: str) -> Callable[..., Any]:
    """The stand-in's `__getattr__`: mmcv asks for all its operators at import and calls few."""
    if name.startswith("_"):
        raise AttributeError(f"module {_EXTENSION!r} has no attribute {name!r}")

    def operator(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f"mmcv's compiled operator '{name}' was called, which {__package__} does not provide. "
            f"To compile mmcv for the installed PyTorch {torch.__version__} (with a C++ compiler, "
            f"for CUDA also nvcc): {_build_command()}"
        )

    return operator


def _operator(function: Callable[..., Any]) -> Callable[..., Any]:
    _OPERATORS[function.__name__] = function
    return function


def _widen(*tensors: Tensor) -> list[Tensor]:
    """float16 and bfloat16 become float32; the first tensor decides for all."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return [tensor.to(dtype) for tensor in tensors]


@_operator
def get_compiler_version() -> str:
    return f"none ({__package__})"


@_operator
def get_compiling_cuda_version() -> str:
    return "not available"


@_operator
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices (int64) of the kept of the boxes (K, 4), by falling score."""
    order = scores.sort(descending=True).indices  # like the extension's: not stable
    falling = torch.arange(len(order), 0, -1, dtype=torch.float32, device=boxes.device)
    # the extension computes in float32, the threshold too: an IoU of 3/10 is not above 0.3
    boxes = boxes[order].float()
    threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    if offset == 0:
        return order[torch.ops.torchvision.nms(boxes, falling, threshold)]
    # x2 + 1 would be rounded, far from 0 to x2 itself: torchvision cannot be asked
    kept, rest = [order[:0]], torch.arange(len(order), device=boxes.device)
    while len(rest):
        kept.append(order[rest[:1]])
        overlap = _iou(boxes[rest[:1]], boxes[rest[1:]], offset)
        rest = rest[1:][~(overlap > threshold)]
    return torch.cat(kept)


@_operator
def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Indices (int64) of the kept of the boxes (K, 4), by falling lowered score.

    The first rows of dets (K, 5) take these boxes and scores. method: 0 naive, 1 linear,
    2 gaussian (Bodla et al., arXiv 1704.04503).
    """
    rest = torch.cat((boxes, scores[:, None]), dim=1).float()
    index = torch.arange(len(boxes), device=boxes.device)
    kept, kept_index = [rest[:0]], [index[:0]]
    while len(rest):
        # the order of equal scores follows from how the extension moves boxes: the first box
        # goes to the place of the best one, boxes from the end to the places of discarded ones
        # a score that is not a number is less than none: it stays first where it is first
        first = rest[0, 4].isnan()
        best = 0 if first else int(rest[:, 4].nan_to_num(nan=-torch.inf).argmax())
        kept.append(rest[best : best + 1].clone())
        kept_index.append(index[best : best + 1].clone())
        rest[best], index[best] = rest[0], index[0]
        rest, index = rest[1:], index[1:]

        overlap = _iou(kept[-1], rest, offset)
        if method == 0:
            weight = (overlap < iou_threshold).to(overlap)
        elif method == 1:
            weight = torch.where(overlap >= iou_threshold, 1 - overlap, 1)
        else:
            weight = torch.exp(-(overlap * overlap) / sigma)
        # two boxes without extent have no overlap; by the gaussian the extension makes scores nan
        rest[:, 4] *= weight.masked_fill(overlap.isnan(), 1)
        stays = ~(rest[:, 4] < min_score)
        count = int(stays.sum())
        for rows in (rest, index):
            rows[:count][~stays[:count]] = rows[count:][stays[count:]].flip(0)
        rest, index = rest[:count], index[:count]
    lowered = torch.cat(kept)
    dets[: len(lowered)] = lowered.to(dets)
    return torch.cat(kept_index)


def _iou(box: Tensor, boxes: Tensor, offset: int) -> Tensor:
    """IoU (K,) of one box (1, 4) with boxes (K, 4) whose sides are x2 - x1 + offset.

    nan where the union is 0, infinite or not a number.
    """
    top_left = torch.maximum(box[:, :2], boxes[:, :2])
    bottom_right = torch.minimum(box[:, 2:4], boxes[:, 2:4])
    shared = (bottom_right - top_left + offset).clamp(min=0).prod(dim=1)
    area, areas = ((b[:, 2:4] - b[:, :2] + offset).prod(dim=1) for b in (box, boxes))
    return shared / (area + areas - shared)


@_operator
def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """input (B, C, H, W), rois (K, 5), output (K, C, P, Q); pool_mode: 0 maximum, 1 average.

    For the maximum, argmax_y and argmax_x (K, C, P, Q) take the position of each bin's greatest
    sample, -1 where a box without extent has no samples and the output is 0. Boxes that are not
    finite get nan. Time and memory are bounded by the map's size, not by the boxes'.
    """
    features, boxes = _widen(input, rois)
    image = _images(boxes, len(features))
    bins, settings = (aligned_height, aligned_width), (spatial_scale, sampling_ratio, aligned)
    if pool_mode == 1:
        usual = _usual(boxes, spatial_scale, features.shape)

        def pool(part: Tensor) -> Tensor:
            return torch.ops.torchvision.roi_align(
                part, boxes[usual], spatial_scale, *bins, sampling_ratio, aligned
            )

        output[usual] = _by_threads(pool, features).to(output)
        for k, rows, columns in _unusual(boxes, usual, bins, features.shape, *settings):
            mean = torch.einsum("chw,ph,qw->cpq", features[image[k]], rows, columns)
            output[k] = mean.to(output)
    else:
        samples = _align_samples(boxes, bins, features.shape, *settings)
        greatest = _greatest_samples(features, image, *samples)
        for target, result in zip((output, argmax_y, argmax_x), greatest, strict=True):
            target.copy_(result)
    output[~_extents(boxes, spatial_scale).isfinite().all(dim=1)] = torch.nan


@_operator
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    grad, boxes = _widen(grad_output, rois)
    bins, settings = (aligned_height, aligned_width), (spatial_scale, sampling_ratio, aligned)
    if pool_mode == 1:
        usual = _usual(boxes, spatial_scale, grad_input.shape)
        images, _, *pixels = grad_input.shape

        def spread(part: Tensor) -> Tensor:
            map_shape = images, part.shape[1], *pixels
            return torch.ops.torchvision._roi_align_backward(
                part, boxes[usual], spatial_scale, *bins, *map_shape, sampling_ratio, aligned
            )

        result = _by_threads(spread, grad[usual])
        for k, rows, columns in _unusual(boxes, usual, bins, grad_input.shape, *settings):
            result[boxes[k, 0].long()] += torch.einsum("cpq,ph,qw->chw", grad[k], rows, columns)
    else:
        y, x = argmax_y.to(grad), argmax_x.to(grad)
        pixel, weight = _corners(y, x, *grad_input.shape[2:])
        result = _scatter(grad * weight * (y != -1), pixel, boxes, grad_input.shape)
    grad_input.copy_(result)


def _by_threads(operator: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The operator on x (., C, ., .), which treats channels alike; each thread takes some of them.

    On a CPU torchvision pools boxes on a single thread.
    """
    threads = torch.get_num_threads() if x.device.type == "cpu" else 1
    if threads == 1 or x.shape[1] < threads:
        return operator(x)
    parts = [part.contiguous() for part in x.chunk(threads, dim=1)]
    with ThreadPoolExecutor(threads) as executor:
        return torch.cat(list(executor.map(operator, parts)), dim=1)


def _images(boxes: Tensor, count: int) -> Tensor:
    """The boxes' images (K,), int64."""
    image = boxes[:, 0]
    wrong = ~((image > -1) & (image < count))
    if wrong.any():
        raise ValueError(
            f"rois[:, 0] says which image of the batch a box lies on: {image[wrong][0].item():g} "
            f"is none of the {count}, which are counted from 0"
        )
    return image.long()


def _extents(boxes: Tensor, scale: float) -> Tensor:
    """Width and height (K, 2) of the boxes, in pixels of the map."""
    corners = boxes[:, 1:] * scale
    return corners[:, 2:] - corners[:, :2]


def _usual(boxes: Tensor, scale: float, shape: torch.Size) -> Tensor:
    """Which boxes (K,) torchvision can be given: it ends the process, or asks for any amount of
    memory, where boxes are not finite, upside down or huge, or the map is empty."""
    extents = _extents(boxes, scale)
    height, width = shape[2:]
    return ((extents >= 0) & (extents < 4 * extents.new_tensor([width, height]))).all(dim=1)


def _unusual(
    boxes: Tensor,
    usual: Tensor,
    bins: tuple[int, int],
    shape: torch.Size,
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The other boxes, one at a time: index, and the shares of the map's rows (P, H) and columns
    (Q, W) in the mean of each bin's samples."""
    for k in (~usual).nonzero().flatten().tolist():
        axes = _align_samples(boxes[k : k + 1], bins, shape, scale, sampling_ratio, aligned)
        shares = []
        for (at, count, total), limit in zip(axes, shape[2:], strict=True):
            i = torch.arange(int(count.max()), device=boxes.device)[:, None, None]
            position = at(i)
            inside = (i < count) & (position >= -1) & (position <= limit)
            pixels = torch.arange(limit, device=boxes.device)
            distance = (position.clamp(0, limit - 1)[..., None] - pixels).abs()
            weight = (1 - distance).clamp(min=0) * inside[..., None]
            shares.append((weight.sum(dim=0) / total[..., None].clamp(min=1))[0])
        yield k, shares[0], shares[1]


# where the bins' i-th samples lie, (K, P) or wider; how many there are to visit, and in all, (K, P)
_Samples = tuple[Callable[[Any], Tensor], Tensor, Tensor]


def _align_samples(
    boxes: Tensor,
    bins: tuple[int, int],
    shape: torch.Size,
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> tuple[_Samples, _Samples]:
    """RoIAlign's samples along y and along x.

    All samples beyond the map are 0: of a box that is larger than the map, those on it are to be
    visited, and the ones next to it for all others. Of a box that is not finite, none.
    """

    def samples(first: int, bins: int, limit: int) -> _Samples:
        shift = 0.5 if aligned else 0.0
        start, end = (boxes[:, i, None] * scale - shift for i in (first, first + 2))
        extent = end - start
        size = (extent if aligned else extent.clamp(min=1)) / bins
        total = torch.full_like(size, sampling_ratio) if sampling_ratio > 0 else size.ceil()
        origin = start + torch.arange(bins, device=size.device) * size
        total = total.where(extent.isfinite(), 0).expand_as(origin)
        skipped, count = torch.zeros_like(origin), total
        if sampling_ratio <= 0:
            step = size / total
            skipped = ((-1 - origin) / step - 2).floor().clamp(min=0)
            count = ((limit - origin) / step + 2).ceil().minimum(total) - skipped
        count = count.nan_to_num(nan=0).clamp(min=0) * (limit > 0)
        return lambda i: origin + (skipped + i + 0.5) * size / total, count, total

    return samples(2, bins[0], shape[2]), samples(1, bins[1], shape[3])


@_operator
def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """input (B, C, H, W), rois (K, 5), output (K, C, P, Q).

    argmax (K, C, P, Q) takes the flat position of each bin's greatest pixel, -1 where the bin has
    none and the output is 0.
    """
    features, boxes = _widen(input, rois)
    image = _images(boxes, len(features))
    height, width = input.shape[2:]

    def samples(first: int, bins: int, limit: int) -> _Samples:
        start = boxes[:, first, None] * spatial_scale
        extent = (boxes[:, first + 2, None] + 1) * spatial_scale - start
        edges = torch.arange(bins + 1, device=boxes.device) * (extent / bins) + start
        edges = edges.nan_to_num(nan=0)  # like a GPU's conversion to whole numbers
        low = edges[:, :-1].floor().clamp(0, limit)
        high = edges[:, 1:].ceil().clamp(0, limit)
        count = (high - low) * (extent > 0)
        return lambda i: low + i, count, count

    rows, columns = samples(2, pooled_height, height), samples(1, pooled_width, width)
    value, y, x = _greatest_samples(features, image, rows, columns)
    output.copy_(value)
    argmax.copy_(torch.where(y < 0, -1, y.long() * width + x.long()))


@_operator
def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    grad, boxes = _widen(grad_output, rois)
    pixel = argmax.long().clamp(min=0)
    grad_input.copy_(_scatter(grad * (argmax >= 0), pixel, boxes, grad_input.shape))


def _greatest_samples(
    features: Tensor, image: Tensor, rows: _Samples, columns: _Samples
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, y and x, (K, C, P, Q) each, of the first of each bin's greatest samples.

    A sample that is not a number counts only where all are. A bin without samples gets value 0 and
    position -1.
    """
    (y_at, y_count, _), (x_at, x_count, _) = rows, columns
    _, channels, height, width = features.shape
    pixels = features.permute(0, 2, 3, 1).flatten(0, 2)
    start = image * (height * width)
    bins = (*y_count.shape, x_count.shape[1], channels)
    value = pixels.new_full(bins, torch.nan)
    best_y, best_x = pixels.new_full(bins, -1), pixels.new_full(bins, -1)
    # one sample of all bins at a time: memory does not grow with the boxes' sizes
    for i in range(int(y_count.max()) if y_count.numel() else 0):
        for j in range(int(x_count.max()) if x_count.numel() else 0):
            exists = (i < y_count)[:, :, None] & (j < x_count)[:, None, :]
            k, p, q = exists.nonzero(as_tuple=True)
            y, x = y_at(i)[k, p], x_at(j)[k, q]
            pixel, weight = _corners(y, x, height, width)
            parts = pixels[start[k] + pixel] * weight[..., None]
            # what is not finite must not spread to the pixels beside it: 0 * inf is nan
            sample = parts.where(weight[..., None] != 0, 0).sum(dim=0)
            before = value[k, p, q]
            greater = (sample > before) | before.isnan()
            for best, new in ((value, sample), (best_y, y[:, None]), (best_x, x[:, None])):
                best[k, p, q] = torch.where(greater, new, best[k, p, q])
    some = (y_count > 0)[:, :, None] & (x_count > 0)[:, None, :]
    value.masked_fill_(~some[..., None], 0)
    return value.permute(0, 3, 1, 2), best_y.permute(0, 3, 1, 2), best_x.permute(0, 3, 1, 2)


def _corners(y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Flat positions and bilinear weights, (4, *y.shape) each, of the pixels around points.

    Points up to one pixel outside count as on the border, those beyond have weights 0.
    """
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.floor(), x.floor()
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    down, across = y - top, x - left
    pixel = torch.stack([r * width + c for r in (top, bottom) for c in (left, right)]).long()
    weight = torch.stack([v * h for v in (1 - down, down) for h in (1 - across, across)])
    return pixel, weight * inside


def _scatter(grad: Tensor, pixel: Tensor, boxes: Tensor, shape: torch.Size) -> Tensor:
    """Sum the boxes' gradients (..., K, C, P, Q) into pixels, flat positions, of (B, C, H, W)."""
    _, channels, height, width = shape
    summed = grad.new_zeros(shape.numel())
    if not len(summed):
        return summed.view(shape)
    plane = boxes[:, 0, None].long() * channels + torch.arange(channels, device=grad.device)
    pixel = pixel + plane[:, :, None, None] * (height * width)
    return summed.index_add_(0, pixel.flatten(), grad.flatten()).view(shape)


@_operator
def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, *buffers: Tensor, **geometry: int
) -> None:
    operands = _plain_operands(input, weight, offset, geometry)
    output.copy_(_unless_nan(torch.ops.torchvision.deform_conv2d(*operands), offset))


@_operator
def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    *buffers: Tensor,
    **geometry: int,
) -> None:
    operands = _plain_operands(input, weight, offset, geometry)
    grads = torch.ops.torchvision._deform_conv2d_backward(grad_output.to(operands[0]), *operands)
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[2])


@_operator
def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    *buffers: Tensor,
    **geometry: int,
) -> None:
    # the weight's gradient does not depend on the weight, which the extension is not handed here
    operands = _plain_operands(input, torch.zeros_like(grad_weight), offset, geometry)
    grads = torch.ops.torchvision._deform_conv2d_backward(grad_output.to(operands[0]), *operands)
    grad_weight.add_(grads[1], alpha=geometry["scale"])


def _plain_operands(
    input: Tensor, weight: Tensor, offset: Tensor, geometry: dict[str, int]
) -> list[Any]:
    """The arguments of torchvision's deform_conv2d: no mask and no bias."""
    axes = ("dH", "dW", "padH", "padW", "dilationH", "dilationW")
    # im2col_step is left out: it bounds memory and changes no result
    scalars = [geometry[name] for name in (*axes, "group", "deformable_group")]
    mask, bias = input.new_zeros(len(input), 1), weight.new_zeros(len(weight))
    tensors = _reachable(_widen(input, weight, offset, mask, bias), scalars)
    return [*tensors, *scalars, False]


@_operator
def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    **geometry: int,
) -> None:
    offset, mask = (_leading(tensor, output.shape[2:]) for tensor in (offset, mask))
    operands = _modulated_operands(input, weight, offset, mask, bias, geometry)
    output.copy_(_unless_nan(torch.ops.torchvision.deform_conv2d(*operands), offset))


@_operator
def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    **geometry: int,
) -> None:
    offset, mask = (_leading(tensor, grad_output.shape[2:]) for tensor in (offset, mask))
    operands = _modulated_operands(input, weight, offset, mask, bias, geometry)
    *grads, bias_grad = torch.ops.torchvision._deform_conv2d_backward(
        grad_output.to(operands[0]), *operands
    )
    grad_input.copy_(grads[0])
    grad_weight.copy_(grads[1])
    for target, grad in zip((grad_offset, grad_mask), grads[2:], strict=True):
        unread = target.shape[1:].numel() - grad.shape[1:].numel()
        target.copy_(functional.pad(grad.flatten(1), (0, unread)).view(target.shape))
    if geometry["with_bias"]:
        grad_bias.copy_(bias_grad)


def _leading(tensor: Tensor, size: torch.Size) -> Tensor:
    """What the extension reads of a picture's offsets or masks (B, n, ., .): its first numbers, as
    if they were (n, *size) of the output. MMDetection's DyHead hands over larger ones."""
    numbers = tensor.shape[1] * size.numel()
    if tensor.shape[1:].numel() < numbers:
        raise ValueError(
            f"modulated_deform_conv2d has an output of {tuple(size)}: offset and mask must not be "
            f"smaller, and one is of {tuple(tensor.shape[2:])}"
        )
    return tensor.flatten(1)[:, :numbers].unflatten(1, (tensor.shape[1], *size))


def _modulated_operands(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor,
    bias: Tensor,
    geometry: dict[str, int],
) -> list[Any]:
    """The arguments of torchvision's deform_conv2d, with mask."""
    if not geometry["with_bias"]:
        bias = weight.new_zeros(len(weight))
    axes = ("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w")
    scalars = [geometry[name] for name in (*axes, "group", "deformable_group")]
    tensors = _reachable(_widen(input, weight, offset, mask, bias), scalars)
    return [*tensors, *scalars, True]


def _reachable(tensors: list[Tensor], geometry: list[int]) -> list[Tensor]:
    """torchvision's tensors with other offsets for samples a pixel or more outside of the input.

    The extension gives them value and gradient 0. So does torchvision for those two pixels outside,
    but elsewhere it may read memory that is not input's, or give them a gradient.
    """
    input, weight, offset, mask, bias = tensors
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, _, groups = geometry
    (height, width), (kernel_h, kernel_w) = input.shape[2:], weight.shape[2:]
    moved = offset.unflatten(1, (groups, kernel_h, kernel_w, 2))

    def at(stride: int, pad: int, dilation: int, taps: int, size: int) -> Tensor:
        tap, step = (torch.arange(n, device=offset.device)[:, None] for n in (taps, size))
        return (tap * dilation - pad + step.T * stride).to(offset)

    rows = at(stride_h, pad_h, dilation_h, kernel_h, offset.shape[2])[:, None, :, None]
    columns = at(stride_w, pad_w, dilation_w, kernel_w, offset.shape[3])[:, None]
    base = torch.stack(torch.broadcast_tensors(rows, columns), dim=2)
    position = moved + base
    size = offset.new_tensor([height, width])[:, None, None]
    inside = ((position > -1) & (position < size)).all(dim=4, keepdim=True)
    return [input, weight, moved.where(inside, -2 - base).flatten(1, 4), mask, bias]


def _unless_nan(output: Tensor, offset: Tensor) -> Tensor:
    return output.masked_fill_(offset.isnan().any(dim=1, keepdim=True), torch.nan)


@_operator
def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """value (B, keys, heads, D), sampling_locations (B, queries, heads, levels, points, 2) as x, y
    in 0..1, attention_weights without the last axis -> (B, queries, heads * D)."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    wide, locations, weights = _widen(value, sampling_locations, attention_weights)
    starts, levels = value_level_start_index.tolist(), value_spatial_shapes.tolist()
    # samples a pixel or more outside add nothing, to the gradients neither; moved to -1, they do so
    # in mmcv's form too, where nan would spread and the border have a gradient
    sizes = value_spatial_shapes.flip(1)[:, None].to(locations)
    position = locations * sizes - 0.5
    inside = ((position > -1) & (position < sizes)).all(dim=-1, keepdim=True)
    where = locations.where(inside, -1), weights
    # mmcv's form takes the levels to lie one after the other; the extension goes by their starts
    parts = [wide[:, s : s + h * w] for s, (h, w) in zip(starts, levels, strict=True)]
    return multi_scale_deformable_attn_pytorch(torch.cat(parts, dim=1), levels, *where).to(value)


@_operator
def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    tensors = (value, sampling_locations, attention_weights)
    value, locations, weights = (tensor.detach().requires_grad_() for tensor in tensors)
    with torch.enable_grad():
        output = ms_deform_attn_forward(
            value, value_spatial_shapes, value_level_start_index, locations, weights, im2col_step
        )
    grads = torch.autograd.grad(output, (value, locations, weights), grad_output.to(output))
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        target.copy_(grad)


@_operator
def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """input (N, classes) logits, target (N,), weight (classes,) or empty, output (N, classes).

    Lin et al., arXiv 1708.02002, equation 5. A target of no class is background.
    """
    right, wrong, log_right, factor, _ = _focal_terms(input, target, weight, alpha)
    output.copy_(-factor * wrong**gamma * log_right)


@_operator
def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    right, wrong, log_right, factor, sign = _focal_terms(input, target, weight, alpha)
    grad_input.copy_(-sign * factor * wrong**gamma * (wrong - gamma * right * log_right))


def _focal_terms(
    input: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of each logit: probability of what is true, of what is not, log of the first, factor, and
    the direction (1 or -1) in which the logit raises the first."""
    logits, weights = _widen(input, weight)
    classes = torch.arange(input.shape[1], device=input.device)
    positive = target[:, None] == classes
    p = logits.sigmoid()
    right, wrong = torch.where(positive, p, 1 - p), torch.where(positive, 1 - p, p)
    factor = torch.full_like(p, 1 - alpha).masked_fill_(positive, alpha)
    if len(weights):
        if not positive.any(dim=1).all():
            raise ValueError(
                "sigmoid_focal_loss has no weight for a target that is none of the "
                f"{len(weights)} classes: leave weight out where there is background"
            )
        factor = factor * weights[target][:, None]
    # the extension guards log against 0 with C's FLT_MIN, whatever the type
    log_right = right.clamp(min=torch.finfo(torch.float32).tiny).log()
    return right, wrong, log_right, factor, torch.where(positive, 1, -1)
