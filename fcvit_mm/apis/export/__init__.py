"""Export models to ONNX, OpenVINO and torch.export, and check what was written.

What is exported takes images as they are, (B, 3, H, W), RGB, 0 to 255, of any size. What can't be
traced with an open size, or needs a loop over detections, is written here a second time with the
trained layers of the model.
"""

import copy
import gc
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from .graphs import Classifier, Features, Graph, Segmentor, with_open_size
from .layers import for_runtimes
from .mask_rcnn import MaskRCNN
from .retinanet import RetinaNet
from .runtimes import ABOUT, RUNTIMES
from .transformers import DINO, Mask2Former, MaskSegmentor

__all__ = ["ABOUT", "RUNTIMES", "Exported", "kind_of", "run"]

GRAPHS: dict[str, Callable[[Any], Graph]] = {
    "features": Features, "segmentor": Segmentor, "mask_segmentor": MaskSegmentor,
    "classifier": Classifier, "mask_rcnn": MaskRCNN, "retinanet": RetinaNet, "dino": DINO,
    "mask2former": Mask2Former,
}  # fmt: skip
# The kind of a model's class, by the class of this part of it.
WHOLE: dict[str, tuple[str, dict[str, str]]] = {
    "EncoderDecoder": (
        "decode_head",
        {"FPNHead": "segmentor", "UPerHead": "segmentor", "Mask2FormerHead": "mask_segmentor"},
    ),
    "ImageClassifier": ("head", {"LinearClsHead": "classifier"}),
    "MaskRCNN": ("roi_head", {"StandardRoIHead": "mask_rcnn"}),
    "CascadeRCNN": ("roi_head", {"CascadeRoIHead": "mask_rcnn"}),
    "RetinaNet": ("bbox_head", {"RetinaHead": "retinanet"}),
    "DINO": ("bbox_head", {"DINOHead": "dino"}),
    "Mask2Former": ("panoptic_head", {"Mask2FormerHead": "mask2former"}),
}
# Steps of a test pipeline that a program can repeat from `describe`.
STEPS = ("LoadImageFromFile", "LoadAnnotations", "Resize", "ResizeToMultiple", "ResizeEdge",
         "CenterCrop", "PackDetInputs", "PackSegInputs", "PackInputs")  # fmt: skip
# What stands in ONNX's way, in the message of PyTorch's exporter.
LACKING = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'")


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
    preprocessor = model.get("data_preprocessor", {})
    if preprocessor.get("test_cfg"):
        raise ConfigError(
            f"{cfg.filename}: model.data_preprocessor.test_cfg pads images, which a file does "
            "not; take it out and add ResizeToMultiple to the test pipeline, or --part features"
        )
    name, kinds = WHOLE.get(model.type, ("", {}))
    kind = kinds.get(model.get(name, {}).get("type"))
    if kind is None:
        raise ConfigError(
            f"{cfg.filename}: {model.type} with these heads is not exported whole (Semantic FPN, "
            "UperNet, Mask2Former, Mask R-CNN, Cascade Mask R-CNN, RetinaNet, DINO and linear "
            "classifiers are); --part features exports backbone and neck"
        )
    if kind == "dino" and preprocessor.get("pad_size_divisor", 1) > 1:
        raise ConfigError(
            f"{cfg.filename}: DINO is exported for images that are not padded: add --cfg-options "
            "model.data_preprocessor.pad_size_divisor=1"
        )
    if kind == "mask2former" and (
        model.panoptic_head.num_stuff_classes or model.test_cfg.get("panoptic_on", True)
    ):
        raise ConfigError(
            f"{cfg.filename}: Mask2Former is exported as an instance or a semantic segmentor, not "
            "a panoptic one; --part features exports its backbone"
        )
    return kind


def describe(predictor: Predictor, kind: str) -> dict[str, Any]:
    """Describe a file to its users; a ConfigError if the test pipeline does more than resize."""
    _, dataset = next(iter_leaf_datasets(predictor.cfg.test_dataloader.dataset, ""))
    resize: list[dict[str, Any]] = []
    for step in dataset["pipeline"]:
        name = step["type"].rpartition(".")[2]
        if kind != "features" and (name not in STEPS or step.get("edge", "short") != "short"):
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
        elif name == "ResizeEdge":
            how = {key: step[key] for key in ("backend", "interpolation") if key in step}
            resize.append({"short": int(step["scale"]), **how})
        elif name == "CenterCrop":
            size = step["crop_size"]
            resize.append({"crop": [size, size] if isinstance(size, int) else list(size)})
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
        with name_failure(f"{cfg.filename} can't be exported"), name_operator(), uncollected():
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


@contextmanager
def name_operator() -> Iterator[None]:
    """Say which operator ONNX lacks where the exporter's message is pages long."""
    try:
        yield
    except torch.onnx.OnnxExporterError as error:
        found = LACKING.search(str(error))
        if not found:
            raise
        raise ConfigError(
            f"ONNX has no form of PyTorch's operator {found[1]}; export to .pt2, which needs none"
        ) from error


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect no garbage: it would be searched for in graphs of thousands of nodes, all in use."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def trace(graph: Graph, ending: str) -> Any:
    """Trace a graph with open axes as a program of torch.export, or else of ONNX.

    The time goes with the number of operators, each of which is looked at with sizes as formulas.
    """
    images = torch.rand(2 if graph.batch else 1, 3, *graph.traced) * 255
    axes = {2: "height", 3: "width"} | ({0: "batch"} if graph.batch else {})
    dynamic = (dict.fromkeys(axes, Dim.DYNAMIC),)
    program: Any = torch.export.export(graph, (images,), dynamic_shapes=dynamic)
    if ending == ".pt2":
        return program
    # by itself, it would trace again by way of bytecode, and take as long for a few patterns
    program = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        optimize=False,
        dynamic_shapes=(axes,),
        input_names=["images"],
        output_names=list(graph.outputs) or None,
    )
    simplify(program.model)
    return program


def simplify(model: Any) -> None:
    """Compute what is constant in an ONNX graph, and drop what occurs twice or nowhere, in place.

    The patterns that runtimes fuse by themselves are left to them.
    """
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass
    from onnxscript import optimizer

    optimizer.inline(model)
    optimizer.fold_constants(model, onnx_shape_inference=True)
    optimizer.remove_unused_nodes(model)
    CommonSubexpressionEliminationPass()(model)
