"""Non-maximum suppression."""

import torch
from torch import Tensor

from .registry import register_operator


@register_operator
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices (int64) of the kept of the boxes (K, 4), by falling score."""
    order = scores.sort(descending=True).indices  # like the extension's: not stable
    falling = torch.arange(len(order), 0, -1, dtype=torch.float32, device=boxes.device)
    # the extension computes in float32, the threshold too: an IoU of 3/10 is not above 0.3
    boxes = boxes[order].float()
    threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    if offset == 0:
        return order[torch.ops.torchvision.nms(boxes, falling, threshold)]
    # x2 + 1 would be rounded, far from 0 to x2 itself: torchvision cannot be asked
    kept, rest = [order[:0]], torch.arange(len(order), device=boxes.device)
    while len(rest):
        kept.append(order[rest[:1]])
        overlap = _iou(boxes[rest[:1]], boxes[rest[1:]], offset)
        rest = rest[1:][~(overlap > threshold)]
    return torch.cat(kept)


@register_operator
def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Indices (int64) of the kept of the boxes (K, 4), by falling lowered score.

    The first rows of dets (K, 5) take these boxes and scores. method: 0 naive, 1 linear,
    2 gaussian (Bodla et al., arXiv 1704.04503).
    """
    rest = torch.cat((boxes, scores[:, None]), dim=1).float()
    index = torch.arange(len(boxes), device=boxes.device)
    kept, kept_index = [rest[:0]], [index[:0]]
    while len(rest):
        # the order of equal scores follows from how the extension moves boxes: the first box
        # goes to the place of the best one, boxes from the end to the places of discarded ones
        # a score that is not a number is less than none: it stays first where it is first
        first = rest[0, 4].isnan()
        best = 0 if first else int(rest[:, 4].nan_to_num(nan=-torch.inf).argmax())
        kept.append(rest[best : best + 1].clone())
        kept_index.append(index[best : best + 1].clone())
        rest[best], index[best] = rest[0], index[0]
        rest, index = rest[1:], index[1:]

        overlap = _iou(kept[-1], rest, offset)
        if method == 0:
            weight = (overlap < iou_threshold).to(overlap)
        elif method == 1:
            weight = torch.where(overlap >= iou_threshold, 1 - overlap, 1)
        else:
            weight = torch.exp(-(overlap * overlap) / sigma)
        # two boxes without extent have no overlap; by the gaussian the extension makes scores nan
        rest[:, 4] *= weight.masked_fill(overlap.isnan(), 1)
        stays = ~(rest[:, 4] < min_score)
        count = int(stays.sum())
        for rows in (rest, index):
            rows[:count][~stays[:count]] = rows[count:][stays[count:]].flip(0)
        rest, index = rest[:count], index[:count]
    lowered = torch.cat(kept)
    dets[: len(lowered)] = lowered.to(dets)
    return torch.cat(kept_index)


def _iou(box: Tensor, boxes: Tensor, offset: int) -> Tensor:
    """IoU (K,) of one box (1, 4) with boxes (K, 4) whose sides are x2 - x1 + offset.

    nan where the union is 0, infinite or not a number.
    """
    top_left = torch.maximum(box[:, :2], boxes[:, :2])
    bottom_right = torch.minimum(box[:, 2:4], boxes[:, 2:4])
    shared = (bottom_right - top_left + offset).clamp(min=0).prod(dim=1)
    area, areas = ((b[:, 2:4] - b[:, :2] + offset).prod(dim=1) for b in (box, boxes))
    return shared / (area + areas - shared)
