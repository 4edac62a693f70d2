"""A trained model that takes images: what infer, similarity_map, export and the page share.

`load_model` builds what a config says and fills it completely from a checkpoint, or says why not;
a `Predictor` adds the config's test pipeline and gives data samples of OpenMMLab.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, TRANSFORMS

from ..checkpoint.mmengine_backends import load_from_file
from ..engine.build import IGNORED, build_model, find_device, task_of
from ..models.weights import check_fit, model_weights
from ..utils.cli import add_cfg_options
from ..utils.config import iter_leaf_datasets
from ..utils.errors import CheckpointError, ConfigError, first_line
from ..visualization.draw import build_visualizer, draw


def load_model(cfg: Config, checkpoint: str, device: torch.device | None = None) -> Any:
    """Build the model of a config, filled completely from a checkpoint, in evaluation mode.

    Args:
        cfg: a config; changed in place as this machine needs it.
        checkpoint: path or http(s) URL.
        device: see `find_device`.

    Returns:
        The model, with `dataset_meta` of the dataset that it was trained on: classes, palette.

    Raises:
        ConfigError: the config can't be built.
        CheckpointError: the file can't be read, or does not fit the model.
    """
    content = load_from_file(checkpoint)
    model = build_model(cfg)
    weights = model_weights(content, model.state_dict())
    check_fit(checkpoint, weights, model.state_dict())
    model.load_state_dict(weights)
    # where OpenMMLab's own inferencers keep it
    model.dataset_meta = _dataset_meta(cfg, content)
    return model.to(device or find_device()).eval()


def _dataset_meta(cfg: Config, content: dict[str, Any]) -> dict[str, Any]:
    """Classes and palette: the file's, whose names OpenMMLab 1 and 2 write differently, or else
    those of the config's dataset."""
    # what a file says of itself may be anything
    meta = _as_dict(content.get("meta"))
    meta = _as_dict(meta.get("dataset_meta")) or meta
    found = {key.lower(): value for key, value in meta.items() if isinstance(key, str)}
    if not _are_names(found.get("classes")):
        found.pop("classes", None)
    datasets = iter_leaf_datasets((cfg.get("test_dataloader") or {}).get("dataset"), "dataset")
    for _, node in datasets:
        known = dict(getattr(DATASETS.get(node["type"]), "METAINFO", {}))
        known |= node.get("metainfo") or {}
        for key in ("classes", "palette"):
            if not found.get(key) and known.get(key):
                found[key] = known[key]
    if not found.get("classes"):
        raise CheckpointError(
            f"neither the checkpoint nor {cfg.filename} names the classes; add "
            "test_dataloader.dataset.metainfo=dict(classes=(...)) to the config"
        )
    classes = found["classes"]
    classes = (classes,) if isinstance(classes, str) else tuple(classes)
    return with_palette(classes, found.get("palette"))


def _as_dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _are_names(value: Any) -> bool:
    is_list = isinstance(value, list | tuple)
    return isinstance(value, str) or (is_list and all(isinstance(name, str) for name in value))


def _are_colors(value: Any, number: int) -> bool:
    """Whether a palette has this many colors, RGB, 0 to 255, or more."""
    try:
        colors = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        return False
    is_table = colors.ndim == 2 and colors.shape[1] == 3 and len(colors) >= number
    return is_table and bool(((colors >= 0) & (colors <= 255)).all())


def with_palette(classes: tuple[str, ...], palette: Any) -> dict[str, Any]:
    """Classes and a color each; others than given where there is none for each class."""
    if not _are_colors(palette, len(classes)):
        palette = distinct_colors(len(classes))
    return {"classes": classes, "palette": [tuple(map(int, color)) for color in palette]}


def distinct_colors(n: int) -> list[tuple[int, ...]]:
    """n colors, RGB, 0 to 255, that lie apart: hues by the golden ratio, the same each time."""
    hues = (np.arange(n) * 0.618034 * 180 % 180).astype(np.uint8)
    hsv = np.stack([hues, np.full(n, 190, np.uint8), np.full(n, 230, np.uint8)], 1)[None]
    return [tuple(map(int, c)) for c in cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a trained model."""
    parser.add_argument("config", help="path of a config file")
    parser.add_argument("checkpoint", help="path or URL of a checkpoint")
    parser.add_argument("--device", help="such as cuda:1 or cpu (default: the GPU if there is one)")
    add_cfg_options(parser)


class Predictor:
    """A model with the test pipeline of its config, for images in memory.

    Args:
        cfg, checkpoint, device: see `load_model`.

    Attributes:
        task: detection, segmentation or classification.
        classes: names, in the order of labels.
        palette: a color a class, RGB, 0 to 255.
    """

    def __init__(self, cfg: Config, checkpoint: str, device: torch.device | None = None) -> None:
        self.cfg = cfg
        self.task = task_of(cfg)
        self.model = load_model(cfg, checkpoint, device)
        self.classes: tuple[str, ...] = self.model.dataset_meta["classes"]
        self.palette: list[tuple[int, ...]] = self.model.dataset_meta["palette"]
        self.pipeline = self._pipeline()
        self.visualizer = build_visualizer(cfg, self.model.dataset_meta)

    def _pipeline(self) -> Compose:
        """The test pipeline, but for an image in memory that has no annotations."""
        _, dataset = next(
            iter_leaf_datasets(self.cfg.test_dataloader.dataset, "test_dataloader.dataset")
        )
        steps = [
            step
            for step in dataset["pipeline"]
            if not step["type"].endswith(("LoadImageFromFile", "LoadAnnotations"))
        ]
        return Compose([TRANSFORMS.build(step) for step in steps])

    def prepare(self, image: np.ndarray) -> dict[str, Any]:
        """What the pipeline makes of an image (H, W, 3), BGR: inputs (3, h, w), data_samples.

        Raises:
            ConfigError: the pipeline does not take this image.
        """
        try:
            # as OpenMMLab's step that reads a file would hand it on
            shapes = {"img_shape": image.shape[:2], "ori_shape": image.shape[:2]}
            return self.pipeline({"img": image, "img_id": 0, "img_path": None, **shapes})
        except Exception as error:  # a pipeline is made of arbitrary classes
            height, width = image.shape[:2]
            raise ConfigError(
                f"the pipeline of {self.cfg.filename} does not take an image of {width}x{height}: "
                f"{first_line(error)}"
            ) from error

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> list[Any]:
        """Predict for images (H, W, 3), BGR, 0 to 255, of any sizes.

        Those that the pipeline brings to one size are a batch, so that none is padded for another
        and each is predicted as if alone.

        Returns:
            A data sample each, on the CPU, at the size of the image: pred_instances,
            pred_sem_seg or pred_score.
        """
        groups = defaultdict(list)
        for i, image in enumerate(images):
            data = self.prepare(image)
            groups[data["inputs"].shape].append((i, data))
        samples: list[Any] = [None] * len(images)
        for group in groups.values():
            batch = {key: [data[key] for _, data in group] for key in ("inputs", "data_samples")}
            for (i, _), sample in zip(group, self.model.test_step(batch), strict=True):
                samples[i] = sample.cpu()
        return samples

    def labels_of(self, names: Sequence[str] | None) -> list[int]:
        """The labels of some classes; of all without names.

        Raises:
            ConfigError: there is no such class.
        """
        if names is None:
            return list(range(len(self.classes)))
        for name in names:
            if name not in self.classes:
                (nearest,) = get_close_matches(name, self.classes, n=1, cutoff=0)
                raise ConfigError(
                    f"the model has no class {name!r}; the nearest name is {nearest!r}"
                )
        return [self.classes.index(name) for name in names]

    def select(self, sample: Any, threshold: float, labels: Sequence[int]) -> Any:
        """A data sample with what is to be shown alone.

        Args:
            sample: of this model, left as it is.
            threshold: least score of a detection, 0 to 1.
            labels: classes to keep; other pixels of a label map become `IGNORED`.
        """
        sample = sample.clone()
        wanted = torch.tensor(list(labels))
        if "pred_instances" in sample:
            found = sample.pred_instances
            sample.pred_instances = found[
                (found.scores >= threshold) & torch.isin(found.labels, wanted)
            ]
        if "pred_sem_seg" in sample:
            found = sample.pred_sem_seg.data
            kept = found.where(torch.isin(found, wanted), IGNORED)
            sample.pred_sem_seg = type(sample.pred_sem_seg)(data=kept)
        return sample

    def draw(self, image: np.ndarray, sample: Any) -> np.ndarray:
        """Draw what `select` gave over its image (H, W, 3), BGR; see `visualization.draw`."""
        return draw(self.visualizer, image, sample)
