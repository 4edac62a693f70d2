"""Predict for images in memory: what infer, similarity_map, export and the web page share."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import TRANSFORMS
from PIL import Image

from ..utils.config import iter_leaf_datasets, task_of
from ..utils.errors import ConfigError, name_failure
from ..visualization.images import convert_image
from . import tiles
from .model import load_model
from .result import Result

# What a prediction is made for: an array (H, W, 3), RGB, uint8, a PIL image, or a path.
ImageLike = np.ndarray | Image.Image | str | Path


class Predictor:
    """A model with the test pipeline of its config; `fcvit_mm.load` makes one.

    Args:
        cfg, checkpoint, device: see `apis.model.load_model`.

    Attributes:
        task: detection, segmentation or classification.
        classes: names, in the order of labels.
        palette: one color per class, RGB, 0 to 255.
    """

    def __init__(self, cfg: Config, checkpoint: str, device: torch.device | None = None) -> None:
        self.cfg = cfg
        self.task = task_of(cfg)
        self.model = load_model(cfg, checkpoint, device)
        self.classes: tuple[str, ...] = self.model.dataset_meta["classes"]
        self.palette: list[tuple[int, ...]] = self.model.dataset_meta["palette"]
        _, dataset = next(iter_leaf_datasets(cfg.test_dataloader.dataset, ""))
        readers = ("LoadImageFromFile", "LoadAnnotations")
        steps = [step for step in dataset["pipeline"] if not step["type"].endswith(readers)]
        self.pipeline = Compose([TRANSFORMS.build(step) for step in steps])

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        images: ImageLike,
        batch_size: int = 8,
        slice: int | None = None,
        overlap: float = 0.2,
        threshold: float = 0.0,
    ) -> Result: ...
    @overload
    def __call__(
        self,
        images: Sequence[ImageLike],
        batch_size: int = 8,
        slice: int | None = None,
        overlap: float = 0.2,
        threshold: float = 0.0,
    ) -> list[Result]: ...
    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        batch_size: int = 8,
        slice: int | None = None,
        overlap: float = 0.2,
        threshold: float = 0.0,
    ) -> Result | list[Result]:
        """Predict for an image, or for a list of images of any sizes.

        Args:
            images: each an array (H, W, 3), RGB, uint8, a PIL image, or the path of a file.
            batch_size: most images of a list, or tiles of one, that the model gets at once; those
                that the pipeline brings to different sizes are never in one batch, so that none is
                padded for another and each is predicted as if alone.
            slice: side of square tiles, in pixels of the image; each is predicted as if an image
                of its own, and what is found is joined. For images much larger than those that the
                model was trained with.
            overlap: of neighboring tiles, relative to their side, between 0 and 1. Objects are
                joined by what both tiles show of them.
            threshold: least score of a detection.

        Returns:
            A `Result`, or a list with one per image.

        Raises:
            ConfigError: what is given is no such image, the pipeline does not take it, or a
                classifier is to predict in tiles.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}, not at least 1")
        several = isinstance(images, (list, tuple))
        given: Sequence[Any] = images if several else [images]  # type: ignore[assignment]
        if slice is not None:
            arrays = map(convert_image, given)
            found = [tiles.predict(self, array, slice, overlap, threshold, batch_size)
                     for array in arrays]  # fmt: skip
        else:
            starts = range(0, len(given), batch_size)
            batches = [self._predict(given[start : start + batch_size]) for start in starts]
            found = [result for batch in batches for result in batch]
            if self.task == "detection":
                found = [result.select(threshold) for result in found]
        return found if several else found[0]

    def _predict(self, images: Sequence[Any]) -> list[Result]:
        arrays = [convert_image(image) for image in images]
        samples = self.predict_samples([array[..., ::-1] for array in arrays])
        return [
            Result.from_sample(array, sample, self.classes, self.palette)
            for array, sample in zip(arrays, samples, strict=True)
        ]

    def prepare(self, image: np.ndarray) -> dict[str, Any]:
        """Send an image (H, W, 3), BGR, through the pipeline: inputs (3, h, w), data_samples.

        Raises:
            ConfigError: the pipeline does not take this image.
        """
        height, width = size = image.shape[:2]
        what = f"the pipeline of {self.cfg.filename} does not take an image of {width}x{height}"
        with name_failure(what):
            # as OpenMMLab's step that reads a file would hand it on
            image = np.ascontiguousarray(image)
            given = dict(img=image, img_id=0, img_path=None, img_shape=size, ori_shape=size)
            return self.pipeline(given)

    @torch.no_grad()
    def predict_samples(self, images: Sequence[np.ndarray]) -> list[Any]:
        """Predict for images (H, W, 3), BGR, 0 to 255, in one batch per size after the pipeline.

        Returns:
            One data sample per image, on the CPU, at the image's size: pred_instances, pred_sem_seg
            or pred_score.
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
