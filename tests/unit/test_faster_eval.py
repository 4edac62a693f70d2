"""faster-coco-eval computes what pycocotools does, the table of classes included."""

import io
import json
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from mmdet.evaluation import metrics
from pycocotools import mask as coco_mask

CLASSES = ("bolt", "nut", "washer")
SIZE = 200


def rectangle(box) -> np.ndarray:
    left, top, width, height = (int(side) for side in box)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


def random_boxes(rng, number: int) -> np.ndarray:
    """Left, top, width, height, of all of COCO's three ranges of sizes."""
    sides = rng.choice([10, 50, 100], (number, 1)) + rng.integers(0, 20, (number, 2))
    return np.concatenate([rng.integers(0, SIZE - sides), sides], 1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """An annotation file, with a crowd and an image without objects; and predictions for it."""
    rng = np.random.default_rng(0)
    annotations: list[dict] = []
    samples: list[dict] = []
    for image in range(1, 13):
        boxes = random_boxes(rng, 0 if image == 1 else 6)
        labels = rng.integers(0, 3, len(boxes))
        for box, label in zip(boxes, labels, strict=True):
            rle = coco_mask.encode(np.asfortranarray(rectangle(box)))
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image,
                    category_id=int(label) + 1,
                    bbox=box.tolist(),
                    area=int(box[2] * box[3]),
                    iscrowd=int(len(annotations) % 10 == 9),
                    segmentation=dict(size=rle["size"], counts=rle["counts"].decode()),
                )
            )
        # found ones, a little off, and false alarms
        found = np.concatenate([boxes + rng.integers(-4, 5, boxes.shape), random_boxes(rng, 3)])
        found = np.clip(found, 0, SIZE)
        found[:, 2:] = np.clip(found[:, 2:], 1, SIZE - found[:, :2])
        masks = np.stack([rectangle(box) for box in found]).astype(bool)
        guessed = np.where(rng.random(len(found)) < 0.8,
                           np.concatenate([labels, [0, 1, 2]]), 0)  # fmt: skip
        corners = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], 1)
        predicted = dict(
            bboxes=torch.from_numpy(corners).float(),
            scores=torch.from_numpy(rng.random(len(found)).round(2)),
            labels=torch.from_numpy(guessed),
            masks=torch.from_numpy(masks),
        )
        samples.append(dict(img_id=image, ori_shape=(SIZE, SIZE), pred_instances=predicted))
    content = dict(
        images=[dict(id=i, file_name=f"{i}.png", width=SIZE, height=SIZE) for i in range(1, 13)],
        categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)],
        annotations=annotations,
    )
    path = tmp_path_factory.mktemp("coco") / "a.json"
    path.write_text(json.dumps(content))
    return str(path), samples


def evaluate(name: str, dataset) -> dict[str, float]:
    path, samples = dataset
    with redirect_stdout(io.StringIO()):
        one = getattr(metrics, name)(
            ann_file=path,
            metric=["bbox", "segm"],
            classwise=True,
            metric_items=["mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l", "AR@100", "AR@300",
                          "AR@1000", "AR_s@1000", "AR_m@1000", "AR_l@1000"],
        )  # fmt: skip
        one.dataset_meta = dict(classes=CLASSES)
        one.process({}, samples)
        return one.evaluate(len(samples))


def test_its_metrics_are_pycocotools(dataset):
    slow, fast = (evaluate(name, dataset) for name in ("CocoMetric", "FasterCocoMetric"))
    assert fast == slow and len(slow) == 2 * 12 + len(CLASSES)
    # no trivial ones
    assert all(0.05 < value < 0.95 for value in slow.values()), slow
