"""Mask R-CNN, also as a cascade, as one graph, without a loop over detections."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import nms

from .graphs import Graph, Normalize


class MaskRCNN(Graph):
    """Detect the objects of an image (1, 3, H, W), best first.

    Return boxes (N, 4), left, top, right, bottom in pixels; scores (N,), 0 to 1; labels (N,); and,
    if the model has a mask head, masks (N, 28, 28), probabilities over the box.
    """

    outputs: tuple[str, ...] = ("boxes", "scores", "labels", "masks")
    batch = False

    def __init__(self, model: Any) -> None:
        super().__init__()
        preprocessor = model.data_preprocessor
        self.normalize = Normalize(preprocessor, preprocessor.pad_size_divisor)
        self.backbone, self.neck = model.backbone, model.neck
        self.rpn, self.roi = model.rpn_head, model.roi_head
        if not self.roi.with_mask:
            self.outputs = self.outputs[:3]
        for module in self.roi.modules():
            # mmcv's RoIAlign: compiled operators of mmcv's own are not exported
            if hasattr(module, "use_torchvision"):
                module.use_torchvision = True

    def stages(self, part: str) -> list[tuple[Any, Any]]:
        """Return extractor and head of each stage, of which only a cascade has several."""
        pair = getattr(self.roi, f"{part}_roi_extractor"), getattr(self.roi, f"{part}_head")
        return list(zip(*pair, strict=True)) if hasattr(self.roi, "num_stages") else [pair]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        height, width = image.shape[2:]
        maps = self.neck(self.backbone(self.normalize(image)))
        proposals, valid = self.propose(maps, height, width)
        boxes, scores, labels = self.classify(maps, proposals, valid, height, width)
        if "masks" not in self.outputs:
            return boxes, scores, labels
        return boxes, scores, labels, self.masks(maps, boxes, labels)

    def propose(self, maps: Sequence[Tensor], height: Any, width: Any) -> tuple[Tensor, Tensor]:
        """Return a fixed number M of proposals (M, 4), and which of them are valid, (M,)."""
        cfg = self.rpn.test_cfg
        all_scores, all_deltas = self.rpn(maps)
        sizes = [scores.shape[2:] for scores in all_scores]
        anchors = self.rpn.prior_generator.grid_priors(sizes, device=maps[0].device)
        found = []
        for i, (s, d, a) in enumerate(zip(all_scores, all_deltas, anchors, strict=True)):
            s = s[0].permute(1, 2, 0).reshape(-1).sigmoid()
            d = d[0].permute(1, 2, 0).reshape(-1, 4)
            # padded, so that topk finds enough in a small image
            s = torch.cat([s, s.new_full((cfg.nms_pre,), -1.0)])
            d = torch.cat([d, d.new_zeros(cfg.nms_pre, 4)])
            a = torch.cat([a, a.new_zeros(cfg.nms_pre, 4)])
            s, order = s.topk(cfg.nms_pre)
            found.append((s, a[order], d[order], torch.full_like(s, i)))
        score, anchor, delta, level = map(torch.cat, zip(*found, strict=True))
        box = self.rpn.bbox_coder.decode(anchor, delta, (height, width))
        large = (box[:, 2:] - box[:, :2] > cfg.min_bbox_size).all(1)
        score = torch.where(large, score, -1.0)
        keep = suppress(box, score, level, height + width, cfg.nms.iou_threshold)
        # padded with the first proposal, marked as not valid
        valid = torch.arange(cfg.max_per_img, device=keep.device) < keep.shape[0]
        keep = torch.cat([keep, keep.new_zeros(cfg.max_per_img)])[: cfg.max_per_img]
        return box[keep], valid & (score[keep] >= 0)

    def extract(self, extractor: Any, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Align the features of each box, from the level that its size belongs to."""
        rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)
        level = extractor.map_roi_levels(rois, len(extractor.roi_layers))
        out: Any = 0
        for i, (layer, features) in enumerate(zip(extractor.roi_layers, maps, strict=False)):
            chosen = (level == i).to(features.dtype)[:, None, None, None]
            out = out + layer(features, rois) * chosen
        return out

    def classify(
        self, maps: Sequence[Tensor], boxes: Tensor, valid: Tensor, height: Any, width: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (N, 4), scores (N,) and labels (N,) of proposals (M, 4), best first."""
        total: Any = 0
        *stages, (extractor, head) = self.stages("bbox")
        n = head.num_classes
        for earlier, earlier_head in stages:
            logits, deltas = earlier_head(self.extract(earlier, maps, boxes))
            total = total + logits
            if not earlier_head.reg_class_agnostic:
                best = logits[:, :n].argmax(1)[:, None, None].expand(-1, 1, 4)
                deltas = deltas.unflatten(1, (n, 4)).gather(1, best)[:, 0]
            boxes = earlier_head.bbox_coder.decode(boxes, deltas, (height, width))
        logits, deltas = head(self.extract(extractor, maps, boxes))
        # the mean over the stages
        logits = (total + logits) / (len(stages) + 1)
        scores = logits.softmax(1)[:, :n] * valid[:, None]
        boxes = head.bbox_coder.decode(boxes, deltas, (height, width))
        boxes = boxes.unflatten(1, (-1, 4)).expand(-1, n, 4).reshape(-1, 4)
        cfg = self.roi.test_cfg
        (found,) = torch.where(scores.flatten() > cfg.score_thr)
        score, label, box = scores.flatten()[found], found % n, boxes[found]
        keep = suppress(box, score, label, height + width, cfg.nms.iou_threshold)
        keep = keep[: cfg.max_per_img]
        return box[keep], score[keep], label[keep]

    def masks(self, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Return the mask probabilities of boxes (N, 4): (N, 28, 28), the mean over the stages."""
        stages = self.stages("mask")
        total: Any = 0
        for extractor, head in stages:
            logits = head(self.extract(extractor, maps, boxes))
            if not head.class_agnostic:
                index = labels[:, None, None, None].expand(-1, 1, *logits.shape[2:])
                logits = logits.gather(1, index)
            total = total + logits[:, 0].sigmoid()
        return total / len(stages)

    def own(self, model: Any, inputs: Tensor, sample: Any) -> list[Tensor]:
        (sample,) = model.predict(inputs, [sample], rescale=False)
        found = sample.pred_instances
        outputs = [found.bboxes, found.scores, found.labels]
        if "masks" in self.outputs:
            roi = model.roi_head
            maps, rois = model.extract_feat(inputs), functional.pad(found.bboxes, (1, 0))
            # of which only a cascade has several
            stages: Any = [(i,) for i in range(getattr(roi, "num_stages", 0))] or [()]
            # before they are pasted into the image
            logits = [roi._mask_forward(*stage, maps, rois)["mask_preds"] for stage in stages]
            masks = torch.stack(logits).sigmoid().mean(0)
            labels = found.labels * (masks.shape[1] > 1)
            outputs.append(masks[torch.arange(len(labels)), labels])
        return outputs


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, apart: Any, threshold: float) -> Tensor:
    """Suppress non-maxima within groups, moved so far apart; return indices, best first."""
    return nms(boxes + (groups * apart)[:, None], scores, threshold)
