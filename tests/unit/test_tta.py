"""Merging the views of an image into one instance segmentation."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import nn

from fcvit_mm.models.tta import InstanceSegTTAModel

pytestmark = pytest.mark.official
HEIGHT, WIDTH = 12, 20
TTA_CFG = ConfigDict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=3)


class Detector(nn.Module):
    """Finds what it is given, but as CascadeRoIHead does, stumbles over a flipped view."""

    def test_step(self, data):
        assert not any(sample.flip for sample in data["data_samples"])
        return data["data_samples"]


def instance(box: tuple[int, int, int, int], score: float, label: int = 0) -> InstanceData:
    """One instance whose mask is its box without the lower left pixel: flips can be told apart."""
    x1, y1, x2, y2 = box
    mask = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    mask[:, y1:y2, x1:x2] = True
    mask[:, y2 - 1, x1] = False
    return InstanceData(
        bboxes=torch.tensor([box], dtype=torch.float32),
        scores=torch.tensor([score]),
        labels=torch.tensor([label]),
        masks=mask,
    )


def flipped(instances: InstanceData, direction: str) -> InstanceData:
    """What a detector that makes no mistakes says about the flipped image."""
    x1, y1, x2, y2 = instances.bboxes.unbind(1)
    masks = instances.masks
    if direction in ("horizontal", "diagonal"):
        x1, x2 = WIDTH - x2, WIDTH - x1
        masks = masks.flip(2)
    if direction in ("vertical", "diagonal"):
        y1, y2 = HEIGHT - y2, HEIGHT - y1
        masks = masks.flip(1)
    return InstanceData(
        bboxes=torch.stack([x1, y1, x2, y2], 1),
        scores=instances.scores,
        labels=instances.labels,
        masks=masks,
    )


def view(instances: list[InstanceData], direction: str | None = None) -> DetDataSample:
    if direction:
        instances = [flipped(item, direction) for item in instances]
    sample = DetDataSample(
        metainfo=dict(
            ori_shape=(HEIGHT, WIDTH), flip=direction is not None, flip_direction=direction
        )
    )
    sample.pred_instances = InstanceData.cat(instances)
    return sample


def merge(*views: DetDataSample) -> InstanceData:
    (merged,) = InstanceSegTTAModel(TTA_CFG, module=Detector()).merge_preds([list(views)])
    return merged.pred_instances


def assert_same(actual: InstanceData, expected: list[InstanceData]) -> None:
    wanted = InstanceData.cat(expected)
    assert actual.scores.tolist() == wanted.scores.tolist()
    assert actual.labels.equal(wanted.labels)
    assert actual.bboxes.equal(wanted.bboxes)
    assert actual.masks.equal(wanted.masks)


def test_each_box_keeps_its_own_mask():
    """What only a flipped view saw is flipped back; of two alike, the surer one remains."""
    left, right = instance((1, 2, 6, 9), 0.5), instance((12, 1, 19, 5), 0.75, label=1)
    surer = instance((1, 2, 6, 10), 0.625)
    for direction in ("horizontal", "vertical", "diagonal"):
        merged = merge(view([left]), view([right, surer], direction))
        assert_same(merged, [right, surer])


def test_other_classes_do_not_suppress():
    one, other = instance((1, 2, 6, 9), 0.75), instance((1, 2, 6, 9), 0.5, label=1)
    assert_same(merge(view([one]), view([other], "horizontal")), [one, other])


def test_keeps_the_best():
    """No more than max_per_img remain."""
    found = [instance((4 * i, 0, 4 * i + 4, 6), 0.125 * (i + 1), label=i % 2) for i in range(5)]
    merged = merge(view(found[::2]), view(found[1::2], "horizontal"))
    assert_same(merged, [found[4], found[3], found[2]])


@pytest.mark.parametrize("direction", [None, "horizontal", "vertical", "diagonal"])
def test_a_detector_is_not_told_of_the_flip(direction):
    """It predicts as for any image, and what it predicts is flipped back all the same."""
    found = instance((1, 2, 6, 9), 0.5)
    views = [[view([found], direction)], [view([found[:0]])]]
    (merged,) = InstanceSegTTAModel(TTA_CFG, module=Detector()).test_step({"data_samples": views})
    assert_same(merged.pred_instances, [found])


def test_nothing_found():
    nothing = instance((1, 2, 6, 9), 0.5)[:0]
    merged = merge(view([nothing]), view([nothing], "horizontal"))
    assert len(merged) == 0
    assert merged.masks.shape == (0, HEIGHT, WIDTH)
