"""Objects keep their number through a video."""

import json
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import cv2
import numpy as np
import pytest

from fcvit_mm.apis import inference, sources
from fcvit_mm.apis.result import Result
from fcvit_mm.apis.tracking import Tracker
from fcvit_mm.utils import cli
from fcvit_mm.utils.cli import run_tool
from fcvit_mm.utils.errors import ConfigError
from helpers.images import make_image
from helpers.models import CONFIGS
from helpers.tools import load_tool

COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
FRAMES, SIDE = 24, 12


def places(frame: int) -> list[tuple[int, int]]:
    """The corners of three squares: two pass each other on lines of their own, one stands."""
    return [(4 + 3 * frame, 6), (100 - 3 * frame, 26), (50, 50)]


def result_of(frame: int, scores=(0.9, 0.8, 0.7)) -> Result:
    """The squares of a frame but for those that score nothing, in an order that changes."""
    shown = [i for i in np.roll(range(3), frame) if scores[i]]
    corners = np.array(places(frame), np.float32)[shown].reshape(-1, 2)
    return Result(
        np.zeros((80, 120, 3), np.uint8), ("red", "green", "blue"), COLORS,
        boxes=np.concatenate([corners, corners + SIDE], 1),
        scores=np.array(scores, np.float32)[shown], labels=np.array(shown, np.int64),
    )  # fmt: skip


def numbers(result: Result) -> dict[int, int]:
    return dict(zip(result.labels.tolist(), result.track_ids.tolist(), strict=True))


def test_numbers_stay():
    tracker = Tracker(frame_rate=25)
    found = [numbers(tracker(result_of(frame))) for frame in range(FRAMES)]
    assert found[0] == {0: -1, 1: -1, 2: -1}
    assert sorted(found[1].values()) == [0, 1, 2]
    assert all(later == found[1] for later in found[2:])


def test_a_number_outlasts_frames_without_the_object():
    tracker = Tracker(threshold=0.5)
    for frame in range(6):
        before = numbers(tracker(result_of(frame)))
    # unseen, then too uncertain to begin a track but not to continue one
    tracker(result_of(6, scores=(0, 0.9, 0.9)))
    tracker(result_of(7, scores=(0, 0, 0)))
    assert numbers(tracker(result_of(8, scores=(0.2, 0.9, 0.9)))) == before


def test_what_is_uncertain_begins_no_track():
    tracker = Tracker(threshold=0.5)
    for frame in range(4):
        found = numbers(tracker(result_of(frame, scores=(0.9, 0.4, 0.05))))
    assert found == {0: 0, 1: -1, 2: -1}


def test_an_object_of_two_names_has_one_number():
    """A second detection at the place of the first square is the better one in odd frames."""
    tracker = Tracker()
    for frame in range(FRAMES):
        scores = (0.9, 0.7) if frame % 2 else (0.7, 0.9)
        one: Any = result_of(frame, (1, 0, 0))
        boxes = np.concatenate([one.boxes, one.boxes + 1])
        two = replace(
            one, boxes=boxes, scores=np.array(scores, np.float32), labels=np.array([0, 1])
        )
        result: Any = tracker(two)
        assert sorted(result.track_ids) == ([-1, 0] if frame else [-1, -1])
        assert not frame or result.track_ids[np.argmax(scores)] == 0


def test_objects_of_no_track_have_no_number():
    tracker = Tracker()
    first, second = tracker(result_of(0)), tracker(result_of(1))
    assert not any("track_id" in row for row in first.to_coco() + first.to_table())
    assert all("track_id" in row for row in second.to_coco() + second.to_table())
    assert np.array_equal(first.draw(), result_of(0).draw())
    assert not np.array_equal(second.draw(), result_of(1).draw())


# ------------------------------------------------------------------------------------ in videos


class SquareFinder:
    """A detector of squares by their color."""

    task, classes, palette = "detection", ("red", "green", "blue"), COLORS

    def __call__(self, images, **options) -> list[Result]:
        return [self.find(image) for image in images]

    def find(self, image: np.ndarray) -> Result:
        labels: list[int] = []
        boxes: Any = []
        for label, color in enumerate(COLORS):
            mask = (np.abs(image.astype(int) - color) < 90).all(-1)
            if mask.any():
                labels.append(label)
                boxes.append([*np.argwhere(mask).min(0)[::-1], *np.argwhere(mask).max(0)[::-1] + 1])
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        scores = np.full(len(boxes), 0.9, np.float32)
        return Result(
            image, self.classes, COLORS, boxes=boxes, scores=scores, labels=np.array(labels, int)
        )


def write_video(path, frames: range) -> None:
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (120, 80))
    for frame in frames:
        image = np.zeros((80, 120, 3), np.uint8)
        for (x, y), color in zip(places(frame), COLORS, strict=True):
            image[y : y + SIDE, x : x + SIDE] = color
        video.write(image[..., ::-1])
    video.release()


def test_numbers_in_the_results_of_videos(tmp_path):
    write_video(tmp_path / "a.avi", range(FRAMES))
    write_video(tmp_path / "b.avi", range(8, 12))
    cv2.imwrite(str(tmp_path / "c.png"), result_of(0).image)
    found = sources.find_sources([str(tmp_path)], tmp_path / "out")
    finder: Any = SquareFinder()
    _, problems = inference.run(finder, found, tmp_path / "out", batch_size=5, track=True)
    assert problems == []
    content = json.loads((tmp_path / "out/detections.json").read_text())
    by_video: dict[str, dict[int, list]] = {"a": {}, "b": {}}
    for row in content["annotations"]:
        image = content["images"][row["image_id"] - 1]
        video = by_video["a" if image["file_name"].endswith("a.avi") else "b"]
        video.setdefault(row["category_id"], []).append(row.get("track_id"))
    for video, frames in zip(by_video.values(), (FRAMES, 4), strict=True):
        assert {len(ids) for ids in video.values()} == {frames}
        assert {ids[0] for ids in video.values()} == {None}
        # each video counts anew
        assert sorted(ids[1] for ids in video.values()) == [0, 1, 2]
        assert all(len(set(ids[1:])) == 1 for ids in video.values())


@pytest.mark.parametrize(
    ("scope", "arguments", "words"),
    [
        ("mmdet", ["a.png", "--track"], "none of the inputs is one"),
        ("mmseg", ["a.avi", "--track"], "--track follows what a detector finds"),
        ("mmdet", ["a.avi", "--track"], "this needs trackers, which is not installed"),
        ("mmpretrain", ["a.png", "--slice", "32"], "a classifier sees the whole image"),
    ],
)
def test_wrong_use_is_one_sentence(weights, tmp_path, monkeypatch, capsys, scope, arguments, words):
    cv2.imwrite(str(tmp_path / "a.png"), make_image(0))
    write_video(tmp_path / "a.avi", range(2))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        cli, "find_spec", lambda name: None if name == "trackers" else find_spec(name)
    )
    command = [str(CONFIGS[scope]), weights[scope], "--out", "out", *arguments]
    assert run_tool(load_tool("infer").main, command) == 2
    assert words in capsys.readouterr().err


def test_infer_writes_numbers(weights, tmp_path):
    """With a model, of a video that stands still."""
    video = cv2.VideoWriter(
        str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48)
    )  # fmt: skip
    for _ in range(3):
        video.write(make_image(0))
    video.release()
    command = [str(CONFIGS["mmdet"]), weights["mmdet"], str(tmp_path / "a.avi"), "--track",
               "--out", str(tmp_path / "out"), "--score-threshold", "0.3",
               "--slice", "48", "--overlap", "0.5"]  # fmt: skip
    assert run_tool(load_tool("infer").main, command) == 0
    content = json.loads((tmp_path / "out/detections.json").read_text())
    last = [row["track_id"] for row in content["annotations"]
            if row["image_id"] == 3 and "track_id" in row]  # fmt: skip
    assert last and len(set(last)) == len(last)
    assert not any("track_id" in row for row in content["annotations"] if row["image_id"] == 1)


def test_a_segmentor_has_nothing_to_follow():
    result = Result(np.zeros((4, 4, 3), np.uint8), ("a",), COLORS, semantic=np.zeros((4, 4), int))
    with pytest.raises(ConfigError, match="a model for segmentation"):
        Tracker()(result)
