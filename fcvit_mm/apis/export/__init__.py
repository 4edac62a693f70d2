"""Export models to ONNX and torch.export, and check what was written.

What is exported takes images as they are, (B, 3, H, W), RGB, 0 to 255, of any size. What can't be
traced with an open size, or needs a loop over detections, is written here a second time with the
trained layers of the model.
"""

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor
from torch.export import Dim

from ...models.fuse import fuse
from ...utils.cli import require, writing
from ...utils.config import iter_leaf_datasets, task_of
from ...utils.errors import ConfigError, name_failure
from ...utils.files import SHA256_KEY, SHA256_PLACEHOLDER, atomic_write, embed_sha256
from ..predictor import Predictor
from .comparison import as_list, check
from .graphs import Features, Graph, Segmentor, with_open_size
from .mask_rcnn import MaskRCNN

# Where a file says what it is, see `describe`.
ABOUT = "fcvit_mm.json"
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


def run(predictor: Predictor, path: Path, part: str = "whole") -> float:
    """Export a model and check what was written, before it gets its name.

    Args:
        predictor: on the CPU.
        path: .onnx, or .pt2 for torch.export.
        part: whole, or features for backbone and neck.

    Returns:
        The largest relative difference, see `check`.

    Raises:
        ConfigError: the model can't be exported, differs, packages are missing, or the file can't
            be written.
    """
    kind = kind_of(predictor.cfg, part)
    about = json.dumps(describe(predictor, kind))
    if path.suffix == ".onnx":
        for package in ("onnx", "onnxruntime", "onnxscript"):
            require(package, "export")
    graph = GRAPHS[kind](with_open_size(fuse(copy.deepcopy(predictor.model)))).eval()
    save = save_onnx if path.suffix == ".onnx" else save_program
    with writing(path), atomic_write(path) as partial, warnings.catch_warnings(), torch.no_grad():
        # of PyTorch, about its own parts
        warnings.simplefilter("ignore")
        with name_failure(f"{predictor.cfg.filename} can't be exported"):
            program = trace(graph, path.suffix)
        return check(predictor, graph, save(program, partial, about))


def trace(graph: Graph, ending: str) -> Any:
    """Trace a graph with open axes as a program of torch.export, or for .onnx of ONNX."""
    # a size of which no map has a single position, which would be assumed of all images
    images = torch.rand(2 if graph.batch else 1, 3, 160, 288) * 255
    axes = {2: "height", 3: "width"} | ({0: "batch"} if graph.batch else {})
    if ending != ".onnx":
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


def save_program(program: Any, path: Path, about: str) -> Callable[[Tensor], list[Tensor]]:
    """Write a file of torch.export, and return the program that is read back from it."""
    torch.export.save(program, path, extra_files={ABOUT: about})
    loaded = torch.export.load(path).module()
    return lambda images: as_list(loaded(images))


def save_onnx(program: Any, path: Path, about: str) -> Callable[[Tensor], list[Tensor]]:
    """Write an ONNX file with its SHA-256 inside, and return what ONNX Runtime makes of it."""
    import onnxruntime

    program.model.metadata_props.update({ABOUT: about, SHA256_KEY: SHA256_PLACEHOLDER})
    program.save(path, external_data=False)
    path.write_bytes(embed_sha256(path.read_bytes()))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: [
        torch.from_numpy(output) for output in session.run(None, {"images": images.numpy()})
    ]
