"""RoIAlign."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from .registry import missing_operator, register_operator, widen


@register_operator
def roi_align_forward(*tensors: Tensor, **settings: Any) -> None:
    """Pool input (B, C, H, W) in rois (K, 5) to output (K, C, P, Q); pool_mode 1, the average.

    Boxes that are not finite get nan. Time and memory are bounded by the map's size, not by the
    boxes'.
    """
    input, rois, output, *_ = tensors
    if settings["pool_mode"] != 1:
        missing_operator("roi_align_forward with pool_mode='max'")()
    features, boxes = widen(input, rois)
    image = _images(boxes, len(features))
    extents, supported = _torchvision_supported(boxes, features.shape, settings)
    scale, *bins_and_samples = _scalars(settings)

    def pool(part: Tensor) -> Tensor:
        return torch.ops.torchvision.roi_align(part, boxes[supported], scale, *bins_and_samples)

    output[supported] = _by_threads(pool, features).to(output)
    for k, rows, columns in _fallback_boxes(boxes, ~supported, features.shape, settings):
        mean = torch.einsum("chw,ph,qw->cpq", features[image[k]], rows, columns)
        output[k] = mean.to(output)
    output[~extents.isfinite().all(dim=1)] = torch.nan


@register_operator
def roi_align_backward(*tensors: Tensor, **settings: Any) -> None:
    grad_output, rois, _, _, grad_input = tensors
    grad, boxes = widen(grad_output, rois)
    _, supported = _torchvision_supported(boxes, grad_input.shape, settings)
    images, _, *pixels = grad_input.shape
    scale, height, width, *samples = _scalars(settings)

    def spread(part: Tensor) -> Tensor:
        sizes = height, width, images, part.shape[1], *pixels
        return torch.ops.torchvision._roi_align_backward(
            part, boxes[supported], scale, *sizes, *samples
        )

    result = _by_threads(spread, grad[supported])
    for k, rows, columns in _fallback_boxes(boxes, ~supported, grad_input.shape, settings):
        result[boxes[k, 0].long()] += torch.einsum("cpq,ph,qw->chw", grad[k], rows, columns)
    grad_input.copy_(result)


def _scalars(settings: dict[str, Any]) -> list[Any]:
    names = ("spatial_scale", "aligned_height", "aligned_width", "sampling_ratio", "aligned")
    return [settings[name] for name in names]


def _by_threads(operator: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply an operator that treats channels alike to x (., C, ., .), some channels per thread.

    On a CPU torchvision pools boxes on a single thread.
    """
    threads = torch.get_num_threads() if x.device.type == "cpu" else 1
    if threads == 1 or x.shape[1] < threads:
        return operator(x)
    parts = [part.contiguous() for part in x.chunk(threads, dim=1)]
    with ThreadPoolExecutor(threads) as executor:
        return torch.cat(list(executor.map(operator, parts)), dim=1)


def _images(boxes: Tensor, count: int) -> Tensor:
    """Return the boxes' images (K,), int64; refuse one that is not in the batch."""
    image = boxes[:, 0]
    wrong = ~((image > -1) & (image < count))
    if wrong.any():
        raise ValueError(
            f"rois[:, 0], the index of a box's image in the batch, is {image[wrong][0].item():g}; "
            f"the batch has images 0 to {count - 1}"
        )
    return image.long()


def _torchvision_supported(
    boxes: Tensor, shape: torch.Size, settings: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Return width and height (K, 2) of the boxes on the map, and which torchvision can be given.

    It ends the process, or asks for any amount of memory, where boxes are not finite, upside down
    or huge, or the map is empty.
    """
    corners = boxes[:, 1:] * settings["spatial_scale"]
    extents = corners[:, 2:] - corners[:, :2]
    height, width = shape[2:]
    most = 4 * extents.new_tensor([width, height])
    return extents, ((extents >= 0) & (extents < most)).all(dim=1)


def _fallback_boxes(
    boxes: Tensor, chosen: Tensor, shape: torch.Size, settings: dict[str, Any]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the index of each chosen box, for which RoIAlign is a product of two matrices.

    They are the shares of the map's rows (P, H) and columns (Q, W) in the mean of each bin.
    """
    for k in chosen.nonzero().flatten().tolist():
        _, left, top, right, bottom = boxes[k] * settings["spatial_scale"]
        rows = _shares(top, bottom, settings["aligned_height"], shape[2], settings)
        columns = _shares(left, right, settings["aligned_width"], shape[3], settings)
        yield k, rows, columns


def _shares(start: Tensor, end: Tensor, bins: int, limit: int, settings: dict[str, Any]) -> Tensor:
    """Return the shares (bins, limit) of pixels along an axis in the mean of each bin's samples.

    Samples beyond the map are 0: of a box that is larger than the map, those on it are visited, and
    the ones next to it for all others. A box that is not finite has none.
    """
    shift = 0.5 if settings["aligned"] else 0.0
    start, end = start - shift, end - shift
    extent = end - start
    size = (extent if settings["aligned"] else extent.clamp(min=1)) / bins
    ratio = settings["sampling_ratio"]
    total = torch.full_like(size, ratio) if ratio > 0 else size.ceil()
    origin = start + torch.arange(bins, device=size.device) * size
    total = total.where(extent.isfinite(), 0).expand_as(origin)
    skipped, count = torch.zeros_like(origin), total
    if ratio <= 0:
        step = size / total
        skipped = ((-1 - origin) / step - 2).floor().clamp(min=0)
        count = ((limit - origin) / step + 2).ceil().minimum(total) - skipped
    count = count.nan_to_num(nan=0).clamp(min=0) * (limit > 0)
    sample = torch.arange(int(count.max()), device=size.device)[:, None]  # (samples, 1)
    position = origin + (skipped + sample + 0.5) * size / total  # (samples, bins)
    inside = (sample < count) & (position >= -1) & (position <= limit)
    pixels = torch.arange(limit, device=size.device)
    distance = (position.clamp(0, limit - 1)[..., None] - pixels).abs()  # (samples, bins, limit)
    weight = (1 - distance).clamp(min=0) * inside[..., None]
    return weight.sum(dim=0) / total[:, None].clamp(min=1)
