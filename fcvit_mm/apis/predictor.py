"""Predict for images in memory: what infer, similarity_map, export and the web page share."""

from collections import defaultdict
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import TRANSFORMS

from ..utils.config import IGNORED, iter_leaf_datasets, task_of
from ..utils.errors import ConfigError, name_failure
from ..visualization.draw import build_visualizer, draw
from .model import load_model


class Predictor:
    """A model with the test pipeline of its config, for images in memory.

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
        self.visualizer = build_visualizer(cfg, self.model.dataset_meta)
        _, dataset = next(iter_leaf_datasets(cfg.test_dataloader.dataset, ""))
        readers = ("LoadImageFromFile", "LoadAnnotations")
        steps = [step for step in dataset["pipeline"] if not step["type"].endswith(readers)]
        self.pipeline = Compose([TRANSFORMS.build(step) for step in steps])

    def prepare(self, image: np.ndarray) -> dict[str, Any]:
        """Send an image (H, W, 3), BGR, through the pipeline: inputs (3, h, w), data_samples.

        Raises:
            ConfigError: the pipeline does not take this image.
        """
        height, width = size = image.shape[:2]
        what = f"the pipeline of {self.cfg.filename} does not take an image of {width}x{height}"
        with name_failure(what):
            # as OpenMMLab's step that reads a file would hand it on
            given = dict(img=image, img_id=0, img_path=None, img_shape=size, ori_shape=size)
            return self.pipeline(given)

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> list[Any]:
        """Predict for images (H, W, 3), BGR, 0 to 255, of any sizes.

        Those that the pipeline brings to one size are a batch, so that none is padded for another
        and each is predicted as if alone.

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

    def labels_of(self, names: Sequence[str] | None) -> list[int]:
        """Return the labels of some classes, or of all; a ConfigError for an unknown one."""
        if names is None:
            # names may occur twice
            return list(range(len(self.classes)))
        for name in names:
            if name not in self.classes:
                (nearest,) = get_close_matches(name, self.classes, n=1, cutoff=0)
                raise ConfigError(f"the model has no class {name!r}; did you mean {nearest!r}?")
        return [self.classes.index(name) for name in names]

    def select(self, sample: Any, threshold: float, labels: Sequence[int]) -> Any:
        """Return a copy of a data sample that holds only what is to be shown.

        Args:
            sample: of this model, left as it is.
            threshold: least score of a detection, 0 to 1.
            labels: classes to keep; other pixels of a label map become `IGNORED`.
        """
        sample, wanted = sample.clone(), torch.tensor(list(labels))
        if "pred_instances" in sample:
            found = sample.pred_instances
            shown = (found.scores >= threshold) & torch.isin(found.labels, wanted)
            sample.pred_instances = found[shown]
        if "pred_sem_seg" in sample:
            found = sample.pred_sem_seg.data
            kept = found.where(torch.isin(found, wanted), IGNORED)
            sample.pred_sem_seg = type(sample.pred_sem_seg)(data=kept)
        return sample

    def draw(self, image: np.ndarray, sample: Any) -> np.ndarray:
        """Draw the result of `select` over its image (H, W, 3), BGR; see `visualization.draw`."""
        return draw(self.visualizer, image, sample)
