"""Draw what the pipeline of a config feeds the model: images with boxes, masks and label maps.

MMDetection and MMSegmentation have a script each, and neither shows the file it comes from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import set_random_seed

from ..apis.model import with_palette
from ..engine.preflight import check_data_exist
from ..utils.cli import writing
from ..utils.config import task_of
from ..utils.errors import ConfigError, first_line
from ..utils.files import make_folder
from ..visualization.draw import build_visualizer, draw, enlarge, enlargement, visible
from ..visualization.images import read_image, write_image

Array = np.ndarray
# Of an image in the grid, its longer side in pixels.
CELL = 256


@dataclass
class Look:
    """One item of a dataset as the model gets it.

    index: in the dataset. path: of the file it comes from; None for one that is mixed of several.
    size: width and height. contents: number of objects or pixels per class. drawn: the image with
    its annotations, (H, W, 3), BGR.
    """

    index: int
    path: str | None
    size: tuple[int, int]
    drawn: Array
    contents: dict[str, int] = field(default_factory=dict)


def build_dataset(cfg: Config, split: str) -> Any:
    """Build the dataset of a split, train, val or test, with its pipeline.

    Raises:
        ConfigError: the config has none, files are missing, or it can't be built.
    """
    loader = f"{split}_dataloader"
    if not cfg.get(loader):
        raise ConfigError(f"{cfg.filename} has no {loader}")
    task_of(cfg)
    check_data_exist(cfg, (loader,))
    init_default_scope(cfg.default_scope)
    try:
        return DATASETS.build(cfg[loader].dataset)
    except Exception as error:  # a config names arbitrary classes, which fail in their own ways
        raise ConfigError(
            f"{cfg.filename}: {loader}.dataset can't be built: {first_line(error)}"
        ) from error


def look(cfg: Config, dataset: Any, index: int, visualizer: Any) -> Look:
    """Send an item through the pipeline and draw it; a ConfigError if the pipeline fails."""
    try:
        item = dataset[index]
    except Exception as error:  # a pipeline is made of arbitrary classes
        raise ConfigError(
            f"{cfg.filename}: the pipeline fails on item {index}: {first_line(error)}"
        ) from error
    sample, image = item["data_samples"], visible(item["inputs"])
    names = visualizer.dataset_meta["classes"]
    if "gt_label" in sample:
        contents = {names[label]: 1 for label in sample.gt_label.tolist()}
        # OpenCV writes on whole arrays alone
        drawn = np.ascontiguousarray(enlarge(image, enlargement(image)))
        text, font = ", ".join(contents), cv2.FONT_HERSHEY_SIMPLEX
        for color, width in (((0, 0, 0), 5), ((255, 255, 255), 2)):
            cv2.putText(drawn, text, (8, 28), font, 0.9, color, width)
    else:
        drawn = draw(visualizer, image, sample, ground_truth=True)
        if "gt_instances" in sample:
            labels = sample.gt_instances.labels
        else:
            labels = sample.gt_sem_seg.data.flatten().long()
        counts = torch.bincount(labels[labels < len(names)], minlength=len(names)).tolist()
        contents = {name: n for name, n in zip(names, counts, strict=True) if n}
    path = sample.metainfo.get("img_path")
    return Look(index, path, image.shape[1::-1], drawn, contents)


def fit(image: Array, side: int) -> Array:
    """Fit an image into a gray square: (H, W, 3) -> (side, side, 3)."""
    scale = side / max(image.shape[:2])
    width, height = (max(1, round(n * scale)) for n in image.shape[1::-1])
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    out = np.full((side, side, 3), 238, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    out[top : top + height, left : left + width] = image
    return out


def draw_grid(looks: Sequence[Look]) -> Array:
    """Put each item next to the file it comes from, two items per row; (H, W, 3), BGR."""
    cells = []
    for found in looks:
        file = np.full((CELL, CELL, 3), 238, np.uint8)
        if found.path is not None:
            file = fit(read_image(found.path), CELL)
        cells.append(np.hstack([file, fit(found.drawn, CELL)]))
    if len(cells) % 2:
        cells.append(np.full_like(cells[0], 255))
    gap = np.full((CELL, 12, 3), 255, np.uint8)
    rows = [np.hstack([a, gap, b]) for a, b in zip(cells[::2], cells[1::2], strict=True)]
    return np.vstack(rows)


def run(cfg: Config, split: str, number: int, out: Path, seed: int = 0) -> list[Look]:
    """Draw the first items of a dataset as its pipeline gives them to the model.

    Below `out`: INDEX_NAME.png each, and grid.png with all next to their files.

    Args:
        split: train, val or test.
        number: the most items.
        seed: of the augmentations.

    Raises:
        ConfigError: see `build_dataset` and `look`; or the dataset is empty, or `out` can't be
            written.
    """
    set_random_seed(seed)
    dataset = build_dataset(cfg, split)
    if not len(dataset):
        raise ConfigError(f"{cfg.filename}: {split}_dataloader.dataset has no items")
    meta = dataset.metainfo
    visualizer = build_visualizer(cfg, with_palette(tuple(meta["classes"]), meta.get("palette")))
    with writing(f"--out {out}"):
        make_folder(out)
        looks = [look(cfg, dataset, i, visualizer) for i in range(min(number, len(dataset)))]
        for found in looks:
            name = Path(found.path).stem if found.path is not None else "mixed"
            write_image(out / f"{found.index:05}_{name}.png", found.drawn)
        write_image(out / "grid.png", draw_grid(looks))
    return looks
