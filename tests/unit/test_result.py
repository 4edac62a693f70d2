"""What images may be given as, and what results hold, return and draw; without a model."""

import cv2
import numpy as np
import pytest
import supervision as sv
from mmengine.config import Config
from mmseg.datasets import BaseSegDataset
from PIL import Image
from pycocotools import mask as coco_mask

from fcvit_mm.apis.model import _dataset_meta, with_palette
from fcvit_mm.apis.result import Result, coco_content
from fcvit_mm.utils.errors import ConfigError
from fcvit_mm.visualization.draw import distinct_colors
from fcvit_mm.visualization.images import convert_image
from helpers.images import make_image

CLASSES = ("a", "b", "c")
RED, GREEN, BLUE = PALETTE = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
GRAY = np.full((400, 600, 3), 128, np.uint8)


def detections(*boxes: tuple[float, ...], masks: bool = True, **changes) -> Result:
    """Objects of the classes 0, 1, 2, 0, ..., each less certain than the one before."""
    n = len(boxes)
    covered = np.zeros((n, *GRAY.shape[:2]), bool)
    for mask, (left, top, right, bottom) in zip(covered, boxes, strict=True):
        mask[int(top) : int(bottom), int(left) : int(right)] = True
    fields = {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "scores": 0.9 - 0.1 * np.arange(n, dtype=np.float32),
        "labels": np.arange(n) % 3,
        "masks": covered if masks else None,
    }
    return Result(GRAY, CLASSES, PALETTE, **{**fields, **changes})


@pytest.fixture
def label_map() -> Result:
    """Half of it c, a third a, the rest of no class."""
    semantic = np.full((4, 6), 255)
    semantic[:2], semantic[2:, :4] = 2, 0
    return Result(GRAY[:4, :6], CLASSES, PALETTE, semantic=semantic)


@pytest.fixture
def classification() -> Result:
    scores, labels = np.array([0.6, 0.3, 0.1], np.float32), np.array([1, 2, 0])
    return Result(GRAY, CLASSES, PALETTE, scores=scores, labels=labels)


# ---------------------------------------------------------------------------- what goes in


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 6)), r"\(4, 6\), float64; np.stack"),
        (np.zeros((4, 6, 4), np.uint8), r"\(4, 6, 4\), uint8; image\[:, :, :3\]"),
        (np.zeros((2, 4, 6, 3), np.uint8), r"\(2, 4, 6, 3\), uint8; give several images as a list"),
        (np.zeros((3, 4, 6), np.uint8), r"\(3, 4, 6\), uint8; image.transpose"),
        (np.zeros((4, 6, 3), np.float32), r"\(4, 6, 3\), float32; \(255 \* image\)"),
        (np.zeros((4, 6, 3), np.uint16), r"\(4, 6, 3\), uint16$"),
        (np.zeros((0, 6, 3), np.uint8), r"\(0, 6, 3\), uint8$"),
        (None, "a path, not a NoneType"),
        (Image.new("F", (2, 2)), "a PIL image of mode F has no colors"),
        ("nowhere.png", "nowhere.png can't be read"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_one_sentence(image, words):
    with pytest.raises(ConfigError, match=words) as error:
        convert_image(image)
    assert "\n" not in str(error.value)


def test_pil_images_are_turned_and_converted():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(make_image(0))
    image.getexif().update(exif)
    assert convert_image(image).shape == (64, 48, 3)
    for mode in ("L", "P", "RGBA", "CMYK"):
        assert convert_image(Image.new(mode, (6, 4))).shape == (4, 6, 3)


# --------------------------------------------------------------------------- what comes out


def test_select_leaves_out_scores_and_classes(label_map, classification):
    found = detections(*[(0, 0, 10, 10)] * 5, track_ids=np.arange(5))
    kept = found.select(0.55, ["a", "b"])
    assert kept.labels.tolist() == [0, 1, 0] and kept.track_ids.tolist() == [0, 1, 3]
    assert kept.boxes.shape == (3, 4) and kept.masks.shape == (3, 400, 600)
    assert kept.scores.shape == (3,) and len(found) == 5
    assert label_map.select(classes=["a"]).semantic.tolist()[::2] == [
        [255] * 6,
        [0] * 4 + [255] * 2,
    ]
    assert len(label_map.select(classes=[])) == 0
    assert classification.select(0.2).labels.tolist() == [1, 2]
    with pytest.raises(ConfigError, match=r"no class 'sqare'; did you mean"):
        found.select(classes=["sqare"])


def test_to_supervision(label_map, classification):
    found = detections((1, 2, 30, 40), (0, 0, 9, 9), track_ids=np.array([7, 8]))
    given = found.to_supervision()
    assert isinstance(given, sv.Detections)
    assert given.xyxy.tolist() == [[1, 2, 30, 40], [0, 0, 9, 9]] and given.mask is found.masks
    assert given.confidence is found.scores and given.tracker_id is found.track_ids
    assert given.data["class_name"].tolist() == ["a", "b"] and given.class_id.tolist() == [0, 1]
    given = label_map.to_supervision()
    assert given.class_id.tolist() == [2, 0] and given.confidence is None
    assert given.xyxy.tolist() == [[0, 0, 6, 2], [0, 2, 4, 4]] and given.mask.sum() == 20
    given = classification.to_supervision()
    assert isinstance(given, sv.Classifications) and given.class_id.tolist() == [1, 2, 0]
    for empty in (detections(), label_map.select(classes=[])):
        assert len(empty.to_supervision()) == 0


def test_to_coco(label_map, classification):
    found = detections((1, 2, 31, 42), (0, 0, 9, 9), track_ids=np.array([7, 8]))
    first, second = found.to_coco(image_id=5, first_id=3)
    assert (first["id"], second["id"], first["image_id"]) == (3, 4, 5)
    assert first["bbox"] == [1, 2, 30, 40] and first["area"] == 1200 and first["iscrowd"] == 0
    assert (second["category_id"], second["track_id"]) == (2, 8)
    assert first["score"] == pytest.approx(0.9)
    assert np.array_equal(coco_mask.decode(first["segmentation"]), found.masks[0])
    (plain,) = detections((1, 2, 31.5, 42), masks=False).to_coco()
    assert plain["area"] == 30.5 * 40 and not {"segmentation", "track_id"} & plain.keys()
    largest, other = label_map.to_coco()
    assert (largest["category_id"], largest["area"], other["area"]) == (3, 12, 8)
    assert other["bbox"] == [0, 2, 4, 2] and "score" not in other
    with pytest.raises(ConfigError, match="a classifier finds no objects"):
        classification.to_coco()
    content = coco_content(CLASSES, [{"id": 5}], [first])
    assert content["categories"][1] == {"id": 2, "name": "b"}


def test_to_table(label_map, classification):
    (row,) = detections((1, 2, 31, 42), track_ids=np.array([7])).to_table()
    assert row == {
        "class": "a", "score": pytest.approx(0.9), "left": 1, "top": 2, "right": 31, "bottom": 42,
        "pixels": 1200, "track_id": 7,
    }  # fmt: skip
    assert label_map.to_table() == [
        {"class": "c", "pixels": 12, "percent": 50.0},
        {"class": "a", "pixels": 8, "percent": pytest.approx(100 / 3)},
    ]
    assert classification.to_table()[0] == {"class": "b", "score": pytest.approx(0.6)}


# ----------------------------------------------------------------------------- how it looks


def test_masks_cover_to_40_percent_and_outlines_are_thin():
    drawn = detections((100, 100, 300, 300)).draw()
    assert drawn.shape == GRAY.shape and drawn.dtype == np.uint8
    np.testing.assert_allclose(drawn[200, 200], 0.6 * 128 + 0.4 * np.array(RED), atol=1)
    assert drawn[200, 50].tolist() == [128] * 3
    # without a mask the outline alone
    drawn = detections((100, 100, 300, 300), masks=False).draw()
    changed = (drawn != 128).any(2)
    assert not changed[120:290, 120:290].any()
    assert changed[200].sum() <= 6 and drawn[200, 100].tolist() == list(RED)


def test_a_class_has_one_color_whatever_else_is_drawn():
    alone = detections((100, 100, 300, 300), labels=np.array([2])).draw()
    among = detections((0, 0, 9, 9), (9, 0, 20, 9), (100, 100, 300, 300)).draw()
    assert alone[200, 200].tolist() == among[200, 200].tolist()
    boxes = (50, 50, 150, 150), (350, 50, 450, 150)
    twins = detections(*boxes, labels=np.array([1, 1]))
    one, other = twins.draw()[100, 100], twins.draw()[100, 400]
    assert one.tolist() == other.tolist()
    drawn = twins.draw(color_by="instance")
    assert drawn[100, 100].tolist() != drawn[100, 400].tolist()
    # an object that is followed keeps its color
    first = detections(*boxes, track_ids=np.array([4, 9])).draw("instance")
    second = detections(*boxes, track_ids=np.array([9, 4])).draw("instance")
    assert first[100, 100].tolist() == second[100, 400].tolist()


@pytest.mark.parametrize("box", [(0, 0, 40, 30), (570, 0, 600, 400), (0, 380, 600, 400)])
def test_labels_lie_inside_the_image(box):
    """As much of a label is seen as of one in the middle, in the color of its class."""

    def label(*box: int) -> int:
        drawn = detections(box, masks=False).draw()
        outline = GRAY.copy()
        cv2.rectangle(outline, box[:2], box[2:], RED, 2)
        return int(((drawn != outline).any(2)).sum())

    middle = label(200, 200, 300, 300)
    assert middle > 300 and label(*box) > 0.8 * middle


def test_scale_and_the_size_of_what_is_drawn(label_map):
    found = detections((100, 100, 300, 300))
    drawn = found.draw(scale=0.5)
    assert drawn.shape == (200, 300, 3)
    np.testing.assert_allclose(drawn[100, 100], 0.6 * 128 + 0.4 * np.array(RED), atol=1)
    assert drawn[100, 160].tolist() == [128] * 3
    large = label_map.draw(scale=100)
    assert large.shape == (400, 600, 3)
    np.testing.assert_allclose(large[50, 50], 0.6 * 128 + 0.4 * np.array(BLUE), atol=1)
    assert large[390, 590].tolist() == [128] * 3
    for shape in ((1, 1), (1, 300), (2000, 40)):
        image = np.zeros((*shape, 3), np.uint8)
        tiny = Result(image, CLASSES, PALETTE, semantic=np.zeros(shape, int))
        assert tiny.draw().shape == image.shape
    assert np.array_equal(detections().draw(), GRAY)
    for options, words in (({"scale": 0}, "scale is 0"), ({"color_by": "x"}, "color_by is 'x'")):
        with pytest.raises(ConfigError, match=words):
            found.draw(**options)


def test_the_label_of_a_class_lies_on_its_pixels():
    """Where its largest part is widest, not at the center of two parts."""
    semantic = np.zeros((400, 600), int)
    semantic[100:300, 50:250] = semantic[150:250, 450:550] = 1
    drawn = Result(GRAY, CLASSES, PALETTE, semantic=semantic).draw()
    rows, columns = np.nonzero((drawn == GREEN).all(2)[110:290, 60:240])
    assert len(rows) > 100
    assert abs(rows.mean() - 90) < 10 and abs(columns.mean() - 90) < 10


def test_the_best_class_stands_in_the_corner(classification):
    changed = (classification.draw() != 128).any(2)
    assert changed[:25, :100].sum() > 200 and not changed[40:].any()


@pytest.mark.parametrize("name", [r"$\frac{$", "Fußgänger", "машина", ""])
def test_any_class_name_is_drawn(name):
    found = detections((100, 100, 300, 300))
    drawn = Result(GRAY, (name,), PALETTE[:1], found.boxes, found.scores, found.labels).draw()
    assert (drawn[60:99] != 128).any()


def test_colors_of_classes_can_be_told_apart():
    colors = distinct_colors(20)
    lab = cv2.cvtColor(colors[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    distances = np.linalg.norm(lab[:, None] - lab, axis=2)[~np.eye(20, dtype=bool)]
    assert distances.min() > 25
    # one more class changes no color
    assert np.array_equal(distinct_colors(80)[:20], colors) and len(distinct_colors(1000)) == 1000
    assert distinct_colors(0).shape == (0, 3)


def test_a_palette_is_used_where_it_has_a_color_per_class():
    assert with_palette(("a", "b"), PALETTE[:2])["palette"] == PALETTE[:2]
    # the 80 colors of COCO's dataset class are not those of two classes of one's own
    for palette in (PALETTE, PALETTE[:1], None, "random", [(300, 0, 0), (0, 0, 0)]):
        found = with_palette(("a", "b"), palette)["palette"]
        assert np.array_equal(found, distinct_colors(2))


def test_a_result_is_printed_in_a_line(label_map):
    assert repr(detections((0, 0, 9, 9))) == "Result(detection, 1 found, 600x400)"
    assert repr(label_map).startswith("Result(segmentation, 2 found, ")


def test_colors_that_mmsegmentation_has_drawn_are_not_the_datasets_own():
    meta = BaseSegDataset(metainfo=dict(classes=CLASSES), lazy_init=True).metainfo
    assert len(meta["palette"]) == 3
    found = _dataset_meta(Config(), {"meta": {"dataset_meta": meta}})
    assert found == with_palette(CLASSES, None)
