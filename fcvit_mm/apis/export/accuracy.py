"""Measure an exported model and the model itself, as `fcvit test` does; images to calibrate."""

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from ...utils.config import iter_leaf_datasets
from ...utils.errors import ConfigError, name_failure
from ..predictor import Predictor
from .runtimes import Run

# The metrics by which a model is judged: of boxes and masks, of label maps, of classes.
METRICS = re.compile(r"(^|[/_])(mAP|mIoU|top1)$")
# By the name of a metric its values, 0 to 1, of the `model` and of the `file`.
Accuracy = dict[str, dict[str, float]]
# How many images of the training set show the range of a layer's input.
CALIBRATION_IMAGES = 100


@torch.no_grad()
def measure(predictor: Predictor, outputs: Sequence[str], run: Run) -> Accuracy:
    """Measure the model and an exported one on the images of the config's test_dataloader.

    Args:
        outputs: names of what `run` returns.
        run: the exported model, images (1, 3, H, W), RGB, 0 to 255 -> outputs.

    Raises:
        ConfigError: the data can't be evaluated, or no metric of `METRICS`.
    """
    cfg = predictor.cfg
    init_default_scope(cfg.default_scope)
    with name_failure(f"{cfg.filename}: its test data can't be evaluated"), quiet():
        loader = Runner.build_dataloader(cfg.test_dataloader)
        evaluators = {key: Evaluator(cfg.test_evaluator) for key in ("model", "file")}
        for evaluator in evaluators.values():
            evaluator.dataset_meta = loader.dataset.metainfo
    with name_failure(f"{cfg.filename}: its test data can't be evaluated"):
        for batch in track(loader, "measuring", len(loader)):
            images = [image.flip(0)[None].float() for image in batch["inputs"]]
            samples = copy.deepcopy(batch["data_samples"])
            found = {
                "model": predictor.model.test_step(batch),
                "file": [
                    as_sample(predictor.model, dict(zip(outputs, run(image), strict=True)), sample)
                    for image, sample in zip(images, samples, strict=True)
                ],
            }
            for key, evaluator in evaluators.items():
                evaluator.process(data_samples=found[key], data_batch=batch)
        with quiet():
            values = {key: each.evaluate(len(loader.dataset)) for key, each in evaluators.items()}
    # MMSegmentation and MMPretrain give percents
    unit = 1 if predictor.task == "detection" else 100
    accuracy = {
        name: {key: float(values[key][name]) / unit for key in evaluators}
        for name in values["model"]
        if METRICS.search(name)
    }
    if not accuracy:
        raise ConfigError(
            f"{cfg.filename}: test_evaluator gives {', '.join(values['model']) or 'nothing'}, and "
            "none of mAP, mIoU and top1, by which an exported model is compared"
        )
    return accuracy


def refuse_loss(accuracy: Accuracy, most: float) -> None:
    """Raise a ConfigError if an exported model loses more than `most` of a metric."""
    for name, values in accuracy.items():
        if not values["model"] - values["file"] <= most:
            raise ConfigError(
                f"the exported model loses too much: its {name} is {values['file']:.4f}, the "
                f"model's own {values['model']:.4f}, and --max-drop allows {most:g}; nothing was "
                "written"
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Let neither MMEngine nor pycocotools say what they do."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel("WARNING")
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logger.setLevel(level)


def as_sample(model: Any, found: dict[str, Tensor], sample: Any) -> Any:
    """Put what a file found into the data sample of its image, at the image's own size."""
    if "logits" in found:
        return model.postprocess_result(found["logits"], [sample])[0]
    if "boxes" not in found:
        scores = found["scores"][0]
        return sample.set_pred_score(scores).set_pred_label(scores.argmax())
    if found["boxes"].ndim == 3:
        found = {name: output[0] for name, output in found.items()}
    boxes = found["boxes"] / torch.tensor(sample.scale_factor).repeat(2)
    instances = InstanceData(bboxes=boxes, scores=found["scores"], labels=found["labels"])
    if "masks" in found:
        threshold = model.roi_head.test_cfg.mask_thr_binary
        instances.masks = paste(found["masks"], boxes, sample.ori_shape, threshold)
    elif "mask_logits" in found:
        instances.masks = enlarge(found["mask_logits"], sample.img_shape, sample.ori_shape) > 0
    sample.pred_instances = instances
    return sample


def enlarge(logits: Tensor, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Resize logits (N, h, w), one per 4x4 pixels of an image of a size, to its original size."""
    # also of pixels that were padded
    whole = functional.interpolate(logits[None], scale_factor=4.0, mode="bilinear")
    whole = whole[..., : size[0], : size[1]]
    return functional.interpolate(whole, original, mode="bilinear")[0]


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Lay masks (N, h, w) over their boxes (N, 4) in an image: (N, height, width), bool."""
    # not at the head: only detectors need MMDetection
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    whole = torch.zeros(len(masks), *size, dtype=torch.bool)
    for i in range(len(masks)):
        part, (rows, columns) = _do_paste_mask(masks[i : i + 1, None], boxes[i : i + 1], *size)
        whole[i, rows, columns] = part[0] >= threshold
    return whole


class CalibrationImages(Sequence[np.ndarray]):
    """Images of the config's training set, prepared as for a test: (1, 3, H, W), RGB, 0 to 255.

    Always the same ones, chosen at random.
    """

    def __init__(self, cfg: Config) -> None:
        init_default_scope(cfg.default_scope)
        _, trained = next(iter_leaf_datasets(cfg.train_dataloader.dataset, ""))
        _, tested = next(iter_leaf_datasets(cfg.test_dataloader.dataset, ""))
        steps = [step for step in tested["pipeline"] if not step["type"].endswith("Annotations")]
        with name_failure(f"{cfg.filename}: its training data can't be loaded"), quiet():
            self.dataset = DATASETS.build({**trained, "pipeline": steps})
        number = min(CALIBRATION_IMAGES, len(self.dataset))
        self.chosen = np.random.default_rng(0).permutation(len(self.dataset))[:number]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: Any) -> Any:
        image = self.dataset[int(self.chosen[i])]["inputs"]
        return image.flip(0)[None].float().numpy()
