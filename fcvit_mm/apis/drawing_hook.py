"""Draw what is predicted while a test measures it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..utils.cli import writing
from ..visualization.images import convert_image, write_image
from .model import with_palette
from .result import Result

# Fields of a data sample that say what the ground truth is.
GROUND_TRUTH = ("gt_instances", "gt_sem_seg", "gt_label")


@HOOKS.register_module()
class DrawingHook(Hook):
    """Write an image for each one that is tested: the ground truth, and what was predicted.

    They lie side by side, as `Result.draw` draws them, under the names of the file and its folder.

    Args:
        out: folder of the images.
        threshold: least score of a detection, 0 to 1.
    """

    def __init__(self, out: str, threshold: float = 0.3) -> None:
        self.out, self.threshold = Path(out), threshold

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Sequence[Any] | None = None
    ) -> None:
        """Draw the images of a batch."""
        known = runner.test_dataloader.dataset.metainfo
        meta = with_palette(tuple(known["classes"]), known.get("palette"))
        for sample in outputs or ():
            path, image = Path(sample.img_path), convert_image(sample.img_path)
            found = Result.from_sample(image, sample, **meta)
            if found.task == "detection":
                found = found.select(self.threshold)
            drawn = [found.draw()]
            if any(field in sample for field in GROUND_TRUTH):
                drawn.insert(0, Result.from_sample(image, sample, **meta, kind="gt").draw())
            with writing(f"--show-dir {self.out}"):
                write_image(self.out / path.parent.name / path.name, np.hstack(drawn)[..., ::-1])


def draw_predictions(cfg: Config, directory: str) -> None:
    """Have a test draw every image into a directory (`--show-dir`), in place."""
    hook = {"type": "DrawingHook", "out": directory}
    cfg.custom_hooks = [*(cfg.get("custom_hooks") or []), hook]
