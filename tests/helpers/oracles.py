"""mmcv's compiled operators as plain loops: mmcv/ops/csrc in Python, one number at a time.

The numbers are of the arrays' own type, so that what a float32 rounds to is the same. Of the
extension's two answers, the processor's and the GPU's, these are the ones that are defined; what
the stand-in deliberately answers otherwise is in docs/operators.md.
"""

import math
from itertools import product

import numpy as np
import torch


def greater_of(a: np.floating, b: np.floating) -> np.floating:
    """C++'s std::max: the first where one is not a number."""
    return b if a < b else a


def less_of(a: np.floating, b: np.floating) -> np.floating:
    """C++'s std::min."""
    return b if b < a else a


def iou(a: np.ndarray, b: np.ndarray, offset: int) -> np.float32:
    """In float32; nan where the union is 0, infinite or not a number."""
    one, zero = np.float32(offset), np.float32(0)
    with np.errstate(all="ignore"):
        width = greater_of(zero, less_of(a[2], b[2]) - greater_of(a[0], b[0]) + one)
        height = greater_of(zero, less_of(a[3], b[3]) - greater_of(a[1], b[1]) + one)
        shared = width * height
        areas = [(box[2] - box[0] + one) * (box[3] - box[1] + one) for box in (a, b)]
        return np.float32(shared / (areas[0] + areas[1] - shared))


def nms(boxes: np.ndarray, scores: np.ndarray, threshold: float, offset: int) -> list[int]:
    """Indices of the kept boxes (K, 4), in the order in which torch sorts the scores (K,)."""
    kept: list[int] = []
    for i in torch.from_numpy(scores).sort(descending=True).indices.tolist():
        overlaps = [iou(boxes[j], boxes[i], offset) for j in kept]
        if not any(overlap > np.float32(threshold) for overlap in overlaps):
            kept.append(i)
    return kept


def soft_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    sigma: float,
    min_score: float,
    method: str,
    offset: int,
) -> tuple[np.ndarray, list[int]]:
    """Selection sort that lowers what overlaps; discarded places are filled from the end.

    An overlap that is not a number lowers nothing.
    """
    rows = [(i, boxes[i], np.float32(scores[i])) for i in range(len(boxes))]
    i = 0
    while i < len(rows):
        best = i
        for j in range(i + 1, len(rows)):
            if rows[best][2] < rows[j][2]:
                best = j
        rows[i], rows[best] = rows[best], rows[i]
        j = i + 1
        while j < len(rows):
            index, box, score = rows[j]
            overlap = iou(rows[i][1], box, offset)
            with np.errstate(all="ignore"):
                if method == "gaussian" and not np.isnan(overlap):
                    score = score * np.exp(-(overlap * overlap) / np.float32(sigma))
                elif overlap >= np.float32(threshold):
                    score = score * (np.float32(0) if method == "naive" else 1 - overlap)
            if score < np.float32(min_score):
                rows[j] = rows[-1]
                rows.pop()
            else:
                rows[j] = (index, box, score)
                j += 1
        i += 1
    dets = np.array([[*box, score] for _, box, score in rows], dtype=np.float32).reshape(-1, 5)
    return dets, [index for index, _, _ in rows]


def bilinear(
    image: np.ndarray, y: np.floating, x: np.floating
) -> tuple[np.floating, dict[tuple[int, int], np.floating]]:
    """Value at a point and the pixels' shares in it; nothing beyond one pixel outside."""
    height, width = image.shape
    if not (height and width and -1 <= y <= height and -1 <= x <= width):
        return image.dtype.type(0), {}
    y, x = min(max(y, 0 * y), y * 0 + height - 1), min(max(x, 0 * x), x * 0 + width - 1)
    shares: dict[tuple[int, int], np.floating] = {}
    for row, column in product((math.floor(y), math.ceil(y)), (math.floor(x), math.ceil(x))):
        shares[row, column] = (1 - abs(y - row)) * (1 - abs(x - column))
    return sum(image[at] * share for at, share in shares.items()), shares


def roi_align(
    features: np.ndarray,
    rois: np.ndarray,
    grad: np.ndarray,
    size: tuple[int, int],
    scale: float,
    sampling: int,
    aligned: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Output and the features' gradient; nan for boxes that are not finite."""
    number = features.dtype.type
    output, grad_input = np.zeros_like(grad), np.zeros_like(features)
    scale, shift = number(scale), number(0.5 * aligned)
    for k, (image, *corners) in enumerate(rois):
        x1, y1, x2, y2 = (c * scale - shift for c in corners)
        w, h = x2 - x1, y2 - y1
        if not (np.isfinite(w) and np.isfinite(h)):
            output[k] = np.nan
            continue
        if not aligned:
            w, h = max(w, number(1)), max(h, number(1))
        bin_h, bin_w = h / number(size[0]), w / number(size[1])
        n_y, n_x = (sampling, sampling) if sampling else (math.ceil(bin_h), math.ceil(bin_w))
        for c, p, q in product(range(features.shape[1]), range(size[0]), range(size[1])):
            samples = [
                bilinear(
                    features[int(image), c],
                    y1 + number(p) * bin_h + number(i + 0.5) * bin_h / number(n_y),
                    x1 + number(q) * bin_w + number(j + 0.5) * bin_w / number(n_x),
                )
                for i, j in product(range(n_y), range(n_x))
            ]
            for value, shares in samples:
                output[k, c, p, q] += value / number(len(samples))
                for (row, column), share in shares.items():
                    part = share / number(len(samples))
                    grad_input[int(image), c, row, column] += grad[k, c, p, q] * part
    return output, grad_input


def zero_padded(plane: np.ndarray, y: float, x: float) -> float:
    """Bilinear value at a point of a plane that goes on in zeros; 0 at no point at all."""
    height, width = plane.shape
    if not (-1 < y < height and -1 < x < width):
        return 0.0
    top, left = math.floor(y), math.floor(x)
    return sum(
        plane[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
        for row, column in product((top, top + 1), (left, left + 1))
        if 0 <= row < height and 0 <= column < width
    )


def deform_conv(
    input: np.ndarray,
    offset: np.ndarray,
    mask: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    geometry: tuple,
) -> np.ndarray:
    """geometry: stride, padding, dilation (rows, columns each), groups, deformable groups. Where an
    offset is not a number, neither is the output."""
    stride, padding, dilation, groups, deform_groups = geometry
    channels, (out_channels, per_group, kernel_h, kernel_w) = input.shape[1], weight.shape
    output = np.zeros((len(input), out_channels, *offset.shape[2:]))
    for n, o, y, x in np.ndindex(*output.shape):
        output[n, o, y, x] = np.nan if np.isnan(offset[n, :, y, x]).any() else bias[o]
        for c, i, j in product(range(per_group), range(kernel_h), range(kernel_w)):
            channel = o // (out_channels // groups) * per_group + c
            tap = channel // (channels // deform_groups) * kernel_h * kernel_w + i * kernel_w + j
            row = y * stride[0] - padding[0] + i * dilation[0] + offset[n, 2 * tap, y, x]
            column = x * stride[1] - padding[1] + j * dilation[1] + offset[n, 2 * tap + 1, y, x]
            value = zero_padded(input[n, channel], row, column)
            output[n, o, y, x] += weight[o, c, i, j] * mask[n, tap, y, x] * value
    return output


def deformable_attention(
    value: np.ndarray,
    shapes: list[tuple[int, int]],
    starts: list[int],
    locations: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """shapes: height and width of each level, starts: where it begins among the keys."""
    batch, queries, heads, levels, points, _ = locations.shape
    output = np.zeros((batch, queries, heads, value.shape[-1]))
    for b, q, h, level, point in np.ndindex(batch, queries, heads, levels, points):
        height, width = shapes[level]
        x, y = locations[b, q, h, level, point]
        for d in range(value.shape[-1]):
            start = starts[level]
            plane = value[b, start : start + height * width, h, d].reshape(height, width)
            output[b, q, h, d] += weights[b, q, h, level, point] * zero_padded(
                plane, y * height - 0.5, x * width - 0.5
            )
    return output.reshape(batch, queries, heads * value.shape[-1])


def focal_loss(
    logits: np.ndarray, target: list[int], weight: list[float], gamma: float, alpha: float
) -> np.ndarray:
    """The logarithm of 0 is that of the smallest normal float32."""
    output = np.zeros(logits.shape)
    for n, c in np.ndindex(*logits.shape):
        with np.errstate(over="ignore"):
            p = float(1 / (1 + np.exp(-logits[n, c])))
        right, factor = (p, alpha) if target[n] == c else (1 - p, 1 - alpha)
        log_right = math.log(max(right, float(np.finfo(np.float32).tiny)))
        output[n, c] = -factor * (1 - right) ** gamma * log_right
        output[n, c] *= weight[target[n]] if weight else 1
    return output
