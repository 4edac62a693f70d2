"""Compare an exported model with PyTorch and with the predictions of OpenMMLab's own model."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...utils.errors import ConfigError
from ..predictor import Predictor
from .graphs import Graph
from .transformers import Chosen

# The largest difference between the file and PyTorch, relative to the largest value.
TOLERANCE = 1e-4
# How many images of a size are tried: rounding may decide which of two equal scores is larger.
TRIES = 3
# The place of labels among the outputs of a detector.
LABELS = 2

Run = Callable[[Tensor], list[Tensor]]


def check(predictor: Predictor, graph: Graph, run: Run) -> float:
    """Compare an exported model with PyTorch, on images of sizes that it was not exported with.

    Args:
        predictor: its own predictions are compared too.
        graph: what was exported.
        run: the exported model, images -> outputs.

    Returns:
        The largest relative difference, see `difference`.

    Raises:
        ConfigError: it is more than `TOLERANCE`, or see `difference`, for all of `TRIES` images.
    """
    worst = 0.0
    for i, size in enumerate(graph.checked):
        number = 2 if graph.batch and i else 1
        for attempt in range(TRIES):
            images = random_images(i + len(graph.checked) * attempt, number, *size)
            try:
                found = compare(predictor, graph, run, images)
            except ConfigError:
                if attempt == TRIES - 1:
                    raise
            else:
                if found <= TOLERANCE:
                    break
        worst = float(np.maximum(worst, found))
    if not worst <= TOLERANCE:
        raise ConfigError(
            f"the exported model differs from PyTorch by {worst:.1e} of the largest value, more "
            f"than {TOLERANCE:.0e}; nothing was written"
        )
    return worst


def compare(predictor: Predictor, graph: Graph, run: Run, images: Tensor) -> float:
    """Compare an exported model with PyTorch, and for a single image with OpenMMLab's model.

    Raises:
        ConfigError: see `difference`.
    """
    given = run(images)
    queries = Chosen(given.pop()) if "queries" in graph.outputs else None
    with torch.no_grad(), queries or nullcontext():
        expected = [as_list(graph(images))[: len(given)]]
        if len(images) == 1:
            image = images[0].permute(1, 2, 0).numpy().astype(np.uint8)
            expected.append(own_predictions(predictor, graph, image))
    worst = queries.difference if queries else 0.0
    for wanted in expected:
        pairs = [(wanted, given)]
        if "boxes" in graph.outputs:
            if graph.batch:
                each = (zip(*outputs, strict=True) for outputs in (wanted, given))
                pairs = list(zip(*each, strict=True))
            pairs = [(a, in_order(a, b)) for a, b in pairs]
        for a, b in pairs:
            worst = float(np.maximum(worst, difference(a, b, graph.outputs)))
    return worst


def random_images(seed: int, number: int, height: int, width: int) -> Tensor:
    """Draw rectangles on smooth backgrounds: (number, 3, height, width), whole numbers 0 to 255."""
    random = np.random.default_rng(seed)
    coarse = torch.from_numpy(random.uniform(0, 255, (number, 3, 5, 5))).float()
    images = functional.interpolate(coarse, (height, width), mode="bilinear").round()
    for image in images:
        # something for a detector to find
        for top, left in random.integers(0, (height - 48, width - 48), (6, 2)):
            rows, columns = random.integers(16, 48, 2)
            color = torch.from_numpy(random.integers(0, 256, (3, 1, 1)))
            image[:, top : top + rows, left : left + columns] = color
    return images


def as_list(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def own_predictions(predictor: Predictor, graph: Graph, image: np.ndarray) -> list[Tensor]:
    """Predict with OpenMMLab's model itself, in the form of the graph's outputs.

    Args:
        image: (H, W, 3), RGB, 0 to 255, sides that are multiples of 32.
    """
    model = predictor.model
    sample = predictor.prepare(image)["data_samples"]
    sizes = dict.fromkeys(("img_shape", "ori_shape", "pad_shape"), image.shape[:2])
    sample.set_metainfo({**sizes, "scale_factor": (1.0, 1.0)})
    # OpenMMLab's pipelines give BGR
    inputs = torch.from_numpy(image[..., ::-1].transpose(2, 0, 1).copy())
    data = model.data_preprocessor({"inputs": [inputs], "data_samples": [sample]}, False)
    return graph.own(model, data["inputs"], data["data_samples"][0])


def difference(expected: Sequence[Tensor], given: Sequence[Tensor], names: Sequence[str]) -> float:
    """Return the largest difference of any output, relative to the output's largest value.

    Raises:
        ConfigError: an output has another shape, or labels differ.
    """
    worst = 0.0
    for i, (a, b) in enumerate(zip(expected, given, strict=True)):
        fits = a.shape == b.shape
        if not fits or not (a.is_floating_point() or torch.equal(a, b)):
            wanted, found = (x.tolist() if fits else tuple(x.shape) for x in (a, b))
            raise ConfigError(
                f"the exported model gives other {names[i] if names else f'map {i}'} than PyTorch, "
                f"{found} where PyTorch gives {wanted}; nothing was written"
            )
        if a.is_floating_point() and a.numel():
            # unlike max, this keeps a NaN
            relative = float((a - b).abs().max() / a.abs().max().clamp(min=1e-12))
            worst = float(np.maximum(worst, relative))
    return worst


def in_order(expected: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """Sort detections like those expected: rounding decides the order of nearly equal scores.

    Each goes to one expected, of the same label if there is one, so that all are as near as can be.
    """
    # MMDetection, whose detections these are, requires it
    from scipy.optimize import linear_sum_assignment

    if any(a.shape != b.shape for a, b in zip(expected, given, strict=True)):
        return list(given)
    distances: Any = 0
    for i, (a, b) in enumerate(zip(expected, given, strict=True)):
        if i == LABELS:
            distances = distances + 1e6 * (a[:, None] != b[None])
        else:
            # boxes and scores, and the mean of each mask where those are equal
            a, b = (x if i == 0 else x[:, None].flatten(1).mean(1, keepdim=True) for x in (a, b))
            distances = distances + (a[:, None] - b[None]).abs().sum(2)
    _, order = linear_sum_assignment(distances.nan_to_num(1e6).numpy())
    return [output[torch.from_numpy(order)] for output in given]
