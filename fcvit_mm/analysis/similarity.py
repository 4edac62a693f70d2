"""Show where FCViT looks: the similarity of each position to the image's mean, head by head.

A global context adds S'(head, position) * c(head) to a position (paper section 3.2): the same
vector everywhere, more or less of it. The maps are S', after the learned rescaling, so that their
values are those that the network uses; a negative one takes the context away.

The paper starts from the observation that in vision transformers what a position receives from
attention hardly differs from what any other position receives. `Context.difference` measures this
for FCViT: half the cosine distance between what two positions receive, averaged over all pairs,
0 where all receive the same direction, 0.5 for unrelated ones, 1 for opposite ones (the measure of
GCNet, arXiv 1904.11492, table 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from ..apis.predictor import Predictor
from ..apis.sources import Source
from ..models.arch import NUM_HEADS
from ..models.fcvit import FCViT
from ..models.layers import GlobalContext
from ..ops import split_heads
from ..utils.cli import writing
from ..utils.errors import ConfigError
from ..utils.files import make_folder, write_json
from ..visualization import figures
from ..visualization.draw import enlarge, enlargement, visible
from ..visualization.figures import Figure, make_panels, save_figure
from ..visualization.images import read_image, write_image

Array = np.ndarray
COLORS = "RdBu_r"


@dataclass
class Context:
    """What one global context gave to the positions of one image.

    stage, block: from 1 on. part: 1 or 2, which of the two in the block. similarity: S', (8, H, W).
    difference: see the module's docstring, 0 to 1.
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
    """Return the mean of (1 - cosine) / 2 over all pairs of different positions.

    The mean over pairs needs no pairs: the unit vectors' sum has a squared length of the sum of
    all their products. A position that receives nothing is unrelated to every other one.

    Args:
        given: (d, N), N >= 2, what each position receives.
    """
    unit = nn.functional.normalize(given.double(), dim=0)
    n = unit.shape[1]
    of_itself = unit.square().sum()
    cosine = (unit.sum(1).square().sum() - of_itself) / (n * (n - 1))
    return float((1 - cosine) / 2)


def contexts_of(predictor: Predictor, image: Array) -> tuple[Array, list[Context]]:
    """Run the backbone on an image and record its global contexts.

    Returns:
        The image as it reached the network, resized or cropped by the pipeline, (h, w, 3), BGR,
        0 to 255; and a `Context` for each of the network's, in its order, whose maps cover it.

    Raises:
        ConfigError: the model has no such maps, or the image is a single position in a stage.
    """
    backbone = find_backbone(predictor.model, str(predictor.cfg.filename))
    data = predictor.prepare(image)
    batch = {key: [data[key]] for key in ("inputs", "data_samples")}
    inputs = predictor.model.data_preprocessor(batch, False)["inputs"]
    # the rest was padded on the right and below
    share = np.divide(data["inputs"].shape[1:], inputs.shape[2:])
    found: list[Context] = []

    def look(module: GlobalContext, x: Tensor, stage: int, block: int, part: int) -> None:
        gap = x.mean((2, 3))
        similarity = module.similarity(x, gap)  # (1, h, H, W)
        height, width = (max(1, round(n)) for n in np.array(x.shape[2:]) * share)
        if height * width < 2:
            raise ConfigError(
                f"an image of {image.shape[1]}x{image.shape[0]} is a single position in stage "
                f"{stage}; take a larger one"
            )
        similarity = similarity[0, :, :height, :width]
        given = split_heads(module.context(gap), NUM_HEADS)[0].mT @ similarity.flatten(1)  # (d, N)
        maps = similarity.numpy(force=True)
        found.append(Context(stage, block, part, maps, mean_difference(given)))

    stages: Any = backbone.network[::2]
    handles = [
        context.register_forward_hook(
            lambda module, inputs, _, place=(stage, n, part): look(module, *inputs, *place)
        )
        for stage, blocks in enumerate(stages, 1)
        for n, block in enumerate(blocks, 1)
        for part, context in enumerate((block.token_mixer.gc1, block.token_mixer.gc2), 1)
    ]
    try:
        with torch.no_grad():
            backbone(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return visible(data["inputs"]), found


def overlay(image: Array, values: Array, limit: float) -> Array:
    """Lay a map over an image: red where the context is added, blue where it is taken away.

    Args:
        image: (h, w, 3), BGR, 0 to 255; enlarged if it is small.
        values: (H, W), stretched over the image.
        limit: the value of the strongest color.
    """
    image = enlarge(image, enlargement(image))
    values = cv2.resize(values.astype(np.float32), image.shape[1::-1])
    shade = figures.colormaps[COLORS](np.clip(values / limit, -1, 1) / 2 + 0.5)[..., 2::-1] * 255
    gray = image.mean(2, keepdims=True)
    return (0.45 * gray + 0.55 * shade).round().astype(np.uint8)


def draw_grid(image: Array, contexts: Sequence[Context]) -> Figure:
    """Plot one row per context: the image, then the overlays of the heads."""
    height = 1.35 * image.shape[0] / image.shape[1] + 0.3
    figure = Figure(figsize=(13.4, height * len(contexts)), layout="constrained")
    rows = figure.subfigures(len(contexts), 1, squeeze=False)[:, 0]
    for row, context in zip(rows, contexts, strict=True):
        first, *places = row.subplots(1, NUM_HEADS + 1)
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
        bar = row.colorbar(shades, ax=[first, *places], pad=0.01, aspect=12)
        bar.ax.set_title("S'", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    return figure


def differences(looks: Sequence[Sequence[Context]]) -> list[dict[str, Any]]:
    """Return one value per block, averaged over its contexts and all images, and each context's."""
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for contexts in zip(*looks, strict=True):
        stage, block = contexts[0].stage, contexts[0].block
        row = rows.setdefault((stage, block), {"stage": stage, "block": block, "contexts": []})
        row["contexts"].append(float(np.mean([context.difference for context in contexts])))
    for row in rows.values():
        row["difference"] = float(np.mean(row["contexts"]))
    return list(rows.values())


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


def choose(contexts: Sequence[Context], stage: int, block: int | None) -> list[Context]:
    """Return the contexts of a block, or of a whole stage; a ConfigError if there is none."""
    chosen = [c for c in contexts if c.stage == stage and block in (None, c.block)]
    if not chosen:
        last = max(c.block for c in contexts if c.stage == stage)
        raise ConfigError(f"--block {block}: stage {stage} has the blocks 1 to {last}")
    return chosen


def run(
    predictor: Predictor,
    sources: Sequence[Source],
    out: Path,
    stage: int = 4,
    block: int | None = None,
    whole_stage: bool = False,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Draw the maps of images, and measure how much the contexts of positions differ.

    Below `out`: NAME.png, the grid; NAME/ with one overlay per map; difference.png and
    difference.json, over all images.

    Args:
        stage: 1 to 4.
        block: from 1 on (default: the last).
        whole_stage: all blocks of the stage.

    Returns:
        (see `differences`, a sentence for each image that could not be read).

    Raises:
        ConfigError: see `contexts_of` and `choose`; or `out` can't be written.
    """
    looks, problems = [], []
    with writing(f"--out {out}"):
        make_folder(out)
        for source in sources:
            try:
                if source.moving:
                    raise ConfigError(f"{source.path} is a video; give images")
                image, contexts = contexts_of(predictor, read_image(str(source.path)))
            except ConfigError as error:
                problems.append(str(error))
                continue
            if block is None and not whole_stage:
                block = max(context.block for context in contexts if context.stage == stage)
            looks.append(contexts)
            _write(out / source.name.with_suffix(""), image, choose(contexts, stage, block))
        if not looks:
            return [], problems
        rows = differences(looks)
        save_figure(draw_differences(rows), out / "difference.png")
        write_json(out / "difference.json", {"images": len(looks), "blocks": rows})
    return rows, problems


def _write(name: Path, image: Array, contexts: Sequence[Context]) -> None:
    save_figure(draw_grid(image, contexts), name.with_name(f"{name.name}.png"))
    for context in contexts:
        place = f"stage{context.stage}_block{context.block}_context{context.part}"
        for head, values in enumerate(context.similarity, 1):
            write_image(name / f"{place}_head{head}.png", overlay(image, values, context.limit))
