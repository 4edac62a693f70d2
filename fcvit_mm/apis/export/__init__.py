"""Models outside of Python: ONNX and torch.export, checked on the spot.

What is exported takes images as they are, (B, 3, H, W), RGB, 0 to 255, of any size; normalizing
and padding are inside. `EXPORTS` says what comes out. What cannot be traced with a size that is
left open, or needs a loop over detections, is written here a second time with the trained layers of
the model; `check` compares the file with the model's own predictions.
"""

import copy
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional
from torchvision.ops import nms

from ..datasets import shapes
from ..engine.build import task_of
from ..models.fuse import fuse
from ..utils.cli import require, writing
from ..utils.config import iter_leaf_datasets
from ..utils.errors import ConfigError, first_line
from ..utils.files import SHA256_KEY, SHA256_PLACEHOLDER, atomic_write, embed_sha256
from .predictor import Predictor

# The largest difference between the file and PyTorch, relative to the largest value.
TOLERANCE = 1e-4
# Where a file says what it is, see `describe`.
ABOUT = "fcvit_mm.json"


# -------------------------------------------------------------------- layers of an open size


class AdaptivePool(nn.Module):
    """nn.AdaptiveAvgPool2d as a product with two matrices of weights, for any size.

    (B, d, H, W) -> (B, d, bins, bins). Bin i of n covers the rows from floor(i H / n) up to
    ceil((i + 1) H / n); PyTorch's own is exported for one size alone.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def weights(self, size: Any, like: Tensor) -> Tensor:
        """(bins, size); rows sum to 1."""
        i = torch.arange(self.bins, device=like.device)[:, None]
        position = torch.arange(size, device=like.device)[None]
        inside = (position >= i * size // self.bins) & (position * self.bins < (i + 1) * size)
        inside = inside.to(like.dtype)
        return inside / inside.sum(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (self.weights(size, x) for size in x.shape[2:])
        return rows @ x @ columns.mT


class Upsample(nn.Module):
    """MMSegmentation's Upsample by a whole factor; its own computes the size as a number."""

    def __init__(self, factor: float, mode: str, align_corners: bool | None) -> None:
        super().__init__()
        self.factor, self.mode, self.align_corners = factor, mode, align_corners

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(
            x, scale_factor=self.factor, mode=self.mode, align_corners=self.align_corners
        )


def with_open_size(model: nn.Module) -> nn.Module:
    """Exchange what can't be traced with an open size, in place."""
    for name, child in model.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d) and isinstance(child.output_size, int):
            setattr(model, name, AdaptivePool(child.output_size))
        elif type(child).__name__ == "Upsample" and getattr(child, "scale_factor", None):
            scale: Any = child.scale_factor
            setattr(model, name, Upsample(scale, str(child.mode), child.align_corners))  # type: ignore[arg-type]
        else:
            with_open_size(child)
    return model


class Normalize(nn.Module):
    """What a model's data preprocessor does to a batch: (B, 3, H, W), RGB, 0 to 255, to the same,
    normalized, padded with 0 on the right and below to a multiple of `divisor`."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessor: Any, divisor: int) -> None:
        super().__init__()
        # pipelines hand on BGR, which a preprocessor converts or not; MMPretrain's says so itself
        converts = getattr(preprocessor, "to_rgb", None)
        self.reverse = not (preprocessor._channel_conversion if converts is None else converts)
        self.register_buffer("mean", preprocessor.mean.view(3, 1, 1).clone())
        self.register_buffer("std", preprocessor.std.view(3, 1, 1).clone())
        self.divisor = divisor

    def forward(self, images: Tensor) -> Tensor:
        x = images.flip(1) if self.reverse else images
        x = (x - self.mean) / self.std
        if self.divisor > 1:
            height, width = x.shape[2:]
            x = functional.pad(x, (0, -width % self.divisor, 0, -height % self.divisor))
        return x


# ------------------------------------------------------------------------- what is exported


class Features(nn.Module):
    """Backbone and neck: images -> one map (B, d, ceil(H / s), ceil(W / s)) a stride s."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.normalize = Normalize(model.data_preprocessor, 1)
        self.backbone = model.backbone
        # a classifier's neck is its pooling
        classifier = hasattr(model, "head")
        neck = None if classifier else getattr(model, "neck", None)
        self.neck = nn.Identity() if neck is None else neck

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.neck(self.backbone(self.normalize(images))))


class Segmentor(nn.Module):
    """Semantic FPN, UperNet: images -> logits (B, classes, H, W)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.features = Features(model)
        self.decode_head = model.decode_head

    def forward(self, images: Tensor) -> Tensor:
        logits = self.decode_head(self.features(images))
        return functional.interpolate(
            logits,
            size=images.shape[2:],
            mode="bilinear",
            align_corners=self.decode_head.align_corners,
        )


class MaskRCNN(nn.Module):
    """Mask R-CNN: an image (1, 3, H, W) -> its detections, best first.

    boxes (N, 4), left, top, right, bottom in pixels; scores (N,), 0 to 1; labels (N,); masks
    (N, 28, 28), probabilities over the box.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.normalize = Normalize(
            model.data_preprocessor, model.data_preprocessor.pad_size_divisor
        )
        self.backbone, self.neck = model.backbone, model.neck
        self.rpn, self.roi = model.rpn_head, model.roi_head
        for module in self.roi.modules():
            # mmcv's RoIAlign: compiled operators of mmcv's own are not exported
            if hasattr(module, "use_torchvision"):
                module.use_torchvision = True

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        height, width = image.shape[2:]
        maps = self.neck(self.backbone(self.normalize(image)))
        proposals, there = self.propose(maps, height, width)
        boxes, scores, labels = self.classify(maps, proposals, there, height, width)
        probabilities = self.masks(maps, boxes, labels)
        return boxes, scores, labels, probabilities

    def propose(self, maps: Sequence[Tensor], height: Any, width: Any) -> tuple[Tensor, Tensor]:
        """Proposals (M, 4) of a fixed number M, and which of them there are, (M,)."""
        cfg = self.rpn.test_cfg
        all_scores, all_deltas = self.rpn(maps)
        sizes = [scores.shape[2:] for scores in all_scores]
        anchors = self.rpn.prior_generator.grid_priors(sizes, device=maps[0].device)
        boxes, scores, levels = [], [], []
        for i, (s, d, a) in enumerate(zip(all_scores, all_deltas, anchors, strict=True)):
            s = s[0].permute(1, 2, 0).reshape(-1).sigmoid()
            d = d[0].permute(1, 2, 0).reshape(-1, 4)
            # so many are there at least, whatever the size
            s = torch.cat([s, s.new_full((cfg.nms_pre,), -1.0)])
            d = torch.cat([d, d.new_zeros(cfg.nms_pre, 4)])
            a = torch.cat([a, a.new_zeros(cfg.nms_pre, 4)])
            s, order = s.topk(cfg.nms_pre)
            boxes.append(decode(self.rpn.bbox_coder, a[order], d[order], height, width))
            scores.append(s)
            levels.append(torch.full_like(s, i))
        box, score, level = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
        sides = box[:, 2:] - box[:, :2]
        large = (sides > cfg.min_bbox_size).all(1)
        score = torch.where(large, score, -1.0)
        keep = suppress(box, score, level, height + width, cfg.nms.iou_threshold)
        # so many again: the first proposal is a stand-in for those that there are not
        there = torch.arange(cfg.max_per_img, device=keep.device) < keep.shape[0]
        keep = torch.cat([keep, keep.new_zeros(cfg.max_per_img)])[: cfg.max_per_img]
        return box[keep], there & (score[keep] >= 0)

    def extract(self, extractor: Any, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """RoIAlign of each box from the level that its size belongs to."""
        rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)
        level = extractor.map_roi_levels(rois, len(extractor.roi_layers))
        out: Any = 0
        for i, (layer, features) in enumerate(zip(extractor.roi_layers, maps, strict=False)):
            chosen = (level == i).to(features.dtype)[:, None, None, None]
            out = out + layer(features, rois) * chosen
        return out

    def classify(
        self, maps: Sequence[Tensor], proposals: Tensor, there: Tensor, height: Any, width: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        head, cfg = self.roi.bbox_head, self.roi.test_cfg
        logits, deltas = head(self.extract(self.roi.bbox_roi_extractor, maps, proposals))
        n = head.num_classes
        scores = logits.softmax(1)[:, :n] * there[:, None]
        deltas = deltas.unflatten(1, (-1, 4)).expand(-1, n, 4)
        anchors = proposals[:, None].expand(-1, n, 4)
        boxes = decode(
            head.bbox_coder, anchors.reshape(-1, 4), deltas.reshape(-1, 4), height, width
        )
        (found,) = torch.where(scores.flatten() > cfg.score_thr)
        score, label, box = scores.flatten()[found], found % n, boxes[found]
        keep = suppress(box, score, label, height + width, cfg.nms.iou_threshold)
        keep = keep[: cfg.max_per_img]
        return box[keep], score[keep], label[keep]

    def masks(self, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        logits = self.roi.mask_head(self.extract(self.roi.mask_roi_extractor, maps, boxes))
        if not self.roi.mask_head.class_agnostic:
            index = labels[:, None, None, None].expand(-1, 1, *logits.shape[2:])
            logits = logits.gather(1, index)
        return logits[:, 0].sigmoid()


def decode(coder: Any, anchors: Tensor, deltas: Tensor, height: Any, width: Any) -> Tensor:
    """What MMDetection's DeltaXYWHBBoxCoder does: anchors and deltas (N, 4) -> boxes (N, 4)."""
    deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
    limit = abs(np.log(16 / 1000))
    sides = anchors[:, 2:] - anchors[:, :2]
    centres = (anchors[:, 2:] + anchors[:, :2]) * 0.5 + sides * deltas[:, :2]
    halves = sides * deltas[:, 2:].clamp(-limit, limit).exp() * 0.5
    boxes = torch.cat([centres - halves, centres + halves], 1)
    x, y = (boxes[:, i::2].clamp(min=0) for i in (0, 1))
    x, y = x.minimum(x.new_ones(()) * width), y.minimum(y.new_ones(()) * height)
    return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, apart: Any, threshold: float) -> Tensor:
    """Non-maximum suppression within groups of boxes, which are moved so far apart: indices, best
    first."""
    return nms(boxes + (groups * apart)[:, None], scores, threshold)


@dataclass
class Export:
    """A way to export.

    build: makes the module of a model. outputs: their names; of features, one a stride. batch:
    whether the number of images is open too.
    """

    build: Callable[[Any], nn.Module]
    outputs: tuple[str, ...] = ()
    batch: bool = True


EXPORTS = {
    "features": Export(Features),
    "segmentor": Export(Segmentor, ("logits",)),
    "mask_rcnn": Export(MaskRCNN, ("boxes", "scores", "labels", "masks"), batch=False),
}
# By the class of a model: its kind, if this part of it is of one of these classes.
WHOLE = {
    "EncoderDecoder": ("segmentor", "decode_head", ("FPNHead", "UPerHead")),
    "MaskRCNN": ("mask_rcnn", "roi_head", ("StandardRoIHead",)),
}


def kind_of(cfg: Config, part: str) -> str:
    """Which of `EXPORTS` a config is exported by.

    Args:
        part: whole or features.

    Raises:
        ConfigError: the whole model has no export.
    """
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


# --------------------------------------------------------------------- what a user needs to know


def describe(predictor: Predictor, kind: str) -> dict[str, Any]:
    """What the file says of itself: kind, classes, palette, how an image is resized before.

    Raises:
        ConfigError: the test pipeline does more than to resize.
    """
    known = ("LoadImageFromFile", "LoadAnnotations", "Resize", "ResizeToMultiple",
             "PackDetInputs", "PackSegInputs", "PackInputs")  # fmt: skip
    _, dataset = next(iter_leaf_datasets(predictor.cfg.test_dataloader.dataset, ""))
    resize: list[dict[str, Any]] = []
    for step in dataset["pipeline"]:
        name = step["type"].rpartition(".")[2]
        if name not in known and kind != "features":
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


# ------------------------------------------------------------------------------ and the check


def own_predictions(predictor: Predictor, kind: str, image: np.ndarray) -> list[Tensor]:
    """What OpenMMLab's model itself predicts, in the form of the file's outputs.

    Args:
        image: (H, W, 3), RGB, 0 to 255, sides that are multiples of 32.
    """
    model = predictor.model
    sample = predictor.prepare(image)["data_samples"]
    size = image.shape[:2]
    sizes = dict.fromkeys(("img_shape", "ori_shape", "pad_shape"), size)
    sample.set_metainfo({**sizes, "scale_factor": (1.0, 1.0)})
    # OpenMMLab's pipelines hand on BGR
    inputs = torch.from_numpy(image[..., ::-1].transpose(2, 0, 1).copy())
    batch = {"inputs": [inputs], "data_samples": [sample]}
    data = model.data_preprocessor(batch, False)
    if kind == "mask_rcnn":
        (sample,) = model.predict(data["inputs"], data["data_samples"], rescale=False)
        found = sample.pred_instances
        # before they are pasted into the image
        features, rois = model.extract_feat(data["inputs"]), functional.pad(found.bboxes, (1, 0))
        logits = model.roi_head._mask_forward(features, rois)["mask_preds"]
        labels = found.labels * (logits.shape[1] > 1)
        masks = logits[torch.arange(len(labels)), labels].sigmoid()
        return [found.bboxes, found.scores, found.labels, masks]
    if kind == "segmentor":
        return [model.inference(data["inputs"], [sample.metainfo])]
    if predictor.task == "classification":
        return list(model.extract_feat(data["inputs"], stage="backbone"))
    return list(model.extract_feat(data["inputs"]))


def difference(expected: Sequence[Tensor], given: Sequence[Tensor], names: Sequence[str]) -> float:
    """The largest difference of any output, relative to the output's largest value.

    Raises:
        ConfigError: an output has another shape, or labels differ.
    """
    worst = 0.0
    for name, a, b in zip(names, expected, given, strict=True):
        if a.shape != b.shape:
            raise ConfigError(
                f"the exported model gives other {name} than PyTorch: {tuple(b.shape)} where "
                f"PyTorch gives {tuple(a.shape)}; nothing was written"
            )
        if not a.is_floating_point() and not torch.equal(a, b):
            raise ConfigError(
                f"the exported model gives other {name} than PyTorch, {b.tolist()} where PyTorch "
                f"gives {a.tolist()}; nothing was written"
            )
        if a.is_floating_point() and a.numel():
            # unlike max, this keeps a NaN
            relative = float((a - b).abs().max() / a.abs().max().clamp(min=1e-12))
            worst = float(np.maximum(worst, relative))
    return worst


def in_order(expected: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """Detections in the order of those expected: rounding decides it where scores hardly differ.

    Each goes to the nearest box of its label; where two go to one, or one has none, all stay.
    """
    if any(a.shape != b.shape for a, b in zip(expected, given, strict=True)):
        return list(given)
    distances = (expected[0][:, None] - given[0][None]).abs().amax(2)
    distances = distances.masked_fill(expected[2][:, None] != given[2][None], torch.inf)
    # with no detection there is no nearest one
    order = distances.argmin(1) if len(distances) else torch.arange(0)
    if not torch.equal(order.sort().values, torch.arange(len(order))):
        return list(given)
    return [output[order] for output in given]


def check(
    predictor: Predictor, kind: str, module: nn.Module, run: Callable[[Tensor], list[Tensor]]
) -> float:
    """Compare an exported model with PyTorch, on images of sizes that it was not exported with.

    Args:
        predictor: whose own predictions are compared too.
        kind: of `EXPORTS`.
        module: what was exported.
        run: the exported model, images -> outputs.

    Returns:
        The largest relative difference, see `difference`.

    Raises:
        ConfigError: it is more than `TOLERANCE`, or see `difference`.
    """
    worst = 0.0
    pairs = 2 if EXPORTS[kind].batch else 1
    # larger than any stride
    for seed, (number, height, width) in enumerate([(1, 192, 160), (pairs, 136, 200)]):
        drawn = [shapes.make_sample(seed, "val", i, (width, height)).image for i in range(number)]
        images = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float().contiguous()
        with torch.no_grad():
            expected = as_list(module(images))
            own = own_predictions(predictor, kind, drawn[0]) if seed == 0 else expected
        given = run(images)
        names = EXPORTS[kind].outputs or [f"map {i}" for i in range(len(expected))]
        for wanted in (expected, own):
            ordered = in_order(wanted, given) if kind == "mask_rcnn" else given
            worst = float(np.maximum(worst, difference(wanted, ordered, names)))
    if not worst <= TOLERANCE:
        raise ConfigError(
            f"the exported model differs from PyTorch by {worst:.1e} of the largest value, more "
            f"than {TOLERANCE:.0e}; nothing was written"
        )
    return worst


@contextmanager
def tracing(cfg: Config) -> Iterator[None]:
    """Say that a model can't be traced.

    Raises:
        ConfigError: for any error inside.
    """
    try:
        yield
    except Exception as error:  # a config names arbitrary classes, which fail in their own ways
        raise ConfigError(f"{cfg.filename} can't be exported: {first_line(error)}") from error


def as_list(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


# -------------------------------------------------------------------------------- the whole


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
    export = EXPORTS[kind]
    about = json.dumps(describe(predictor, kind))
    if path.suffix == ".onnx":
        for package in ("onnx", "onnxruntime", "onnxscript"):
            require(package, "export")
    module = export.build(with_open_size(fuse(copy.deepcopy(predictor.model)))).eval()
    # of a map of one position, as of RetinaNet's last one of a smaller image, one is assumed
    example = torch.rand(2 if export.batch else 1, 3, 160, 288) * 255
    axes = {2: "height", 3: "width"} | ({0: "batch"} if export.batch else {})
    with writing(path), atomic_write(path) as partial, warnings.catch_warnings(), torch.no_grad():
        # of PyTorch, about its own parts
        warnings.simplefilter("ignore")
        if path.suffix == ".pt2":
            open_axes = dict.fromkeys(axes, Dim.DYNAMIC)
            with tracing(predictor.cfg):
                program = torch.export.export(module, (example,), dynamic_shapes=(open_axes,))
            torch.export.save(program, partial, extra_files={ABOUT: about})
            loaded = torch.export.load(partial).module()
            return check(predictor, kind, module, lambda x: as_list(loaded(x)))
        with tracing(predictor.cfg):
            onnx: Any = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                verbose=False,
                dynamic_shapes=(axes,),
                input_names=["images"],
                output_names=list(export.outputs) or None,
            )
        onnx.model.metadata_props[ABOUT] = about
        onnx.model.metadata_props[SHA256_KEY] = SHA256_PLACEHOLDER
        onnx.save(partial, external_data=False)
        partial.write_bytes(embed_sha256(partial.read_bytes()))
        import onnxruntime

        session = onnxruntime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])

        def run_onnx(images: Tensor) -> list[Tensor]:
            outputs = session.run(None, {"images": images.numpy()})
            return [torch.from_numpy(output) for output in outputs]

        return check(predictor, kind, module, run_onnx)
