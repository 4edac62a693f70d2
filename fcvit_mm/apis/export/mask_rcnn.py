"""Mask R-CNN as one graph, without a loop over detections and with an open image size."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms

from .graphs import Graph, Normalize


class MaskRCNN(Graph):
    """Detect the objects of an image (1, 3, H, W), best first.

    Return boxes (N, 4), left, top, right, bottom in pixels; scores (N,), 0 to 1; labels (N,);
    masks (N, 28, 28), probabilities over the box.
    """

    outputs = ("boxes", "scores", "labels", "masks")
    batch = False

    def __init__(self, model: Any) -> None:
        super().__init__()
        preprocessor = model.data_preprocessor
        self.normalize = Normalize(preprocessor, preprocessor.pad_size_divisor)
        self.backbone, self.neck = model.backbone, model.neck
        self.rpn, self.roi = model.rpn_head, model.roi_head
        for module in self.roi.modules():
            # mmcv's RoIAlign: compiled operators of mmcv's own are not exported
            if hasattr(module, "use_torchvision"):
                module.use_torchvision = True

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        height, width = image.shape[2:]
        maps = self.neck(self.backbone(self.normalize(image)))
        proposals, valid = self.propose(maps, height, width)
        boxes, scores, labels = self.classify(maps, proposals, valid, height, width)
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
        self, maps: Sequence[Tensor], proposals: Tensor, valid: Tensor, height: Any, width: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (N, 4), scores (N,) and labels (N,), best first."""
        head, cfg = self.roi.bbox_head, self.roi.test_cfg
        logits, deltas = head(self.extract(self.roi.bbox_roi_extractor, maps, proposals))
        n = head.num_classes
        scores = logits.softmax(1)[:, :n] * valid[:, None]
        boxes = head.bbox_coder.decode(proposals, deltas, (height, width))
        boxes = boxes.unflatten(1, (-1, 4)).expand(-1, n, 4).reshape(-1, 4)
        (found,) = torch.where(scores.flatten() > cfg.score_thr)
        score, label, box = scores.flatten()[found], found % n, boxes[found]
        keep = suppress(box, score, label, height + width, cfg.nms.iou_threshold)
        keep = keep[: cfg.max_per_img]
        return box[keep], score[keep], label[keep]

    def masks(self, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Return the mask probabilities of boxes (N, 4): (N, 28, 28)."""
        logits = self.roi.mask_head(self.extract(self.roi.mask_roi_extractor, maps, boxes))
        if not self.roi.mask_head.class_agnostic:
            index = labels[:, None, None, None].expand(-1, 1, *logits.shape[2:])
            logits = logits.gather(1, index)
        return logits[:, 0].sigmoid()


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, apart: Any, threshold: float) -> Tensor:
    """Suppress non-maxima within groups, moved so far apart; return indices, best first."""
    return nms(boxes + (groups * apart)[:, None], scores, threshold)
