"""Export models to ONNX, OpenVINO and torch.export, and check what was written.

What is exported takes images as they are, (B, 3, H, W), RGB, 0 to 255, of any size. What can't be
traced with an open size, or needs a loop over detections, is written here a second time with the
trained layers of the model.
"""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from torch.export import Dim

from ...engine.preflight import check_files, check_settings
from ...models.fuse import fuse
from ...utils.cli import writing
from ...utils.config import iter_leaf_datasets, task_of
from ...utils.errors import ConfigError, name_failure
from ..predictor import Predictor
from .accuracy import Accuracy, CalibrationImages, measure, refuse_loss
from .comparison import check
from .graphs import Features, Graph, Segmentor, with_open_size
from .layers import for_runtimes
from .mask_rcnn import MaskRCNN
from .runtimes import ABOUT, RUNTIMES

__all__ = ["ABOUT", "RUNTIMES", "Exported", "kind_of", "run"]

GRAPHS: dict[str, Callable[[Any], Graph]] = {
    "features": Features, "segmentor": Segmentor, "mask_rcnn": MaskRCNN
}  # fmt: skip
# The kind of a model's class, if this part of it is of one of these classes.
WHOLE = {
    "EncoderDecoder": ("segmentor", "decode_head", ("FPNHead", "UPerHead")),
    "MaskRCNN": ("mask_rcnn", "roi_head", ("StandardRoIHead",)),
}
# Steps of a test pipeline that a program can repeat from `describe`.
STEPS = ("LoadImageFromFile", "LoadAnnotations", "Resize", "ResizeToMultiple",
         "PackDetInputs", "PackSegInputs", "PackInputs")  # fmt: skip


def kind_of(cfg: Config, part: str) -> str:
    """Return which of `GRAPHS` a config is exported by; a ConfigError if the whole has none."""
    if part == "features":
        return "features"
    task_of(cfg)
    model = cfg.model
    if (model.get("test_cfg") or {}).get("mode", "whole") != "whole":
        raise ConfigError(
            f"{cfg.filename}: model.test_cfg.mode is {model.test_cfg.mode!r}, and a file predicts "
            "whole images: add --cfg-options model.test_cfg.mode=whole, or --part features"
        )
    if model.get("data_preprocessor", {}).get("test_cfg"):
        raise ConfigError(
            f"{cfg.filename}: model.data_preprocessor.test_cfg pads images, which a file does "
            "not; take it out and add ResizeToMultiple to the test pipeline, or --part features"
        )
    if model.type in WHOLE:
        kind, name, heads = WHOLE[model.type]
        if model[name].type in heads:
            return kind
    raise ConfigError(
        f"{cfg.filename}: {model.type} is not exported whole (Semantic FPN, UperNet and Mask R-CNN "
        "are); --part features exports backbone and neck"
    )


def describe(predictor: Predictor, kind: str) -> dict[str, Any]:
    """Describe a file to its users; a ConfigError if the test pipeline does more than resize."""
    _, dataset = next(iter_leaf_datasets(predictor.cfg.test_dataloader.dataset, ""))
    resize: list[dict[str, Any]] = []
    for step in dataset["pipeline"]:
        name = step["type"].rpartition(".")[2]
        if name not in STEPS and kind != "features":
            raise ConfigError(
                f"{predictor.cfg.filename}: the test pipeline has {name}, which whoever runs the "
                "file would have to repeat; take it out, or export --part features"
            )
        if name == "Resize" and "scale_factor" in step:
            resize.append({"factor": float(step["scale_factor"])})
        elif name == "Resize":
            scale = list(step["scale"])
            resize.append({"scale": scale, "keep_ratio": bool(step.get("keep_ratio", False))})
        elif name == "ResizeToMultiple":
            resize.append({"multiple": int(step["size_divisor"])})
    return {
        "kind": kind,
        "classes": list(predictor.classes),
        "palette": [list(color) for color in predictor.palette],
        "resize": resize,
    }


class Exported(NamedTuple):
    """What was found out about a file.

    difference: the largest one in fp32, relative, see `check`. accuracy: see `measure`.
    """

    difference: float
    accuracy: Accuracy


def run(
    predictor: Predictor,
    path: Path,
    part: str = "whole",
    precision: str = "fp32",
    max_drop: float | None = None,
) -> Exported:
    """Export a model and check it before it is written.

    Args:
        predictor: on the CPU.
        path: .onnx, .xml for OpenVINO, or .pt2 for torch.export.
        part: whole, or features for backbone and neck.
        precision: one of the runtime's `precisions`.
        max_drop: by how much mAP, mIoU or top-1, 0 to 1, may be less than the model's own; None
            measures neither.

    Raises:
        ConfigError: the model can't be exported, differs or loses too much, packages or data are
            missing, or the file can't be written.
    """
    cfg, runtime = predictor.cfg, RUNTIMES[path.suffix]
    kind = kind_of(cfg, part)
    about: dict[str, Any] = {**describe(predictor, kind), "precision": precision}
    runtime.check(precision)
    if precision != "fp32" or max_drop is not None:
        check_measurable(cfg, part, precision)
    model = for_runtimes(with_open_size(fuse(copy.deepcopy(predictor.model))))
    graph = GRAPHS[kind](model).eval()
    accuracy: Accuracy = {}
    with warnings.catch_warnings(), torch.no_grad():
        # of PyTorch, about its own parts
        warnings.simplefilter("ignore")
        with name_failure(f"{cfg.filename} can't be exported"):
            exported = runtime.convert(trace(graph, path.suffix))
        difference = check(predictor, graph, runtime.run(exported, "fp32"))
        if precision == "int8":
            with name_failure(f"{cfg.filename} can't be quantized"):
                exported = runtime.quantize(exported, CalibrationImages(cfg))
        if max_drop is not None:
            accuracy = measure(predictor, graph.outputs, runtime.run(exported, precision))
            refuse_loss(accuracy, max_drop)
            about["accuracy"] = accuracy
    with writing(path):
        runtime.save(exported, path, about)
    return Exported(difference, accuracy)


def check_measurable(cfg: Config, part: str, precision: str) -> None:
    """Make sure that there is what the accuracy of a file is measured by, before anything runs."""
    if part == "features":
        raise ConfigError(
            "--part features is exported in fp32 and without --max-drop: maps have no accuracy"
        )
    check_settings(cfg, "test")
    check_files(cfg, ("test_dataloader", *["train_dataloader"] * (precision == "int8")))


def trace(graph: Graph, ending: str) -> Any:
    """Trace a graph with open axes as a program of torch.export, or else of ONNX."""
    # a size of which no map has a single position, which would be assumed of all images
    images = torch.rand(2 if graph.batch else 1, 3, 160, 288) * 255
    axes = {2: "height", 3: "width"} | ({0: "batch"} if graph.batch else {})
    if ending == ".pt2":
        dynamic = (dict.fromkeys(axes, Dim.DYNAMIC),)
        return torch.export.export(graph, (images,), dynamic_shapes=dynamic)
    return torch.onnx.export(
        graph,
        (images,),
        dynamo=True,
        verbose=False,
        dynamic_shapes=(axes,),
        input_names=["images"],
        output_names=list(graph.outputs) or None,
    )
