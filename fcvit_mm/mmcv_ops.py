"""A stand-in for `mmcv._ext`, the compiled operators of mmcv.

Installed from a package index, mmcv often comes without its compiled operators, or with some that
were built for another PyTorch; MMDetection and MMSegmentation cannot be imported then. The
operators below give the same results from torchvision's compiled operators, or from plain PyTorch
where torchvision has no equal, on the CPU and on CUDA.

| operator of the extension                         | here                                        |
|---------------------------------------------------|---------------------------------------------|
| nms                                               | torchvision (offset 1: on longer boxes)     |
| softnms                                           | PyTorch                                     |
| roi_align_forward, _backward: average             | torchvision                                 |
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
computed in float32 and rounded once, at the end; float64 stays float64.

Letters of shapes: B images, C channels, H x W pixels, K boxes, P x Q bins of a box.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, version
from importlib.util import module_from_spec
from multiprocessing import parent_process
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_EXTENSION = "mmcv._ext"
_OPERATORS: dict[str, Callable[..., Any]] = {}
_logger = logging.getLogger("fcvit_mm")


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
        origin = __name__ if compiled is None else compiled.origin
        return ModuleSpec(fullname, _ExtensionLoader(compiled), origin=origin)


class _ExtensionLoader(Loader):
    """Loads the compiled extension; the stand-in where there is none or where it fails to load."""

    def __init__(self, compiled: ModuleSpec | None) -> None:
        self.compiled = compiled

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        if self.compiled is None:
            if _speaks_for_this_machine():
                _logger.info(
                    "mmcv has no compiled operators here: %s, built on torchvision's, stands in "
                    "for them. To compile them: %s",
                    __name__,
                    _build_command(),
                )
            return None
        assert self.compiled.loader is not None  # what PathFinder finds for a name with a file
        try:
            module = module_from_spec(self.compiled)
            self.compiled.loader.exec_module(module)
        except (ImportError, OSError) as error:
            if _speaks_for_this_machine():
                warnings.warn(
                    f"mmcv's compiled operators, {self.compiled.origin}, cannot be loaded ({error}): "
                    f"most often they were built for another PyTorch than the installed "
                    f"{torch.__version__}. {__name__}, built on torchvision's operators, stands "
                    f"in for them. To rebuild them: {_build_command()}",
                    RuntimeWarning,
                    stacklevel=2,
                )
            spec.origin = __name__
            self.compiled = None
            return None
        return module

    def exec_module(self, module: ModuleType) -> None:
        if self.compiled is not None:
            return
        import torchvision  # noqa: F401  registers torch.ops.torchvision

        vars(module).update(_OPERATORS, __doc__=__doc__, __getattr__=_unimplemented)


def _speaks_for_this_machine() -> bool:
    """False in all but one of a machine's distributed processes, and in their worker processes."""
    local_rank = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    return local_rank == "0" and parent_process() is None


def _build_command() -> str:
    options = "--no-build-isolation --no-cache-dir --no-deps --force-reinstall"
    try:
        # neither pip's isolated build nor the wheel in its cache would fit the installed torch
        return f"pip install {options} --no-binary onedl-mmcv onedl-mmcv=={version('onedl-mmcv')}"
    except PackageNotFoundError:
        return f"pip uninstall -y mmcv-lite && pip install {options} --no-binary mmcv mmcv==2.1.0"


def _unimplemented(name: str) -> Callable[..., Any]:
    """The stand-in's `__getattr__`: mmcv asks for all its operators at import and calls few."""
    if name.startswith("_"):
        raise AttributeError(f"module {_EXTENSION!r} has no attribute {name!r}")

    def operator(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f"mmcv's compiled operator '{name}' is called, which {__name__} does not provide. "
            f"To compile mmcv for the installed PyTorch {torch.__version__} (with a C++ compiler, "
            f"and nvcc for CUDA): {_build_command()}"
        )

    operator.__name__ = operator.__qualname__ = name
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
    return f"none ({__name__})"


@_operator
def get_compiling_cuda_version() -> str:
    return "not available"


@_operator
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices (int64) of the boxes (K, 4) kept, by falling score."""
    # the extension knows float32 alone, of the threshold too: an IoU of 3/10 isn't above 0.3
    boxes, scores = boxes.float(), scores.float()
    threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    if offset:
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), dim=1)
    return torch.ops.torchvision.nms(boxes, scores, threshold)


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
    """Indices (int64) of the boxes kept; boxes and lowered scores go into the first rows of dets.

    method: 0 naive, 1 linear, 2 gaussian (Bodla et al., arXiv 1704.04503).
    """
    rest = torch.cat((boxes, scores[:, None]), dim=1).float()
    rest_index = torch.arange(len(boxes), device=boxes.device)
    kept, kept_index = [], []
    while len(rest):
        # equal scores: the extension takes the first, puts it in front, and what was in front
        # into its place
        best = int(rest[:, 4].argmax())
        swapped = rest_index.new_tensor([best, *range(1, len(rest))])
        kept.append(rest[best])
        kept_index.append(rest_index[best])
        if best:
            swapped[best] = 0
        rest, rest_index = rest[swapped[1:]], rest_index[swapped[1:]]

        overlap = _iou(kept[-1], rest, offset)
        if method == 0:
            weight = (overlap < iou_threshold).to(overlap)
        elif method == 1:
            weight = torch.where(overlap >= iou_threshold, 1 - overlap, 1)
        else:
            weight = torch.exp(-(overlap * overlap) / sigma)
        rest[:, 4] *= weight
        # it fills the place of a discarded box with the last one
        survives = ~(rest[:, 4] < min_score)
        count = int(survives.sum())
        order = torch.arange(len(rest), device=boxes.device)
        order[:count][~survives[:count]] = order[count:][survives[count:]].flip(0)
        rest, rest_index = rest[order[:count]], rest_index[order[:count]]
    if kept:
        dets[: len(kept)] = torch.stack(kept).to(dets)
        return torch.stack(kept_index)
    return rest_index


def _iou(box: Tensor, boxes: Tensor, offset: int) -> Tensor:
    width = torch.minimum(box[2], boxes[:, 2]) - torch.maximum(box[0], boxes[:, 0]) + offset
    height = torch.minimum(box[3], boxes[:, 3]) - torch.maximum(box[1], boxes[:, 1]) + offset
    shared = width.clamp(min=0) * height.clamp(min=0)
    area = (box[2] - box[0] + offset) * (box[3] - box[1] + offset)
    areas = (boxes[:, 2] - boxes[:, 0] + offset) * (boxes[:, 3] - boxes[:, 1] + offset)
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
    sample, -1 where it has none (the output is 0 then).
    """
    features, boxes = _widen(input, rois)
    if pool_mode == 1:
        output.copy_(
            torch.ops.torchvision.roi_align(
                features,
                boxes,
                spatial_scale,
                aligned_height,
                aligned_width,
                sampling_ratio,
                aligned,
            )
        )
        return

    shift = 0.5 if aligned else 0.0

    def samples(first: int, last: int, bins: int) -> tuple[Callable[[int], Tensor], Tensor]:
        start = boxes[:, first, None] * spatial_scale - shift
        extent = boxes[:, last, None] * spatial_scale - shift - start
        if not aligned:
            extent = extent.clamp(min=1)
        size = extent / bins
        count = size.new_tensor(sampling_ratio) if sampling_ratio > 0 else size.ceil()
        origin = start + torch.arange(bins, device=size.device) * size
        return lambda i: origin + (i + 0.5) * size / count, count.expand_as(origin)

    values, y, x = _greatest_samples(
        features, boxes, *samples(2, 4, aligned_height), *samples(1, 3, aligned_width)
    )
    output.copy_(values)
    argmax_y.copy_(y)
    argmax_x.copy_(x)


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
    batch, channels, height, width = grad_input.shape
    if pool_mode == 1:
        grad_input.copy_(
            torch.ops.torchvision._roi_align_backward(
                grad,
                boxes,
                spatial_scale,
                aligned_height,
                aligned_width,
                batch,
                channels,
                height,
                width,
                sampling_ratio,
                aligned,
            )
        )
        return
    y, x = argmax_y.to(grad), argmax_x.to(grad)
    position, weight = _corners(y, x, height, width)
    weight = weight * (y != -1)
    grad_input.copy_(_scatter(weight * grad, position, boxes, grad_input.shape))


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

    argmax (K, C, P, Q) takes the flat position of each bin's greatest value, -1 in an empty bin.
    """
    features, boxes = _widen(input, rois)

    def samples(
        first: int, last: int, bins: int, limit: int
    ) -> tuple[Callable[[int], Tensor], Tensor]:
        start = boxes[:, first, None] * spatial_scale
        extent = (boxes[:, last, None] + 1) * spatial_scale - start
        size = extent / bins
        edge = torch.arange(bins + 1, device=size.device) * size + start
        low = edge[:, :-1].floor().clamp(0, limit)
        high = edge[:, 1:].ceil().clamp(0, limit)
        return lambda i: low + i, (high - low) * (extent > 0)

    height, width = input.shape[2:]
    values, y, x = _greatest_samples(
        features, boxes, *samples(2, 4, pooled_height, height), *samples(1, 3, pooled_width, width)
    )
    output.copy_(values)
    argmax.copy_(torch.where(y < 0, -1, y * width + x))


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
    position = argmax.long()
    grad_input.copy_(
        _scatter(grad * (position >= 0), position.clamp(min=0), boxes, grad_input.shape)
    )


def _greatest_samples(
    features: Tensor,
    boxes: Tensor,
    y_at: Callable[[int], Tensor],
    count_y: Tensor,
    x_at: Callable[[int], Tensor],
    count_x: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, y and x (K, C, P, Q) of the first of each bin's greatest samples.

    y_at(i) (K, P) are the rows of the bins' i-th samples, of which there are count_y (K, P); x_at
    and count_x (K, Q) their columns. A bin without samples has value 0 and position -1.
    """
    channels, height, width = features.shape[1:]
    pixels = features.permute(0, 2, 3, 1).reshape(-1, channels)
    start = boxes[:, 0].long() * (height * width)
    bins = (*count_y.shape, count_x.shape[1], channels)
    value = pixels.new_full(bins, -torch.inf)
    best_y, best_x = pixels.new_full(bins, -1), pixels.new_full(bins, -1)
    # sample by sample over all boxes: memory does not grow with the boxes' sizes
    for i in range(int(count_y.max()) if len(boxes) else 0):
        for j in range(int(count_x.max())):
            exists = (i < count_y)[:, :, None] & (j < count_x)[:, None, :]
            k, p, q = exists.nonzero(as_tuple=True)
            y, x = y_at(i)[k, p], x_at(j)[k, q]
            position, weight = _corners(y, x, height, width)
            sample = (pixels[start[k] + position] * weight[..., None]).sum(0)
            greater = sample > value[k, p, q]
            value[k, p, q] = torch.where(greater, sample, value[k, p, q])
            best_y[k, p, q] = torch.where(greater, y[:, None], best_y[k, p, q])
            best_x[k, p, q] = torch.where(greater, x[:, None], best_x[k, p, q])
    value = value.masked_fill(best_y == -1, 0)
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
    position = torch.stack([r * width + c for r in (top, bottom) for c in (left, right)]).long()
    weight = torch.stack([v * h for v in (1 - down, down) for h in (1 - across, across)])
    return position, weight * inside


def _scatter(grad: Tensor, position: Tensor, boxes: Tensor, shape: torch.Size) -> Tensor:
    """Sum gradients (..., K, C, P, Q) into an image of shape (B, C, H, W) at flat positions."""
    _, channels, height, width = shape
    image = boxes[:, 0].long()[:, None] * channels + torch.arange(channels, device=grad.device)
    position = position + image[:, :, None, None] * (height * width)
    summed = grad.new_zeros(shape.numel())
    return summed.index_add_(0, position.flatten(), grad.flatten()).view(shape)


@_operator
def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **geometry: int,
) -> None:
    operands = _deform_operands(input, weight, offset)
    output.copy_(torch.ops.torchvision.deform_conv2d(*operands, *_deform_geometry(geometry)))


@_operator
def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **geometry: int,
) -> None:
    operands = _deform_operands(input, weight, offset)
    grads = torch.ops.torchvision._deform_conv2d_backward(
        grad_output.to(operands[0]), *operands, *_deform_geometry(geometry)
    )
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[2])


@_operator
def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float,
    **geometry: int,
) -> None:
    # the kernels of a convolution with this gradient: its values do not enter
    weight = torch.zeros_like(grad_weight)
    operands = _deform_operands(input, weight, offset)
    grads = torch.ops.torchvision._deform_conv2d_backward(
        grad_output.to(operands[0]), *operands, *_deform_geometry(geometry)
    )
    grad_weight.add_(grads[1], alpha=scale)


def _deform_operands(input: Tensor, weight: Tensor, offset: Tensor) -> list[Tensor]:
    """Input, weight, offset, no mask and no bias, as torchvision takes them."""
    return _widen(
        input, weight, offset, input.new_zeros(len(input), 1), weight.new_zeros(len(weight))
    )


def _deform_geometry(geometry: dict[str, int]) -> tuple[int | bool, ...]:
    # im2col_step only bounds the memory of the extension's kernels; kW, kH are the weight's
    names = ("dH", "dW", "padH", "padW", "dilationH", "dilationW", "group", "deformable_group")
    return (*(geometry[name] for name in names), False)


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
    operands = _modulated_operands(input, weight, offset, mask, bias, geometry)
    output.copy_(torch.ops.torchvision.deform_conv2d(*operands, *_modulated_geometry(geometry)))


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
    operands = _modulated_operands(input, weight, offset, mask, bias, geometry)
    grads = torch.ops.torchvision._deform_conv2d_backward(
        grad_output.to(operands[0]), *operands, *_modulated_geometry(geometry)
    )
    targets = [grad_input, grad_weight, grad_offset, grad_mask]
    if geometry["with_bias"]:
        targets.append(grad_bias)
    for target, grad in zip(targets, grads, strict=False):
        target.copy_(grad)


def _modulated_operands(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor,
    bias: Tensor,
    geometry: dict[str, int],
) -> list[Tensor]:
    if not geometry["with_bias"]:
        bias = weight.new_zeros(len(weight))
    return _widen(input, weight, offset, mask, bias)


def _modulated_geometry(geometry: dict[str, int]) -> tuple[int | bool, ...]:
    names = ("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w")
    return (*(geometry[name] for name in (*names, "group", "deformable_group")), True)


@_operator
def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """value (B, keys, heads, D), locations (B, queries, heads, levels, points, 2) -> (B, queries,
    heads * D)."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    levels = value_spatial_shapes.tolist()
    starts = value_level_start_index.tolist()
    wide, locations, weights = _widen(value, sampling_locations, attention_weights)
    wide = torch.cat(
        [wide[:, start : start + h * w] for start, (h, w) in zip(starts, levels, strict=True)],
        dim=1,
    )
    return multi_scale_deformable_attn_pytorch(wide, levels, locations, weights).to(value)


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
    inputs = [
        tensor.detach().requires_grad_()
        for tensor in _widen(value, sampling_locations, attention_weights)
    ]
    with torch.enable_grad():
        output = ms_deform_attn_forward(
            inputs[0],
            value_spatial_shapes,
            value_level_start_index,
            inputs[1],
            inputs[2],
            im2col_step,
        )
    grads = torch.autograd.grad(output, inputs, grad_output.to(output))
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        target.copy_(grad)


@_operator
def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """input (N, classes) logits, target (N,), weight (classes,) or empty, output (N, classes).

    Lin et al., arXiv 1708.02002, equation 5.
    """
    p, log_p, log_1p, positive, scale = _focal_terms(input, target, weight)
    loss = torch.where(
        positive, -alpha * (1 - p) ** gamma * log_p, -(1 - alpha) * p**gamma * log_1p
    )
    output.copy_(loss * scale)


@_operator
def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    p, log_p, log_1p, positive, scale = _focal_terms(input, target, weight)
    grad = torch.where(
        positive,
        -alpha * (1 - p) ** gamma * (1 - p - gamma * p * log_p),
        -(1 - alpha) * p**gamma * (gamma * (1 - p) * log_1p - p),
    )
    grad_input.copy_(grad * scale)


def _focal_terms(
    input: Tensor, target: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """p, log p, log (1 - p), whether target, (N, classes) each, and the factor of each row."""
    logits, factors = _widen(input, weight)
    p = logits.sigmoid()
    # the extension's guard against log 0 is C's FLT_MIN, for every type
    smallest = torch.finfo(torch.float32).tiny
    positive = target[:, None] == torch.arange(input.shape[1], device=input.device)
    scale = factors[target][:, None] if len(factors) else p.new_ones(1)
    return p, p.clamp(min=smallest).log(), (1 - p).clamp(min=smallest).log(), positive, scale
