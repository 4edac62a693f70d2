"""DINO and Mask2Former as graphs with an open number and size of images.

MMDetection hands sizes of maps around as tensors, which can't be traced; here they are numbers.

Shape letters: B images, d channels, N positions of all maps together, L maps, q queries.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .graphs import Graph, Normalize, Segmentor


class DeformableAttention(nn.Module):
    """Attend to a few positions of each map, as mmcv's MultiScaleDeformableAttention does."""

    def __init__(self, trained: Any) -> None:
        super().__init__()
        self.heads, self.levels, self.points = (
            trained.num_heads, trained.num_levels, trained.num_points
        )  # fmt: skip
        self.offsets, self.weights = trained.sampling_offsets, trained.attention_weights
        self.value, self.output = trained.value_proj, trained.output_proj

    def forward(
        self,
        query: Tensor,
        *,
        value: Tensor,
        query_pos: Tensor,
        reference_points: Tensor,
        spatial_shapes: Sequence[tuple[Any, Any]],
        **_: Any,
    ) -> Tensor:
        """Compute query + attention: (B, q, d).

        Args:
            query, query_pos: (B, q, d).
            value: (B, N, d).
            reference_points: (B, q, L, 2) x, y, or (B, q, L, 4) x, y, width, height, 0 to 1.
            spatial_shapes: height and width of each map.
        """
        x = query + query_pos
        axes = (self.heads, self.levels, self.points)
        offsets = self.offsets(x).unflatten(-1, (*axes, 2))
        weights = self.weights(x).unflatten(-1, (self.heads, -1)).softmax(-1)
        weights = weights.unflatten(-1, axes[1:])
        values = self.value(value).unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1)
        total: Any = 0
        start: Any = 0
        for i, (height, width) in enumerate(spatial_shapes):
            reference = reference_points[:, :, None, i, None]  # (B, q, 1, 1, 2 or 4)
            offset = offsets[:, :, :, i]  # (B, q, heads, points, 2)
            if reference.shape[-1] == 4:
                offset = offset / self.points * reference[..., 2:] * 0.5
            else:
                offset = torch.stack([offset[..., 0] / width, offset[..., 1] / height], -1)
            where = (reference[..., :2] + offset) * 2 - 1
            where = where.transpose(1, 2).flatten(0, 1)  # (B * heads, q, points, 2)
            level = values[..., start : start + height * width].flatten(0, 1)
            level = level.unflatten(-1, (height, width))
            sampled = functional.grid_sample(level, where, align_corners=False)
            share = weights[:, :, :, i].transpose(1, 2).flatten(0, 1)[:, None]
            total = total + (sampled * share).sum(-1)  # (B * heads, d / heads, q)
            start = start + height * width
        attention = total.unflatten(0, (-1, self.heads)).flatten(1, 2).mT
        return query + self.output(attention)


class PixelDecoder(nn.Module):
    """Run MMDetection's MSDeformAttnPixelDecoder."""

    def __init__(self, trained: Any) -> None:
        super().__init__()
        self.trained = with_deformable_attention(trained)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Compute the map that masks are products with, and the decoder's, coarsest first."""
        layers = self.trained
        coarse = [layer(x) for layer, x in zip(layers.input_convs, reversed(maps), strict=False)]
        # sic: its name in MMDetection
        positions = layers.postional_encoding
        memory = encode(layers.encoder, coarse, layers.level_encoding.weight, positions)
        outs, start = [], 0
        for x in coarse:
            height, width = x.shape[2:]
            part = memory[:, start : start + height * width].mT
            outs.append(part.unflatten(-1, (height, width)))
            start = start + height * width
        finer = maps[: len(maps) - len(coarse)]
        for i in reversed(range(len(finer))):
            x = layers.lateral_convs[i](finer[i])
            size: Any = x.shape[2:]
            x = x + functional.interpolate(outs[-1], size, mode="bilinear", align_corners=False)
            outs.append(layers.output_convs[i](x))
        return layers.mask_feature(outs[-1]), outs[: layers.num_outs]


def with_deformable_attention(module: Any) -> Any:
    """Replace mmcv's deformable attention in all of a module's layers, in place."""
    for name, child in module.named_children():
        if type(child).__name__ == "MultiScaleDeformableAttention":
            setattr(module, name, DeformableAttention(child))
        else:
            with_deformable_attention(child)
    return module


def centers(height: Any, width: Any, like: Tensor) -> Tensor:
    """Return the centers of a map's positions, x, y, 0 to 1: (height * width, 2)."""
    x, y = (
        (torch.arange(n, dtype=like.dtype, device=like.device) + 0.5) / n for n in (width, height)
    )
    return torch.stack(torch.broadcast_tensors(x[None], y[:, None]), -1).flatten(0, 1)


def encode(encoder: Any, maps: Sequence[Tensor], embeddings: Tensor, positions: Any) -> Tensor:
    """Run a deformable encoder on maps (B, d, H, W): (B, N, d).

    Args:
        embeddings: one per map, (L, d).
        positions: gives the encoding of a map's positions.
    """
    sizes = [x.shape[2:] for x in maps]
    where = [
        positions(None, input=x[:1]).flatten(2).mT + embedding
        for x, embedding in zip(maps, embeddings, strict=True)
    ]
    memory = torch.cat([x.flatten(2).mT for x in maps], 1)
    points = torch.cat([centers(height, width, memory) for height, width in sizes])
    for layer in encoder.layers:
        memory = layer(
            query=memory,
            query_pos=torch.cat(where, 1),
            key_padding_mask=None,
            spatial_shapes=sizes,
            reference_points=points[None, :, None].expand(-1, -1, len(maps), -1),
        )
    return memory


class DINO(Graph):
    """Detect the objects of images (B, 3, H, W) of at least as many positions as queries.

    Return boxes (B, N, 4), left, top, right, bottom in pixels; scores (B, N), 0 to 1; labels
    (B, N), best first; and queries (B, q), the position that each starts from, by score. The
    trained queries go by that order, which rounding decides between nearly equal scores: the check
    compares what follows from it in the same order.
    """

    outputs = ("boxes", "scores", "labels", "queries")

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.normalize = Normalize(model.data_preprocessor, 1)
        self.model = with_deformable_attention(model)
        scale = 1
        while 400 * scale**2 < model.num_queries:
            scale += 1
        self.traced, *checked = (
            (height * scale, width * scale) for height, width in (self.traced, *self.checked)
        )
        self.checked = tuple(checked)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        model, head = self.model, self.model.bbox_head
        maps = model.neck(model.backbone(self.normalize(images)))
        memory = encode(model.encoder, maps, model.level_embed, model.positional_encoding)
        logits, boxes = self.propose(memory, [x.shape[2:] for x in maps])
        # as a function, which `Chosen` knows from others
        order = torch.topk(logits.amax(-1), model.num_queries, dim=1)[1]
        hidden, references = model.decoder(
            query=model.query_embedding.weight[None].expand(images.shape[0], -1, -1),
            value=memory,
            key_padding_mask=None,
            self_attn_mask=None,
            reference_points=boxes.gather(1, order[..., None].expand(-1, -1, 4)).sigmoid(),
            spatial_shapes=[x.shape[2:] for x in maps],
            level_start_index=None,
            # nothing is padded
            valid_ratios=memory.new_ones(1, len(maps), 2),
            reg_branches=head.reg_branches,
        )
        all_logits, all_boxes = head(hidden, references)
        n = head.num_classes
        scores, found = all_logits[-1].sigmoid().flatten(1).topk(head.test_cfg.max_per_img)
        center, size = (
            all_boxes[-1].gather(1, (found // n)[..., None].expand(-1, -1, 4)).split(2, dim=-1)
        )
        boxes = torch.cat([center - size / 2, center + size / 2], -1)
        height, width = images.shape[2:]
        x, y = boxes[..., 0::2] * width, boxes[..., 1::2] * height
        x, y = x.clamp(min=0).clamp(max=width), y.clamp(min=0).clamp(max=height)
        return torch.stack([x, y], -1).flatten(-2), scores, found % n, order

    def propose(self, memory: Tensor, sizes: Sequence[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
        """Return logits (B, N, classes) and boxes (B, N, 4) before the sigmoid of all positions."""
        model, head = self.model, self.model.bbox_head
        points = [centers(*size, memory) for size in sizes]
        boxes = torch.cat(
            [torch.cat([p, torch.full_like(p, 0.05 * 2**i)], 1) for i, p in enumerate(points)]
        )
        valid = ((boxes > 0.01) & (boxes < 0.99)).all(1, keepdim=True)
        boxes = (boxes / (1 - boxes)).log().masked_fill(~valid, torch.inf)
        given = model.memory_trans_norm(model.memory_trans_fc(memory.masked_fill(~valid, 0)))
        last = model.decoder.num_layers
        return head.cls_branches[last](given), head.reg_branches[last](given) + boxes

    def own(self, model: Any, inputs: Tensor, sample: Any) -> list[Tensor]:
        (sample,) = model.predict(inputs, [sample], rescale=False)
        found = sample.pred_instances
        return [found.bboxes[None], found.scores[None], found.labels[None]]


class Chosen(TorchFunctionMode):
    """Have torch.topk choose what an exported DINO has chosen as its queries.

    Attributes:
        difference: how much less the chosen ones score, relative to the largest score.
    """

    def __init__(self, queries: Tensor) -> None:
        super().__init__()
        self.queries, self.difference = queries, 0.0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not torch.topk:
            return result
        scores = args[0].gather(1, self.queries)
        difference = (result[0] - scores).abs().max() / result[0].abs().max()
        self.difference = max(self.difference, float(difference))
        return scores, self.queries


class MaskSegmentor(Segmentor):
    """Run Mask2Former as a segmentor: images -> logits (B, classes, H, W)."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.decode_head.pixel_decoder = PixelDecoder(self.decode_head.pixel_decoder)

    def forward(self, images: Tensor) -> Tensor:
        all_logits, all_masks = self.decode_head(self.features(images), None)
        size: Any = images.shape[2:]
        masks = functional.interpolate(all_masks[-1], size, mode="bilinear", align_corners=False)
        scores = all_logits[-1].softmax(-1)[..., :-1]
        return torch.einsum("bqc,bqhw->bchw", scores, masks.sigmoid())


class Mask2Former(Graph):
    """Detect the objects of images (B, 3, H, W) by their masks, best first.

    Return boxes (B, N, 4), left, top, right, bottom in pixels; scores (B, N), 0 to 1; labels
    (B, N); mask_logits (B, N, h, w), a position per 4x4 pixels, positive where the object is.
    """

    outputs = ("boxes", "scores", "labels", "mask_logits")

    def __init__(self, model: Any) -> None:
        super().__init__()
        preprocessor = model.data_preprocessor
        self.normalize = Normalize(preprocessor, preprocessor.pad_size_divisor)
        self.backbone, self.head = model.backbone, model.panoptic_head
        self.neck = model.neck if model.with_neck else nn.Identity()
        self.head.pixel_decoder = PixelDecoder(self.head.pixel_decoder)
        self.most = model.panoptic_fusion_head.test_cfg.get("max_per_image", 100)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        padded = self.normalize(images)
        all_logits, all_masks = self.head(self.neck(self.backbone(padded)), None)
        scores, labels, masks = choose(all_logits[-1], all_masks[-1], self.most)
        height, width = images.shape[2:]
        size: Any = padded.shape[2:]
        whole = functional.interpolate(masks, size, mode="bilinear", align_corners=False)
        whole = whole[..., :height, :width]
        inside = whole > 0
        area = inside.to(whole.dtype).sum((2, 3))
        scores = scores * (whole.sigmoid() * inside).sum((2, 3)) / (area + 1e-6)
        (left, right), (top, bottom) = extent(inside.any(2)), extent(inside.any(3))
        boxes = torch.stack([left, top, right, bottom], -1).to(scores.dtype)
        scores, order = scores.topk(self.most)
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        return boxes, scores, labels.gather(1, order), pick(masks, order)

    def own(self, model: Any, inputs: Tensor, sample: Any) -> list[Tensor]:
        (sample,) = model.predict(inputs, [sample], rescale=False)
        found = sample.pred_instances
        # before they are resized to the image
        all_logits, all_masks = model.panoptic_head(model.extract_feat(inputs), [sample])
        *_, masks = choose(all_logits[-1], all_masks[-1], self.most, in_order=False)
        return [found.bboxes[None], found.scores[None], found.labels[None], masks]


def choose(
    logits: Tensor, masks: Tensor, number: int, in_order: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best pairs of query and class: scores (B, N), labels (B, N), masks (B, N, h, w).

    Args:
        logits: (B, q, classes + 1), the last for no object.
        masks: (B, q, h, w).
    """
    scores, found = logits.softmax(-1)[..., :-1].flatten(1).topk(number, sorted=in_order)
    classes = logits.shape[-1] - 1
    return scores, found % classes, pick(masks, found // classes)


def pick(masks: Tensor, index: Tensor) -> Tensor:
    """Return the masks of an index (B, N): (B, q, h, w) -> (B, N, h, w)."""
    number, queries = masks.shape[:2]
    first = torch.arange(number, device=index.device)[:, None] * queries
    return masks.flatten(0, 1)[(index + first).flatten()].unflatten(0, (number, -1))


def extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first occupied position and the one after the last, (..., n) -> (...); or 0, 0."""
    n: Any = occupied.shape[-1]
    position = torch.arange(n, device=occupied.device)
    last = torch.where(occupied, position + 1, 0).amax(-1)
    return torch.minimum(torch.where(occupied, position, n).amin(-1), last), last
