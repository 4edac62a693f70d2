"""Graphs with an open image size: layers, normalization, backbone with neck, simple heads."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Graph(nn.Module):
    """A model as it is exported.

    outputs: their names; none where they are one map per stride. batch: whether the number of
    images is open too, and detections have an axis for it. traced, checked: sizes (H, W) of the
    images that it is traced and compared with.
    """

    outputs: tuple[str, ...] = ()
    batch = True
    # no map has a single position, which would be assumed of all images
    traced: tuple[int, int] = (160, 288)
    # larger than any stride; the first has sides that are multiples of 32, so that none is padded
    checked: tuple[tuple[int, int], ...] = ((192, 160), (136, 200))

    def own(self, model: Any, inputs: Tensor, sample: Any) -> list[Tensor]:
        """Return what OpenMMLab's model predicts for one image, in the form of the outputs.

        Args:
            inputs: after the data preprocessor, (1, 3, H, W).
            sample: data sample, whose sizes are those of the inputs.
        """
        raise NotImplementedError


class AdaptivePool(nn.Module):
    """Pool adaptively by a product with two matrices, (B, d, H, W) -> (B, d, bins, bins).

    Bin i of n covers the rows from floor(i H / n) up to ceil((i + 1) H / n), as in PyTorch's
    AdaptiveAvgPool2d, which is exported for a single size.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def weights(self, size: Any, like: Tensor) -> Tensor:
        """Return the weights of each position in each bin: (bins, size); rows sum to 1."""
        i = torch.arange(self.bins, device=like.device)[:, None]
        position = torch.arange(size, device=like.device)[None]
        inside = (position >= i * size // self.bins) & (position * self.bins < (i + 1) * size)
        inside = inside.to(like.dtype)
        return inside / inside.sum(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (self.weights(size, x) for size in x.shape[2:])
        return rows @ x @ columns.mT


def with_open_size(model: nn.Module) -> nn.Module:
    """Replace layers that can't be traced with an open size, or do nothing, in place."""
    for name, child in model.named_children():
        if isinstance(child, nn.Dropout):
            setattr(model, name, nn.Identity())
        elif isinstance(child, nn.AdaptiveAvgPool2d) and isinstance(child.output_size, int):
            setattr(model, name, AdaptivePool(child.output_size))
        elif type(child).__name__ == "Upsample" and getattr(child, "scale_factor", None):
            # MMSegmentation's turns the size into a number
            given: Any = child
            layer = nn.Upsample(None, given.scale_factor, given.mode, given.align_corners)
            setattr(model, name, layer)
        else:
            with_open_size(child)
    return model


class Normalize(nn.Module):
    """Normalize images (B, 3, H, W), RGB, 0 to 255, as a model's data preprocessor does.

    They are padded with 0 on the right and below to a multiple of `divisor`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessor: Any, divisor: int) -> None:
        super().__init__()
        # pipelines give BGR; a preprocessor converts it or not, which MMPretrain calls to_rgb
        converts = getattr(preprocessor, "to_rgb", None)
        self.reverse = not (preprocessor._channel_conversion if converts is None else converts)
        self.register_buffer("mean", preprocessor.mean.view(3, 1, 1).clone())
        self.register_buffer("std", preprocessor.std.view(3, 1, 1).clone())
        self.divisor = divisor

    def forward(self, images: Tensor) -> Tensor:
        x = images.flip(1) if self.reverse else images
        x = (x - self.mean) / self.std
        if self.divisor > 1:
            # rounded up, from which the exporter knows that maps of all strides fit each other
            height, width = ((n + self.divisor - 1) // self.divisor for n in x.shape[2:])
            right, below = width * self.divisor - x.shape[3], height * self.divisor - x.shape[2]
            x = functional.pad(x, (0, right, 0, below))
        return x


class Features(Graph):
    """Run backbone and neck: images -> one map (B, d, ceil(H / s), ceil(W / s)) per stride s."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.normalize = Normalize(model.data_preprocessor, 1)
        self.backbone = model.backbone
        # a classifier's neck is its pooling
        neck = None if hasattr(model, "head") else getattr(model, "neck", None)
        self.neck = nn.Identity() if neck is None else neck

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.neck(self.backbone(self.normalize(images))))

    def own(self, model: Any, inputs: Tensor, sample: Any) -> list[Tensor]:
        stage = {"stage": "backbone"} if hasattr(model, "head") else {}
        return list(model.extract_feat(inputs, **stage))


class Segmentor(Graph):
    """Run Semantic FPN or UperNet: images -> logits (B, classes, H, W)."""

    outputs = ("logits",)

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.features = Features(model)
        self.decode_head = model.decode_head

    def forward(self, images: Tensor) -> Tensor:
        head = self.decode_head
        logits = head(self.features(images))
        size: Any = images.shape[2:]
        return functional.interpolate(logits, size, None, "bilinear", head.align_corners)

    def own(self, model: Any, inputs: Tensor, sample: Any) -> list[Tensor]:
        return [model.inference(inputs, [sample.metainfo])]


class Classifier(Graph):
    """Run an image classifier: images -> probabilities (B, classes)."""

    outputs = ("scores",)

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.features = Features(model)
        self.neck, self.head = model.neck, model.head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.neck(self.features(images))).softmax(1)

    def own(self, model: Any, inputs: Tensor, sample: Any) -> list[Tensor]:
        (sample,) = model.predict(inputs, [sample])
        return [sample.pred_score[None]]
