"""Large images tile by tile: how they are cut, and that what tiles find in part becomes whole."""

from typing import Any

import numpy as np
import pytest
import torch

from fcvit_mm.apis import tiles
from fcvit_mm.apis.predictor import Predictor
from fcvit_mm.apis.result import Result
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.errors import ConfigError
from helpers.images import make_image
from helpers.models import CONFIGS

Rectangle = tuple[int, int, int, int]
IMAGE = np.zeros((400, 600, 3), np.uint8)
CLASSES = ("a", "b")
# with an overlap of 0.2, tiles of 200 begin at 0, 160, 320 and 400
SIZE = 200


def find(rectangles: list[Rectangle], tile: Rectangle, masks: bool = True, **changes) -> Result:
    """What a detector that makes no mistakes finds of some rectangles in a tile."""
    left, top, right, bottom = tile
    boxes = np.array(rectangles, np.float32).reshape(-1, 4)
    boxes = boxes.clip([left, top] * 2, [right, bottom] * 2) - np.tile([left, top], 2)
    seen = (boxes[:, :2] < boxes[:, 2:]).all(1)
    covered = np.zeros((len(boxes), bottom - top, right - left), bool)
    for mask, (x0, y0, x1, y1) in zip(covered, boxes.astype(int), strict=True):
        mask[y0:y1, x0:x1] = True
    fields = {
        "boxes": boxes, "masks": covered if masks else None,
        "scores": np.linspace(0.9, 0.5, len(boxes), dtype=np.float32),
        "labels": np.zeros(len(boxes), np.int64),
    } | changes  # fmt: skip
    crop = IMAGE[top:bottom, left:right]
    fields = {key: None if value is None else value[seen] for key, value in fields.items()}
    return Result(crop, CLASSES, [(200, 0, 0), (0, 200, 0)], **fields)


@pytest.mark.parametrize(
    ("height", "width", "size", "overlap"),
    [(400, 600, 200, 0.2), (401, 599, 128, 0.25), (50, 600, 200, 0.2), (30, 40, 200, 0.9)],
)
def test_tiles_cover_the_image_and_overlap(height, width, size, overlap):
    covered = np.zeros((height, width), int)
    cut = tiles.cut(height, width, size, overlap)
    for left, top, right, bottom in cut:
        assert (right - left, bottom - top) == (min(size, width), min(size, height))
        covered[top:bottom, left:right] += 1
    assert covered.min() == 1
    lefts = sorted({tile[0] for tile in cut})
    assert lefts[0] == 0 and lefts[-1] == max(0, width - size)
    assert max(np.diff(lefts), default=0) <= round(size * (1 - overlap))


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "boxes"])
@pytest.mark.parametrize(
    "rectangles",
    [
        pytest.param([], id="nothing"),
        pytest.param([(10, 10, 60, 60)], id="in one tile"),
        pytest.param([(60, 40, 260, 100)], id="cut by a border"),
        pytest.param([(10, 40, 590, 100)], id="longer than two tiles"),
        pytest.param([(120, 120, 230, 230)], id="cut by a corner"),
        pytest.param([(100, 50, 180, 120), (180, 50, 260, 120)], id="touching"),
        pytest.param([(20, 50, 180, 120), (180, 50, 340, 120)], id="touching and cut"),
        pytest.param([(20, 20, 180, 180), (180, 100, 196, 120)], id="a large and a small one"),
        pytest.param([(150, 20, 220, 150), (165, 60, 195, 90)], id="one within another"),
    ],
)
def test_an_object_is_found_once_and_whole(rectangles, masks):
    cut = tiles.cut(400, 600, SIZE, 0.2)
    result: Any = tiles.join(IMAGE, cut, [find(rectangles, tile, masks) for tile in cut])
    expected: Any = find(rectangles, (0, 0, 600, 400), masks)
    assert result.image is IMAGE
    assert np.array_equal(result.boxes, expected.boxes)
    assert np.array_equal(result.scores, expected.scores)
    assert np.array_equal(result.labels, expected.labels)
    assert (result.masks is not None) == masks
    assert not masks or np.array_equal(result.masks, expected.masks)


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "boxes"])
def test_of_doubtful_parts_the_surest_are_joined(masks):
    """The left tile finds the object twice; the right one calls it by another name, too."""
    cut = [(0, 0, 200, 200), (160, 0, 360, 200)]
    twice = [(100, 50, 250, 100)] * 2
    scores = np.array([0.3, 0.9], np.float32)
    left = find(twice, cut[0], masks, scores=scores)
    right = find(twice, cut[1], masks, scores=scores[::-1], labels=np.array([0, 1]))
    result = tiles.join(IMAGE, cut, [left, right])
    assert result.scores.tolist() == [scores[1], scores[0], scores[0]]
    assert result.labels.tolist() == [0, 0, 1]
    assert result.boxes.tolist() == [
        [100, 50, 250, 100], [100, 50, 200, 100], [160, 50, 250, 100]
    ]  # fmt: skip


def test_box_and_mask_are_the_union_of_parts_that_differ():
    cut = [(0, 0, 200, 200), (160, 0, 360, 200)]
    parts = [find([(100, 50, 250, 100)], cut[0]), find([(100, 54, 250, 104)], cut[1])]
    result: Any = tiles.join(IMAGE, cut, parts)
    assert result.boxes.tolist() == [[100, 50, 250, 104]]
    expected = np.zeros((1, 400, 600), bool)
    expected[:, 50:100, 100:200] = expected[:, 54:104, 160:250] = True
    assert np.array_equal(result.masks, expected)


# ------------------------------------------------------------------------------ through a model


def test_each_tile_is_predicted_as_an_image(predictors):
    predictor, image = predictors["mmdet"], make_image(0, 96, 64)[..., ::-1]
    result = predictor(image, slice=64, overlap=0.5, batch_size=2, threshold=0.3)
    cut = [(0, 0, 64, 64), (32, 0, 96, 64)]
    parts = [predictor(image[:, left:right]).select(0.3) for left, _, right, _ in cut]
    expected: Any = tiles.join(image, cut, parts)
    assert len(expected) and result.scores.min() >= 0.3
    np.testing.assert_allclose(result.boxes, expected.boxes, atol=1e-2)
    np.testing.assert_allclose(result.scores, expected.scores, atol=1e-4)
    assert np.array_equal(result.labels, expected.labels)
    assert result.masks.shape == (len(result), 64, 96)
    assert (result.masks != expected.masks).mean() < 1e-3
    # of a list, each by itself; an image that is not larger than a tile is predicted whole
    small, again = predictor([image[:, :64], image], slice=64, overlap=0.5, threshold=0.3)
    np.testing.assert_allclose(small.boxes, parts[0].boxes, atol=1e-2)
    np.testing.assert_allclose(again.scores, result.scores, atol=1e-4)


def test_threshold_without_tiles(predictors):
    image = make_image(0)[..., ::-1]
    result, expected = predictors["mmdet"](image, threshold=0.3), predictors["mmdet"](image)
    assert 0 < len(result) < len(expected)
    assert np.array_equal(result.scores, expected.select(0.3).scores)


@pytest.mark.parametrize("channels", [5, 1], ids=["five classes", "binary"])
def test_segmentors_slide_as_mmsegmentation_does(weights, channels, tmp_path):
    """Where the pipeline does not resize, tiles are the windows of `mode='slide'`."""
    options: dict[str, Any] = {"model.test_cfg.mode": "slide", "model.test_cfg.crop_size": (64, 64),
               "model.test_cfg.stride": (48, 48)}  # fmt: skip
    checkpoint = weights["mmseg"]
    if channels == 1:
        options |= {"model.decode_head.num_classes": 2, "model.decode_head.out_channels": 1}
        content = torch.load(checkpoint, weights_only=True)
        for name in ("decode_head.conv_seg.weight", "decode_head.conv_seg.bias"):
            content["state_dict"][name] = content["state_dict"][name][:1]
        content["meta"]["dataset_meta"] = {"classes": ("ground", "thing")}
        checkpoint = str(tmp_path / "binary.pth")
        torch.save(content, checkpoint)
    image = make_image(0, 150, 100)[..., ::-1]
    sliding = Predictor(load_config(str(CONFIGS["mmseg"]), options), checkpoint)
    expected = np.asarray(sliding(image).semantic)
    options["model.test_cfg.mode"] = "whole"
    whole = Predictor(load_config(str(CONFIGS["mmseg"]), options), checkpoint)
    semantic = whole(image, slice=64, overlap=0.25).semantic
    assert len(np.unique(expected)) > 1 and semantic.dtype == np.int64
    assert (semantic != expected).mean() < 1e-3
    assert (whole(image).semantic != expected).mean() > 1e-2


@pytest.mark.parametrize(
    ("scope", "options", "words"),
    [
        ("mmpretrain", {"slice": 32}, "a classifier sees the whole image"),
        ("mmdet", {"slice": 0}, "the size of tiles is 0"),
        ("mmdet", {"slice": 32, "overlap": 1.0}, "the overlap of tiles is 1.0, not between"),
        ("mmseg", {"slice": 32, "overlap": 0}, "the overlap of tiles is 0, not between"),
    ],
)
def test_what_can_not_be_is_one_sentence(predictors, scope, options, words):
    with pytest.raises(ConfigError, match=words):
        predictors[scope](make_image(0), **options)
