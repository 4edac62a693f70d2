"""Show where FCViT looks: the similarity of each position to the image's mean, head by head.

A global context adds S'(head, position) * c(head) to a position (paper section 3.2): the same
vector everywhere, more or less of it. The maps are S' after the learned rescaling; a negative value
takes the context away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from ..apis.predictor import Predictor
from ..models.arch import NUM_HEADS
from ..models.fcvit import FCViT
from ..models.layers import GlobalContext
from ..ops import split_heads
from ..utils.errors import ConfigError
from ..visualization import figures
from ..visualization.draw import enlargement, visible
from ..visualization.figures import Figure, make_panels

Array = np.ndarray
COLORS = "RdBu_r"


@dataclass
class Context:
    """What one global context gave to the positions of one image.

    stage, block: from 1 on. part: 1 or 2, which of the two in the block. similarity: S', (8, H, W).
    difference: see `mean_difference`.
    """

    stage: int
    block: int
    part: int
    similarity: Array
    difference: float

    @property
    def limit(self) -> float:
        """The value that gets the strongest color in all maps; one in a hundred lies beyond."""
        return max(float(np.quantile(np.abs(self.similarity), 0.99)), 1e-12)


def find_backbone(model: nn.Module, filename: str) -> FCViT:
    """Return the FCViT in a model; a ConfigError if it has none with weighted contexts."""
    backbones = [module for module in model.modules() if isinstance(module, FCViT)]
    if not backbones:
        raise ConfigError(f"{filename}: the model has no FCViT, whose similarity could be shown")
    contexts = [m for m in backbones[0].modules() if isinstance(m, GlobalContext)]
    if not contexts or not contexts[0].weighted:
        raise ConfigError(
            f"{filename}: the backbone was built without global contexts that are weighted by "
            "similarity (global_context=False or weighted_context=False), so there is no map"
        )
    return backbones[0]


def mean_difference(given: Tensor) -> float:
    """Return the mean of (1 - cosine) / 2 over all pairs of positions; given: (d, N), N >= 2.

    0 where all receive the same direction, 0.5 for unrelated ones, 1 for opposite ones (the measure
    of GCNet, arXiv 1904.11492, table 1). A position that receives nothing is unrelated to others.
    """
    # without pairs: the unit vectors' sum has a squared length of the sum of all their products
    unit = nn.functional.normalize(given.double(), dim=0)
    n = unit.shape[1]
    of_itself = unit.square().sum()
    cosine = (unit.sum(1).square().sum() - of_itself) / (n * (n - 1))
    return float((1 - cosine) / 2)


def contexts_of(predictor: Predictor, image: Array) -> tuple[Array, list[Context]]:
    """Run the backbone on an image and record its global contexts.

    Returns:
        The image as the pipeline gives it to the network, (h, w, 3), BGR, 0 to 255; and a `Context`
        for each of the network's, in its order, whose maps cover it.

    Raises:
        ConfigError: the model has no such maps, or the image is a single position in a stage.
    """
    backbone = find_backbone(predictor.model, str(predictor.cfg.filename))
    data = predictor.prepare(image)
    batch = {key: [data[key]] for key in ("inputs", "data_samples")}
    inputs = predictor.model.data_preprocessor(batch, False)["inputs"]
    # the rest was padded on the right and below
    share = np.divide(data["inputs"].shape[1:], inputs.shape[2:])
    stages: Any = backbone.network[::2]
    places = {
        context: (stage, n, part)
        for stage, blocks in enumerate(stages, 1)
        for n, block in enumerate(blocks, 1)
        for part, context in enumerate((block.token_mixer.gc1, block.token_mixer.gc2), 1)
    }
    found: list[Context] = []

    def look(module: GlobalContext, inputs: tuple[Tensor], _: Tensor) -> None:
        (x,), place = inputs, places[module]
        height, width = (max(1, round(n)) for n in np.array(x.shape[2:]) * share)
        if height * width < 2:
            raise ConfigError(
                f"an image of {image.shape[1]}x{image.shape[0]} is a single position in stage "
                f"{place[0]}; take a larger one"
            )
        gap = x.mean((2, 3))
        similarity = module.similarity(x, gap)[0, :, :height, :width]
        given = split_heads(module.context(gap), NUM_HEADS)[0].mT @ similarity.flatten(1)  # (d, N)
        found.append(Context(*place, similarity.numpy(force=True), mean_difference(given)))

    handles: list[Any] = [context.register_forward_hook(look) for context in places]
    try:
        with torch.no_grad():
            backbone(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return visible(data["inputs"]), found


def overlay(image: Array, values: Array, limit: float) -> Array:
    """Lay a map (H, W) over an image (h, w, 3), BGR, that is enlarged if it is small.

    Red where the context is added, blue where it is taken away; limit: of the strongest color.
    """
    k = enlargement(image)
    image = cv2.resize(image, None, fx=k, fy=k, interpolation=cv2.INTER_CUBIC)
    values = cv2.resize(values.astype(np.float32), image.shape[1::-1])
    shade = figures.colormaps[COLORS](np.clip(values / limit, -1, 1) / 2 + 0.5)[..., 2::-1] * 255
    gray = image.mean(2, keepdims=True)
    return (0.45 * gray + 0.55 * shade).round().astype(np.uint8)


def draw_grid(image: Array, contexts: Sequence[Context]) -> Figure:
    """Plot one row per context: the image, then the overlays of the heads."""
    height = 1.35 * image.shape[0] / image.shape[1] + 0.3
    figure, grid = make_panels(len(contexts), NUM_HEADS + 1, (13.4, height * len(contexts)))
    for (first, *places), context in zip(grid, contexts, strict=True):
        first.imshow(image[..., ::-1])
        limit = context.limit
        for head, (place, values) in enumerate(zip(places, context.similarity, strict=True), 1):
            place.imshow(overlay(image, values, limit)[..., ::-1])
            place.set_title(f"head {head}", fontsize=8)
        name = f"stage {context.stage}, block {context.block}, context {context.part}"
        first.set_title(name, fontsize=8, loc="left")
        for place in (first, *places):
            place.axis("off")
        shades = figures.ScalarMappable(figures.Normalize(-limit, limit), COLORS)
        bar = figure.colorbar(shades, ax=[first, *places], pad=0.01, aspect=12)
        bar.ax.set_title("S'", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    return figure


def differences(looks: Sequence[Sequence[Context]]) -> list[dict[str, Any]]:
    """Return one value per block, averaged over its contexts and all images, and each context's."""
    values: dict[tuple[int, int], list[float]] = {}
    for contexts in zip(*looks, strict=True):
        mean = float(np.mean([context.difference for context in contexts]))
        values.setdefault((contexts[0].stage, contexts[0].block), []).append(mean)
    return [
        {"stage": stage, "block": block, "contexts": means, "difference": float(np.mean(means))}
        for (stage, block), means in values.items()
    ]


def draw_differences(rows: Sequence[dict[str, Any]]) -> Figure:
    """Plot one bar per block."""
    figure, ((axes,),) = make_panels(1, 1, (1.8 + 0.42 * len(rows), 3))
    names = [f"{row['stage']}.{row['block']}" for row in rows]
    colors = [f"C{row['stage'] - 1}" for row in rows]
    axes.bar(names, [row["difference"] for row in rows], color=colors)
    axes.axhline(0.5, color="gray", linewidth=0.8, linestyle=":")
    axes.set(xlabel="stage.block", ylabel="difference of contexts", ylim=(0, None))
    axes.grid(axis="y", alpha=0.3)
    return figure


def choose(contexts: Sequence[Context], stage: int, block: int | None = None) -> list[Context]:
    """Return the contexts of a block, the last of its stage if none is named; or a ConfigError."""
    last = max(context.block for context in contexts if context.stage == stage)
    if block is not None and block > last:
        raise ConfigError(f"--block {block}: stage {stage} has the blocks 1 to {last}")
    return [c for c in contexts if (c.stage, c.block) == (stage, block or last)]
