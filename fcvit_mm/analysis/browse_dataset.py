"""Draw what the pipeline of a config feeds the model: images with boxes, masks and label maps.

MMDetection and MMSegmentation have a script each, and neither shows the file it comes from.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import set_random_seed

from ..apis.model import with_palette
from ..apis.result import Result
from ..engine.preflight import check_data_exist
from ..utils.cli import writing
from ..utils.config import task_of
from ..utils.errors import ConfigError, name_failure
from ..utils.files import make_folder
from ..visualization.draw import enlargement, visible
from ..visualization.figures import Figure, make_panels, save_figure
from ..visualization.images import read_image, write_image

Array = np.ndarray


@dataclass
class Look:
    """One item of a dataset as the model gets it.

    path: of the file it comes from; None for one that is mixed of several. size: width and height.
    drawn: the image with its annotations, (H, W, 3), BGR. contents: objects or pixels per class.
    """

    index: int
    path: str | None
    size: tuple[int, int]
    drawn: Array
    contents: dict[str, int]


def build_dataset(cfg: Config, split: str) -> Any:
    """Build the dataset of a split with its pipeline; a ConfigError if it can't be built."""
    loader = f"{split}_dataloader"
    if not cfg.get(loader):
        raise ConfigError(f"{cfg.filename} has no {loader}")
    task_of(cfg)
    check_data_exist(cfg, (loader,))
    init_default_scope(cfg.default_scope)
    with name_failure(f"{cfg.filename}: {loader}.dataset can't be built"):
        return DATASETS.build(cfg[loader].dataset)


def look(cfg: Config, dataset: Any, index: int, palette: Sequence[tuple[int, ...]]) -> Look:
    """Send an item through the pipeline and draw it; a ConfigError if the pipeline fails."""
    with name_failure(f"{cfg.filename}: the pipeline fails on item {index}"):
        item = dataset[index]
    sample, image = item["data_samples"], visible(item["inputs"])[..., ::-1]
    names = tuple(dataset.metainfo["classes"])
    found = Result.from_sample(image, sample, names, palette, "gt")
    labels = found.labels if found.semantic is None else found.semantic
    counts = [int(np.sum(labels == label)) for label in range(len(names))]
    contents = {name: n for name, n in zip(names, counts, strict=True) if n}
    drawn = found.draw(scale=enlargement(image))[..., ::-1]
    return Look(
        index, sample.metainfo.get("img_path"), (image.shape[1], image.shape[0]), drawn, contents
    )


def draw_grid(looks: Sequence[Look]) -> Figure:
    """Plot each item next to the file it comes from, two items per row."""
    rows = math.ceil(len(looks) / 2)
    figure, grid = make_panels(rows, 4, (11, 2.9 * rows))
    for axes in grid.flat:
        axes.axis("off")
    for found, (left, right) in zip(looks, grid.reshape(-1, 2), strict=False):
        if found.path is not None:
            left.imshow(read_image(found.path)[..., ::-1])
            left.set_title(Path(found.path).name, fontsize=8)
        right.imshow(found.drawn[..., ::-1])
    return figure


def run(cfg: Config, split: str, number: int, out: Path, seed: int = 0) -> list[Look]:
    """Draw the first items of a dataset as its pipeline gives them to the model.

    Below `out`: INDEX_NAME.png each, and grid.png with all next to their files.

    Args:
        split: train, val or test.
        number: the most items.
        seed: of the augmentations.

    Raises:
        ConfigError: the dataset can't be built or is empty, its pipeline fails, or `out` can't be
            written.
    """
    set_random_seed(seed)
    dataset = build_dataset(cfg, split)
    if not len(dataset):
        raise ConfigError(f"{cfg.filename}: {split}_dataloader.dataset has no items")
    meta = dataset.metainfo
    palette = with_palette(tuple(meta["classes"]), meta.get("palette"))["palette"]
    with writing(f"--out {out}"):
        make_folder(out)
        looks = [look(cfg, dataset, i, palette) for i in range(min(number, len(dataset)))]
        for found in looks:
            name = Path(found.path).stem if found.path is not None else "mixed"
            write_image(out / f"{found.index:05}_{name}.png", found.drawn)
        save_figure(draw_grid(looks), out / "grid.png")
    return looks
