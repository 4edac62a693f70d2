"""Confusion matrices against plain loops, and against what OpenMMLab's evaluators print."""

import json

import numpy as np
import pytest
import torch

from fcvit_mm.evaluation import confusion_matrix
from fcvit_mm.utils.errors import ConfigError
from fcvit_mm.visualization.figures import save_figure
from helpers.images import read
from helpers.models import CONFIGS
from helpers.tools import load_tool

RANDOM = np.random.default_rng(0)


def plain_iou(a: np.ndarray, b: np.ndarray) -> float:
    shared = (min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1]))
    inner = max(shared[0], 0) * max(shared[1], 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return inner / (sum(areas) - inner)


def plain_matrix(n, found, ground_truth, threshold: float) -> np.ndarray:
    """found: (label, score, box) of detections; ground_truth: (label, box) of objects."""
    matrix = np.zeros((n + 1, n + 1), int)
    taken = set()
    for label, _, box in sorted(found, key=lambda detection: -detection[1]):
        candidates = [
            (plain_iou(box, other), i)
            for i, (_, other) in enumerate(ground_truth)
            if i not in taken
        ]
        iou, i = max(candidates, key=lambda pair: pair[0], default=(0, -1))
        if i >= 0 and iou >= threshold:
            taken.add(i)
            matrix[ground_truth[i][0], label] += 1
        else:
            matrix[n, label] += 1
    for i, (label, _) in enumerate(ground_truth):
        if i not in taken:
            matrix[label, n] += 1
    return matrix


def random_boxes(n: int) -> np.ndarray:
    corners = RANDOM.uniform(0, 30, (n, 2))
    return np.concatenate([corners, corners + RANDOM.uniform(8, 30, (n, 2))], 1)


@pytest.mark.official
@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5])
def test_detections_against_plain_loops(tmp_path, threshold):
    metric = confusion_matrix.ConfusionMatrix(str(tmp_path / "m"), 0.25, threshold)
    metric.dataset_meta = {"classes": ("a", "b", "c")}
    expected = np.zeros((4, 4), int)
    for objects, detections in ((5, 9), (0, 4), (3, 0), (6, 12), (8, 30)):
        ground_truth = list(zip(RANDOM.integers(0, 3, objects), random_boxes(objects), strict=True))
        boxes = random_boxes(detections)
        labels, scores = RANDOM.integers(0, 3, detections), RANDOM.uniform(0, 1, detections)
        found = list(zip(labels, scores, boxes, strict=True))
        expected += plain_matrix(3, [d for d in found if d[1] >= 0.25], ground_truth, threshold)
        metric.process(None, [sample(labels, scores, boxes, ground_truth)])
    metric.compute_metrics(metric.results)
    content = json.loads((tmp_path / "m.json").read_text())
    assert content["classes"] == ["a", "b", "c", "background"]
    assert content["matrix"] == expected.tolist()
    assert expected[:3, :3].sum() > expected[:3, :3].trace() > 0


def sample(labels, scores, boxes, ground_truth, ignored=()) -> dict:
    def part(boxes, labels) -> dict:
        return {
            "bboxes": torch.tensor(np.array(boxes).reshape(-1, 4)),
            "labels": torch.tensor(labels, dtype=torch.int64),
        }

    return {
        "pred_instances": {**part(boxes, labels), "scores": torch.tensor(scores)},
        "gt_instances": part(
            [box for _, box in ground_truth], [int(label) for label, _ in ground_truth]
        ),
        "ignored_instances": part(list(ignored), [0] * len(ignored)),
    }


@pytest.mark.parametrize("masks", [False, True])
def test_detections_in_a_crowd_are_no_false_alarms(tmp_path, masks):
    metric = confusion_matrix.ConfusionMatrix(str(tmp_path / "m"), masks=masks)
    metric.dataset_meta = {"classes": ("a",)}
    boxes = [[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]]
    crowd = [[18.0, 18, 40, 40]]
    one = sample([0, 0, 0], [0.9, 0.8, 0.7], boxes, [(0, boxes[0])], crowd)
    if masks:
        for key in ("pred_instances", "gt_instances", "ignored_instances"):
            found = torch.zeros(len(one[key]["bboxes"]), 60, 60, dtype=torch.bool)
            for mask, box in zip(found, one[key]["bboxes"].int().tolist(), strict=True):
                mask[box[1] : box[3], box[0] : box[2]] = True
            one[key] = {"masks": found, **{k: v for k, v in one[key].items() if k != "bboxes"}}
    metric.process(None, [one])
    metric.evaluate(1)
    assert json.loads((tmp_path / "m.json").read_text())["matrix"] == [[1, 0], [1, 0]]


def test_images_that_a_sampler_repeats_count_once(tmp_path):
    """Several processes get as many images each; MMEngine cuts off the surplus."""
    metric = confusion_matrix.ConfusionMatrix(str(tmp_path / "m"))
    metric.dataset_meta = {"classes": ("a", "b")}
    ground_truth = torch.tensor([[[0, 1]]])
    for predicted in ([0, 1], [1, 1], [0, 0], [0, 1]):
        maps = {"pred_sem_seg": torch.tensor([[predicted]]), "gt_sem_seg": ground_truth}
        metric.process(None, [{key: {"data": labels} for key, labels in maps.items()}])
    found = metric.evaluate(3)
    assert json.loads((tmp_path / "m.json").read_text())["matrix"] == [[2, 1], [1, 2]]
    assert found["confusion/mean_recall"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("part", "key", "words"),
    [
        ("gt_instances", "bboxes", "the test pipeline loads no bboxes; add"),
        ("gt_instances", "masks", "the test pipeline loads no masks; add"),
        ("pred_instances", "masks", "the model predicts no masks"),
        ("gt_sem_seg", None, "the test pipeline loads no label maps"),
        ("pred_sem_seg", None, "the model predicts neither objects nor label maps"),
    ],
)
def test_what_is_missing_is_named(tmp_path, part, key, words):
    metric = confusion_matrix.ConfusionMatrix(str(tmp_path / "m"), masks=key == "masks")
    metric.dataset_meta = {"classes": ("a",)}
    if key is None:
        one = {name: {"data": torch.zeros(1, 1, 2)} for name in ("pred_sem_seg", "gt_sem_seg")}
        del one[part]
    else:
        box = [0.0, 0, 1, 1]
        one = sample([0], [0.9], [box], [(0, box)])
        for name in ("pred_instances", "gt_instances"):
            one[name]["masks"] = torch.ones(1, 1, 1, dtype=torch.bool)
        del one[part][key]
    with pytest.raises(ConfigError, match=words):
        metric.process(None, [one])


@pytest.mark.parametrize("masks", [False, True])
def test_overlaps(masks):
    boxes = torch.tensor([[[0.0, 0, 2, 4]], [[0, 0, 4, 2]], [[1, 1, 1, 1]]])
    left, top, empty = (
        confusion_matrix.regions_of({"bboxes": box, "masks": mask[None]}, masks)
        for box, mask in zip(boxes, half_masks(), strict=True)
    )
    assert confusion_matrix.overlaps(left, top).item() == pytest.approx(4 / 12)
    assert confusion_matrix.overlaps(left, top, of_first=True).item() == pytest.approx(4 / 8)
    assert confusion_matrix.overlaps(left, top[:0]).shape == (1, 0)
    assert confusion_matrix.overlaps(empty, empty).item() == 0


def half_masks() -> torch.Tensor:
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, :, :2] = True
    masks[1, :2] = True
    return masks


def test_pixels_against_plain_loops(tmp_path):
    labels, ground_truth = RANDOM.integers(0, 3, (2, 7, 9))
    ground_truth[RANDOM.random(ground_truth.shape) < 0.3] = 255
    expected = np.zeros((3, 3), int)
    for i, j in np.ndindex(ground_truth.shape):
        if ground_truth[i, j] != 255:
            expected[ground_truth[i, j], labels[i, j]] += 1
    metric = confusion_matrix.ConfusionMatrix(str(tmp_path / "m"))
    metric.dataset_meta = {"classes": ("a", "b", "c")}
    maps = {"pred_sem_seg": labels, "gt_sem_seg": ground_truth}
    metric.process(None, [{k: {"data": torch.from_numpy(m)[None]} for k, m in maps.items()}])
    metric.evaluate(1)
    assert json.loads((tmp_path / "m.json").read_text())["matrix"] == expected.tolist()


def test_metrics_by_class():
    rows = confusion_matrix.class_metrics(
        np.array([[6, 2, 0], [1, 0, 3], [0, 0, 0]]), ["a", "b", "c"]
    )
    assert rows[0] == {"class": "a", "precision": 6 / 7, "recall": 6 / 8, "iou": 6 / 9}
    assert rows[1] == {"class": "b", "precision": 0, "recall": 0, "iou": 0}
    assert rows[2] == {"class": "c", "precision": 0, "recall": None, "iou": 0}


@pytest.mark.parametrize("n", [4, 150])
def test_plots_of_few_and_many_classes(tmp_path, n):
    matrix = RANDOM.integers(0, 50, (n, n)) + np.eye(n, dtype=int) * 5000
    figure = confusion_matrix.draw(matrix, [f"class {i}" for i in range(n)])
    save_figure(figure, tmp_path / "m.png")
    image = read(tmp_path / "m.png")
    assert 400 < image.shape[0] < 3200 and image.std() > 10
    # counts are written where they fit
    assert len(figure.axes[0].texts) == (16 if n == 4 else 0)


def test_a_classifier_is_refused():
    with pytest.raises(ConfigError, match="is a classifier"):
        load_tool("confusion_matrix").main([str(CONFIGS["mmpretrain"]), "a.pth"])
