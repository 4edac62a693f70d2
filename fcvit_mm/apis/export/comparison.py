"""Compare an exported model with PyTorch and with the predictions of OpenMMLab's own model."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...utils.errors import ConfigError
from ..predictor import Predictor
from .graphs import Graph

# The largest difference between the file and PyTorch, relative to the largest value.
TOLERANCE = 1e-4


def check(predictor: Predictor, graph: Graph, run: Callable[[Tensor], list[Tensor]]) -> float:
    """Compare an exported model with PyTorch, on images of sizes that it was not exported with.

    Args:
        predictor: its own predictions are compared too.
        graph: what was exported.
        run: the exported model, images -> outputs.

    Returns:
        The largest relative difference, see `difference`.

    Raises:
        ConfigError: it is more than `TOLERANCE`, or see `difference`.
    """
    worst = 0.0
    # larger than any stride
    for seed, size in enumerate([(1, 192, 160), (2 if graph.batch else 1, 136, 200)]):
        images = random_images(seed, *size)
        given = run(images)
        with torch.no_grad():
            expected = [as_list(graph(images))]
            if seed == 0:
                image = images[0].permute(1, 2, 0).numpy().astype(np.uint8)
                expected.append(own_predictions(predictor, graph, image))
        for wanted in expected:
            ordered = in_order(wanted, given) if "boxes" in graph.outputs else given
            worst = float(np.maximum(worst, difference(wanted, ordered, graph.outputs)))
    if not worst <= TOLERANCE:
        raise ConfigError(
            f"the exported model differs from PyTorch by {worst:.1e} of the largest value, more "
            f"than {TOLERANCE:.0e}; nothing was written"
        )
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
    if "boxes" in graph.outputs:
        (sample,) = model.predict(data["inputs"], data["data_samples"], rescale=False)
        found = sample.pred_instances
        # before they are pasted into the image
        features, rois = model.extract_feat(data["inputs"]), functional.pad(found.bboxes, (1, 0))
        logits = model.roi_head._mask_forward(features, rois)["mask_preds"]
        labels = found.labels * (logits.shape[1] > 1)
        masks = logits[torch.arange(len(labels)), labels].sigmoid()
        return [found.bboxes, found.scores, found.labels, masks]
    if "logits" in graph.outputs:
        return [model.inference(data["inputs"], [sample.metainfo])]
    stage = {"stage": "backbone"} if predictor.task == "classification" else {}
    return list(model.extract_feat(data["inputs"], **stage))


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

    Where two go to one of the nearest boxes of their label, or one has none, all stay.
    """
    if any(a.shape != b.shape for a, b in zip(expected, given, strict=True)):
        return list(given)
    distances = (expected[0][:, None] - given[0][None]).abs().amax(2)
    distances = distances.masked_fill(expected[2][:, None] != given[2][None], torch.inf)
    # with no detection there is no nearest one
    order = distances.argmin(1) if len(distances) else torch.arange(0)
    if not torch.equal(order.sort().values, torch.arange(len(order))):
        return list(given)
    return [output[order] for output in given]
