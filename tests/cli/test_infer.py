"""Images and videos through models: Predictor, and tools/demos/infer.py as a user runs it."""

import functools
import json
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import fcvit_mm
from fcvit_mm.apis import inference, sources
from fcvit_mm.apis.predictor import Predictor
from fcvit_mm.apis.result import Result
from fcvit_mm.datasets import shapes
from fcvit_mm.utils.cli import Terminated, run_tool
from fcvit_mm.utils.config import IGNORED, load_config
from fcvit_mm.utils.errors import ConfigError
from fcvit_mm.visualization.images import read_image, write_image
from helpers import ROOT
from helpers.images import make_image, read
from helpers.models import CONFIGS, inferencer, saved
from helpers.tools import assert_sentence, load_tool

# an untrained head scores each class alike
ALL = "model.test_cfg.rcnn.score_thr=0.0"


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder with two images of the same name, a clip of three frames, and a text."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "below").mkdir()
    cv2.imwrite(str(folder / "a.png"), make_image(0))
    cv2.imwrite(str(folder / "below/a.jpg"), make_image(1, 40, 56))
    clip = cv2.VideoWriter(str(folder / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 48))
    for index in range(3):
        clip.write(make_image(index))
    clip.release()
    (folder / "text.jpg").write_text("no image\n")
    return folder


def values_of(result: Result) -> list[np.ndarray]:
    names = ("boxes", "scores", "labels", "masks", "semantic")
    return [value for name in names if (value := getattr(result, name)) is not None]


def assert_alike(a: np.ndarray, b: np.ndarray) -> None:
    """Labels or masks, of which rounding may decide one pixel in a thousand the other way."""
    assert a.shape == b.shape and (a != b).mean() < 1e-3


# -------------------------------------------------------------------------------- Predictor


@pytest.mark.official
@pytest.mark.parametrize("scope", CONFIGS)
def test_what_openmmlabs_inferencer_predicts(predictors, weights, scope):
    init_default_scope(scope)
    theirs = inferencer(scope, Path(weights[scope]))
    if scope == "mmdet":
        theirs.model.roi_head.test_cfg.score_thr = 0.0
    image = make_image(0)
    found = predictors[scope](image[..., ::-1])
    result = theirs(image)
    if scope == "mmdet":
        (expected,) = result["predictions"]
        assert len(found) > 0
        assert found.labels.tolist() == expected["labels"]
        np.testing.assert_allclose(found.scores, expected["scores"], rtol=1e-5)
        np.testing.assert_allclose(found.boxes, expected["bboxes"], rtol=1e-5, atol=1e-4)
        for mask, code in zip(found.masks, expected["masks"], strict=True):
            assert_alike(mask, coco_mask.decode(code))
    elif scope == "mmseg":
        assert found.semantic.shape == (48, 64)
        assert_alike(found.semantic, result["predictions"])
    else:
        expected = result[0]["pred_scores"]
        assert found.labels.tolist() == np.argsort(-expected).tolist()
        np.testing.assert_allclose(found.scores, np.sort(expected)[::-1], rtol=1e-5)


@pytest.mark.official
@pytest.mark.parametrize("scope", CONFIGS)
def test_a_prediction_does_not_depend_on_the_batch(predictors, scope):
    images = [make_image(0), make_image(1, 40, 56), make_image(2), make_image(3, 90, 33)]
    together = predictors[scope](images)
    for image, result in zip(images, together, strict=True):
        alone = predictors[scope](image)
        for a, b in zip(values_of(result), values_of(alone), strict=True):
            if a.dtype.kind == "f":
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
            else:
                assert_alike(a, b)


def test_arrays_pil_images_and_paths_give_the_same(predictors, tmp_path):
    rgb = make_image(0)[..., ::-1]
    Image.fromarray(rgb).save(tmp_path / "a.png")
    images = [rgb, Image.fromarray(rgb), tmp_path / "a.png", str(tmp_path / "a.png")]
    expected = predictors["mmdet"](rgb)
    assert len(expected) > 0 and np.array_equal(expected.image, rgb)
    for result in predictors["mmdet"](images, batch_size=3):
        assert np.array_equal(result.image, rgb)
        np.testing.assert_allclose(result.boxes, expected.boxes, atol=1e-3)
    # red and blue are not taken for each other
    other = predictors["mmdet"](rgb[..., ::-1])
    assert other.boxes.shape != expected.boxes.shape or not np.allclose(other.boxes, expected.boxes)


def test_types_and_shapes_of_every_task(predictors):
    image = make_image(0)
    found = predictors["mmdet"](image)
    n = len(found)
    assert found.boxes.shape == (n, 4) and found.boxes.dtype == np.float32
    assert found.scores.shape == (n,) and found.scores.dtype == np.float32
    assert found.labels.shape == (n,) and found.labels.dtype == np.int64
    assert found.masks.shape == (n, 48, 64) and found.masks.dtype == bool
    assert found.semantic is found.track_ids is None
    assert (np.diff(found.scores) <= 0).all()
    found = predictors["mmseg"](image)
    assert found.semantic.shape == (48, 64) and found.semantic.dtype == np.int64
    assert found.boxes is found.scores is found.labels is found.masks is None
    found = predictors["mmpretrain"](image)
    assert sorted(found.labels) == list(range(len(found.classes))) == list(range(len(found)))
    assert (np.diff(found.scores) <= 0).all() and found.scores.sum() == pytest.approx(1)
    assert found.boxes is found.masks is found.semantic is None
    for scope, task in (("mmdet", "detection"), ("mmseg", "segmentation")):
        assert predictors[scope](image).task == predictors[scope].task == task


def test_images_are_left_as_they_are(predictors):
    image = make_image(0)
    before = image.copy()
    result = predictors["mmdet"](image)
    result.draw()
    assert np.array_equal(image, before)
    assert predictors["mmdet"]([]) == []
    with pytest.raises(ConfigError, match="batch_size is 0"):
        predictors["mmdet"]([image], batch_size=0)


def test_load_takes_a_config_and_a_checkpoint(weights):
    predictor = fcvit_mm.load(CONFIGS["mmdet"], weights["mmdet"], device="cpu")
    assert isinstance(predictor, Predictor) and predictor.classes[0] == "circle"
    with pytest.raises(ConfigError, match="give a checkpoint"):
        fcvit_mm.load(CONFIGS["mmdet"])
    with pytest.raises(ConfigError, match="--device nonsense can't be used"):
        fcvit_mm.load(CONFIGS["mmdet"], weights["mmdet"], device="nonsense")


def test_rotation_by_exif_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(make_image(0)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (64, 48, 3)


def test_a_file_without_classes_takes_those_of_the_dataset(tmp_path):
    saved("mmdet", tmp_path / "bare.pth", with_classes=False)
    cfg = load_config(str(CONFIGS["mmdet"]))
    predictor = Predictor(cfg, str(tmp_path / "bare.pth"))
    assert predictor.classes == shapes.CLASSES
    assert predictor.palette == [tuple(color) for color in shapes.PALETTE]


# --------------------------------------------------------------------------- what is read


def test_sources_of_folders_globs_and_numbers(images, tmp_path):
    out = tmp_path / "out"
    found = sources.find_sources([str(images)], out)
    assert [(str(s.name), s.moving) for s in found] == [
        ("a.png", False), ("below/a.jpg", False), ("clip.avi", True), ("text.jpg", False)
    ]  # fmt: skip
    found = sources.find_sources([f"{images}/**/a.*", f"{images}/a.png", "0"], out)
    assert [str(s.name) for s in found] == ["a.png", "a_2.jpg", "a_3.png", "webcam0.mp4"]
    assert found[3].path == 0 and found[3].moving


def test_earlier_results_are_not_read_again(images):
    out = images / "below"
    names = [str(s.name) for s in sources.find_sources([str(images)], out)]
    assert names == ["a.png", "clip.avi", "text.jpg"]
    with pytest.raises(ConfigError, match="lies in --out"):
        sources.find_sources([str(images / "below/a.jpg")], out)


def test_a_video_that_ends_early_gives_its_frames_and_a_sentence(images, tmp_path):
    content = (images / "clip.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) * 2 // 3])
    (source,) = sources.find_sources([str(tmp_path / "cut.avi")], tmp_path / "out")
    frames: list[sources.Frame] = []
    with pytest.raises(ConfigError, match=r"cut\.avi could be read as far as frame \d of"):
        frames += sources.read_frames(source)
    (source,) = sources.find_sources([str(images / "clip.avi")], tmp_path / "out")
    assert [frame.number for frame in sources.read_frames(source)] == [0, 1, 2]
    assert [frame.number for frame in sources.read_frames(source, most=2)] == [0, 1]


# ------------------------------------------------------------------------ what is written


class Interrupted:
    """A predictor that Ctrl-C, or a fault, reaches at its second call."""

    def __init__(self, predictor: Predictor, error: BaseException) -> None:
        self.predictor, self.error, self.calls = predictor, error, 0

    def __getattr__(self, name: str):
        return getattr(self.predictor, name)

    def __call__(self, images, **options):
        self.calls += 1
        if self.calls == 2:
            raise self.error
        return self.predictor(images, **options)


class Camera:
    """Stands in for OpenCV's VideoCapture of a webcam, which one reader alone can have."""

    in_use = False

    def __init__(self, path) -> None:
        self.opened, self.frames = path == 0 and not Camera.in_use, 0
        Camera.in_use = True

    def isOpened(self) -> bool:  # noqa: N802
        return self.opened

    def get(self, key: int) -> float:
        return {cv2.CAP_PROP_FPS: 12.0}.get(key, -1.0)

    def read(self):
        self.frames += 1
        if self.frames > 3:
            raise KeyboardInterrupt
        return True, make_image(self.frames)

    def release(self) -> None:
        Camera.in_use = False


def test_a_webcam_until_ctrl_c(predictors, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sources.cv2, "VideoCapture", Camera)
        found = sources.find_sources(["0"], tmp_path)
        _, problems = inference.run(predictors["mmseg"], found, tmp_path)
    assert problems == ["interrupted: what was predicted before is written"]
    assert not Camera.in_use
    video = cv2.VideoCapture(str(tmp_path / "drawn/webcam0.mp4"))
    assert (video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)) == (3, 12)


@pytest.mark.parametrize(
    ("kind", "word"), [(KeyboardInterrupt, "interrupted"), (Terminated, "terminated")]
)
def test_what_was_predicted_before_an_interrupt_is_written(
    predictors, images, tmp_path, kind, word
):
    found = sources.find_sources([str(images / "clip.avi")], tmp_path)
    stopped = Interrupted(predictors["mmdet"], kind())
    _, problems = inference.run(stopped, found, tmp_path)  # type: ignore[arg-type]
    assert problems == [f"{word}: what was predicted before is written"]
    with pytest.raises(KeyboardInterrupt, match=word) as again:
        inference.report(problems)
    assert again.type is kind
    assert len(json.loads((tmp_path / "detections.json").read_text())["images"]) == 1
    video = cv2.VideoCapture(str(tmp_path / "drawn/clip.mp4"))
    assert video.read()[0] and not video.read()[0]


def test_a_fault_leaves_nothing_half_written(predictors, images, tmp_path):
    found = sources.find_sources([str(images / "clip.avi")], tmp_path)
    stopped = Interrupted(predictors["mmdet"], ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        inference.run(stopped, found, tmp_path)  # type: ignore[arg-type]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_names_of_results_without_an_ending_of_an_image(tmp_path):
    write_image(tmp_path / "a.unknown", make_image(0))
    assert np.array_equal(read_image(tmp_path / "a.unknown.png"), make_image(0))


def test_one_video_is_open_at_a_time(predictors, images, tmp_path):
    twice = sources.find_sources([str(images / "clip.avi")] * 2, tmp_path)
    with ExitStack() as stack:
        results = inference.Results(predictors["mmseg"], tmp_path, stack, "class", 1.0)
        for source in twice:
            for frame in sources.read_frames(source):
                results.add(frame, predictors["mmseg"](frame.image))
        results.close()
    for name in ("clip", "clip_2"):
        assert cv2.VideoCapture(str(tmp_path / f"drawn/{name}.mp4")).isOpened()
        assert len(list((tmp_path / f"labels/{name}").iterdir())) == 3


@pytest.mark.official
def test_detections(tool, predictors, weights, images, tmp_path):
    result = tool(
        "infer.py", CONFIGS["mmdet"], weights["mmdet"], images, "--out", tmp_path,
        "--score-threshold", 0, "--batch-size", 2, "--classes", "star", "circle",
        "--cfg-options", ALL,
    )  # fmt: skip
    # the text is reported, and did not stop the others
    assert_sentence(result, "text.jpg is not an image")
    found = COCO(str(tmp_path / "detections.json"))
    assert [tuple(image.values())[1:] for image in found.imgs.values()] == [
        (str(images / "a.png"), 64, 48),
        (str(images / "below/a.jpg"), 40, 56),
        *((str(images / "clip.avi"), 64, 48, frame) for frame in range(3)),
    ]  # fmt: skip
    predictor = predictors["mmdet"]
    for image_id, path in ((1, "a.png"), (2, "below/a.jpg")):
        expected = predictor(images / path).select(classes=["star", "circle"])
        annotations = found.imgToAnns[image_id]
        assert len(annotations) == len(expected) > 0
        names = [found.cats[a["category_id"]]["name"] for a in annotations]
        assert names == [shapes.CLASSES[label] for label in expected.labels]
        boxes = np.array([a["bbox"] for a in annotations])
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(boxes, expected.boxes, atol=1e-3)
        np.testing.assert_allclose([a["score"] for a in annotations], expected.scores, atol=1e-5)
        for annotation, mask in zip(annotations, expected.masks, strict=True):
            decoded = coco_mask.decode(annotation["segmentation"])
            assert_alike(decoded, mask)
            assert annotation["area"] == decoded.sum()
    assert read_image(tmp_path / "drawn/below/a.jpg").shape == (56, 40, 3)
    drawn = {str(p.relative_to(tmp_path / "drawn")) for p in (tmp_path / "drawn").rglob("*.*")}
    assert drawn == {"a.png", "below/a.jpg", "clip.mp4"}


@pytest.mark.official
def test_label_maps(tool, predictors, weights, images, tmp_path):
    result = tool(
        "infer.py", CONFIGS["mmseg"], weights["mmseg"], images / "a.png", images / "clip.avi",
        "--out", tmp_path, "--max-frames", 2, "--classes", "ground", "star", "square",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    labels = read(tmp_path / "labels/a.png", cv2.IMREAD_UNCHANGED)
    expected = predictors["mmseg"](images / "a.png").semantic
    expected = np.where(np.isin(expected, [0, 2, 4]), expected, IGNORED)
    assert labels.dtype == np.uint8
    assert_alike(labels, expected)
    assert sorted(p.name for p in (tmp_path / "labels/clip").iterdir()) == [
        "000000.png", "000001.png"
    ]  # fmt: skip
    assert "label maps of 3 images" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.jpg"], ["nowhere.jpg", "no such file"]),
        (["text.jpg"], ["text.jpg is not an image"]),
        (["a.png", "--classes", "sqare"], ["no class 'sqare'", "'square'"]),
        (["a.png", "--device", "nonsense"], ["--device nonsense can't be used"]),
        (["empty"], ["the folder has no images"]),
        (["a.png", "--out", "text.jpg"], ["--out text.jpg can't be written"]),
        (["7"], ["webcam 7 can't be opened"]),
    ],
)
def test_wrong_input_is_one_sentence(
    weights, images, tmp_path, monkeypatch, capsys, arguments, words
):
    """By the main function of the tool, which would start anew for a second each."""
    (images / "empty").mkdir(exist_ok=True)
    monkeypatch.chdir(images)
    command = [CONFIGS["mmdet"], weights["mmdet"], "--out", tmp_path, *arguments]
    assert run_tool(load_tool("infer").main, [str(word) for word in command]) == 2
    error = capsys.readouterr().err
    assert [line for line in error.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in error


def test_an_image_of_one_pixel(predictors, tmp_path):
    cv2.imwrite(str(tmp_path / "one.png"), np.full((1, 1, 3), 200, np.uint8))
    for scope in ("mmdet", "mmseg"):
        found = sources.find_sources([str(tmp_path / "one.png")], tmp_path / scope)
        lines, problems = inference.run(predictors[scope], found, tmp_path / scope)
        assert problems == [] and "1 image" in lines[1]
        assert read_image(tmp_path / scope / "drawn/one.png").shape == (1, 1, 3)
    assert cv2.imread(str(tmp_path / "mmseg/labels/one.png"), cv2.IMREAD_UNCHANGED).shape == (1, 1)


def test_a_checkpoint_of_another_arch(tool, weights, images):
    config = ROOT / "configs/detection/mask_rcnn_fcvit_s12_coco.py"
    result = tool("infer.py", config, weights["mmdet"], images / "a.png")
    assert_sentence(result, "mmdet.pth does not fit the model", "arch='tiny'")


def test_classes_of_images(predictors, images, tmp_path):
    found = sources.find_sources([str(images / "a.png"), str(images / "clip.avi")], tmp_path)
    lines, _ = inference.run(predictors["mmpretrain"], found, tmp_path, classes=["star", "circle"])
    path = tmp_path / "classes.json"
    assert lines[1] == f"classes of 4 images: {path}"
    content = json.loads(path.read_text())["images"]
    assert [entry.get("frame") for entry in content] == [None, 0, 1, 2]
    expected = predictors["mmpretrain"](images / "a.png").select(classes=["star", "circle"])
    assert content[0]["classes"] == expected.to_table() and len(expected) == 2
    drawn = read_image(tmp_path / "drawn/a.png")
    assert not np.array_equal(drawn, read_image(images / "a.png"))


def test_scale_and_color_by(predictors, images, tmp_path):
    found = sources.find_sources([str(images / "a.png"), str(images / "clip.avi")], tmp_path)
    run = functools.partial(inference.run, predictors["mmdet"], found, threshold=0.0)
    drawn = {}
    for color_by in ("class", "instance"):
        run(tmp_path / color_by, color_by=color_by, scale=2.5)
        drawn[color_by] = read_image(tmp_path / color_by / "drawn/a.png")
        video = cv2.VideoCapture(str(tmp_path / color_by / "drawn/clip.mp4"))
        assert video.read()[1].shape == (120, 160, 3)
    assert drawn["class"].shape == (120, 160, 3)
    assert not np.array_equal(drawn["class"], drawn["instance"])
    expected = predictors["mmdet"](images / "a.png").draw("instance", 2.5)
    assert np.array_equal(drawn["instance"], expected[..., ::-1])
