"""Draw over images with supervision's annotators: masks, outlines, boxes and labels.

One drawing for predictions and ground truth, of detectors, segmentors and classifiers.
"""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import supervision as sv
import torch
from PIL import ImageFont
from torch import Tensor

from .figures import FONT

Array = np.ndarray
Colors = Sequence[tuple[int, ...]]

COLOR_BY = ("class", "instance")
OPACITY = 0.4
# Below the first longer side, in pixels, lines and labels are smaller; above the second one labels
# grow with the image, from twice as many on lines, too.
SMALL, LARGE = 300, 800
# Of a label, in pixels, in small images and in others; less can't be read and is left out.
SMALL_FONT, FONT_SIZE, MIN_FONT = 8, 11, 6
# The longer side that plots of small images are brought to.
READABLE = 384


def draw(
    image: Array,
    found: sv.Detections,
    labels: Sequence[str],
    palette: Colors,
    color_by: str = "class",
    scale: float = 1.0,
    boxes: bool = True,
) -> Array:
    """Draw detections, or the classes of a label map, over a copy of an image.

    Masks cover it to 40 %, outlines are thin, labels lie within it.

    Args:
        image: (H, W, 3), RGB, uint8.
        found: at the image's size, with a class_id each.
        labels: one text per detection.
        palette: one color per class, RGB, 0 to 255.
        color_by: class, or instance for a color per detection, or per track where there are any.
        scale: size of what is returned, relative to the image's.
        boxes: whether to draw boxes, with labels at their corners; else each label lies within its
            mask.

    Returns:
        (round(scale * H), round(scale * W), 3), RGB, uint8.
    """
    # supervision draws in OpenCV's order of channels
    scene = image[..., ::-1].copy()
    if scale != 1:
        scene, found = _resize(scene, found, scale)
    if not len(found):
        return scene[..., ::-1].copy()
    lookup: Any = found.class_id
    if color_by == "instance":
        lookup = np.arange(len(found)) if found.tracker_id is None else found.tracker_id
        palette = distinct_colors(20).tolist()
    colors = sv.ColorPalette([sv.Color(*color) for color in palette])
    lookup = lookup % len(colors)
    side = max(scene.shape[:2])
    width = max(1 if side < SMALL else 2, round(side / LARGE))
    scene = sv.MaskAnnotator(colors, OPACITY).annotate(scene, found, lookup)
    scene = sv.PolygonAnnotator(colors, width).annotate(scene, found, lookup)
    if boxes:
        scene = sv.BoxAnnotator(colors, width).annotate(scene, found, lookup)
    places = found if boxes or found.mask is None else _inside(found)
    _draw_labels(scene, places, labels, colors, lookup)
    return np.ascontiguousarray(scene[..., ::-1])


def _resize(scene: Array, found: sv.Detections, scale: float) -> tuple[Array, sv.Detections]:
    """Resize an image together with its boxes and masks."""
    size = [max(1, round(side * scale)) for side in scene.shape[1::-1]]
    masks: Any = found.mask
    if masks is not None:
        masks = [cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
                 for mask in masks]  # fmt: skip
        masks = np.array(masks, bool).reshape(-1, *size[::-1])
    found = sv.Detections(
        found.xyxy * scale, masks, class_id=found.class_id, tracker_id=found.tracker_id
    )
    interpolation = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    return cv2.resize(scene, size, interpolation=interpolation), found


def _inside(found: sv.Detections) -> sv.Detections:
    """Return a point within each mask, as far from its border as can be."""
    points, masks = [], np.asarray(found.mask)
    for mask in masks:
        # beyond the image is outside of the mask
        depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)
        y, x = np.unravel_index(depth[1:-1, 1:-1].argmax(), mask.shape)
        points.append([x, y, x, y])
    return sv.Detections(np.array(points, np.float32), class_id=found.class_id)


def _draw_labels(
    scene: Array,
    found: sv.Detections,
    labels: Sequence[str],
    colors: sv.ColorPalette,
    lookup: Array,
) -> None:
    """Write labels in place, as large as is usual for the image, or smaller so that they fit."""
    height, width = scene.shape[:2]
    side = max(height, width)
    size = SMALL_FONT if side < SMALL else round(FONT_SIZE * max(1, side / LARGE))
    padding = max(2, size // 5)
    longest = max(ImageFont.truetype(FONT, size).getlength(label) for label in labels)
    room = min((width - 2 * padding) / max(longest, 1), (height - 2 * padding) / size, 1)
    size = math.floor(size * room)
    if size < MIN_FONT:
        return
    text = [sv.Color.BLACK if _luminance(color) > 140 else sv.Color.WHITE
            for color in colors.colors]  # fmt: skip
    points = (found.xyxy[:, :2] == found.xyxy[:, 2:]).all()
    position = sv.Position.CENTER if points else sv.Position.TOP_LEFT
    annotator = sv.RichLabelAnnotator(
        colors, text_color=sv.ColorPalette(text), font_path=FONT, font_size=size,
        text_padding=padding, text_position=position, smart_position=True,
    )  # fmt: skip
    annotator.annotate(scene, found, list(labels), lookup)


def _luminance(color: sv.Color) -> float:
    """Return how bright a color looks, 0 to 255 (ITU-R BT.601)."""
    return 0.299 * color.r + 0.587 * color.g + 0.114 * color.b


def distinct_colors(n: int) -> Array:
    """Return n colors, (n, 3), RGB, 0 to 255, each as unlike those before as can be.

    The first ones do not depend on n. From the 81st on, say, they are hard to tell apart, and from
    some hundred on they repeat.
    """
    levels = np.arange(0, 256, 51)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    # what is dark or gray is hard to see over photographs
    grid = grid[(grid.max(1) >= 204) & (grid.max(1) - grid.min(1) >= 102)]
    lab = cv2.cvtColor(grid[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    chosen = [int((grid == (255, 51, 51)).all(1).argmax())]
    distances = np.linalg.norm(lab - lab[chosen[0]], axis=1)
    while len(chosen) < min(n, len(grid)):
        chosen.append(int(distances.argmax()))
        distances = np.minimum(distances, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
    return grid[np.resize(chosen, n)]


def enlargement(image: Array) -> int:
    """Return the least whole factor that brings an image's longer side to `READABLE` pixels."""
    return max(1, math.ceil(READABLE / max(image.shape[:2])))


def visible(inputs: Tensor) -> Array:
    """Convert an image that a pipeline packed, (3, H, W); stretch a normalized one to 0 to 255."""
    image = inputs.permute(1, 2, 0).double().numpy(force=True)
    if inputs.dtype != torch.uint8:
        low, high = image.min(), image.max()
        image = (image - low) / max(high - low, 1e-12) * 255
    return image.round().astype(np.uint8)
