"""RetinaNet as one graph with an open image size."""

from typing import Any

import torch
from torch import Tensor

from .graphs import Graph, Normalize
from .mask_rcnn import suppress


class RetinaNet(Graph):
    """Detect the objects of an image (1, 3, H, W), best first.

    Return boxes (N, 4), left, top, right, bottom in pixels; scores (N,), 0 to 1; labels (N,).
    """

    outputs = ("boxes", "scores", "labels")
    batch = False

    def __init__(self, model: Any) -> None:
        super().__init__()
        preprocessor = model.data_preprocessor
        self.normalize = Normalize(preprocessor, preprocessor.pad_size_divisor)
        self.backbone, self.neck, self.head = model.backbone, model.neck, model.bbox_head

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        height, width = image.shape[2:]
        head, cfg = self.head, self.head.test_cfg
        all_logits, all_deltas = head(self.neck(self.backbone(self.normalize(image))))
        sizes = [logits.shape[2:] for logits in all_logits]
        anchors = head.prior_generator.grid_priors(sizes, device=image.device)
        found = []
        for logits, deltas, anchor in zip(all_logits, all_deltas, anchors, strict=True):
            scores = logits[0].permute(1, 2, 0).reshape(-1).sigmoid()
            # padded, so that topk finds enough in a small image
            scores = torch.cat([scores, scores.new_full((cfg.nms_pre,), -1.0)])
            scores, order = scores.topk(cfg.nms_pre)
            deltas = deltas[0].permute(1, 2, 0).reshape(-1, 4)
            # what is chosen of the padding is dropped by its score
            index = (order // head.num_classes).clamp(max=anchor.shape[0] - 1)
            found.append((scores, order % head.num_classes, anchor[index], deltas[index]))
        score, label, anchor, delta = map(torch.cat, zip(*found, strict=True))
        box = head.bbox_coder.decode(anchor, delta, (height, width))
        large = (box[:, 2:] - box[:, :2] > cfg.min_bbox_size).all(1)
        (chosen,) = torch.where(large & (score > cfg.score_thr))
        box, score, label = box[chosen], score[chosen], label[chosen]
        keep = suppress(box, score, label, height + width, cfg.nms.iou_threshold)
        keep = keep[: cfg.max_per_img]
        return box[keep], score[keep], label[keep]

    def own(self, model: Any, inputs: Tensor, sample: Any) -> list[Tensor]:
        (sample,) = model.predict(inputs, [sample], rescale=False)
        found = sample.pred_instances
        return [found.bboxes, found.scores, found.labels]
