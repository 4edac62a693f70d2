"""RoIAlign and RoIPool."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from .registry import _operator, _widen


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
