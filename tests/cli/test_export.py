"""Exported models: against OpenMMLab, in a program without PyTorch, and broken ones."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from fcvit_mm.apis import export
from fcvit_mm.apis.export import comparison, graphs, mask_rcnn
from fcvit_mm.apis.model import build_model
from fcvit_mm.apis.predictor import Predictor
from fcvit_mm.datasets import shapes
from fcvit_mm.utils import cli
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.errors import ConfigError
from helpers import ROOT
from helpers.images import make_image, read
from helpers.tensorrt import assert_tensorrt_reads
from helpers.tools import assert_sentence, load_tool, run_exported

# One block per stage: the time of an export grows with the number of layers.
SMALL = {"layers": (1, 1, 1, 1), "dims": (16, 16, 24, 32), "mlp_ratios": (2, 2, 2, 2)}
CONFIGS = {
    "mask_rcnn": "detection/mask_rcnn_fcvit_tiny_shapes.py",
    "semantic_fpn": "segmentation/semantic_fpn_fcvit_tiny_shapes.py",
    "upernet": "segmentation/upernet_fcvit_tiny_shapes.py",
}
CLASSES = {"mask_rcnn": shapes.CLASSES}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """Config and checkpoint of a small model of each method, whose scores are far apart."""
    folder = tmp_path_factory.mktemp("small")
    made = {}
    for method, base in CONFIGS.items():
        config = folder / f"{method}.py"
        model: dict = {"backbone": {"arch": {"_delete_": True, **SMALL}, "kernel_size": 5}}
        channels = list(SMALL["dims"])
        head = "decode_head" if method == "upernet" else "neck"
        model[head] = {"in_channels": channels}
        if method == "mask_rcnn":
            # as for COCO: the last level is half of the last stage
            model["neck"]["num_outs"] = 5
            model["rpn_head"] = {"anchor_generator": {"strides": [4, 8, 16, 32, 64]}}
            model["test_cfg"] = {"rpn": {"nms_pre": 40, "max_per_img": 30},
                                 "rcnn": {"score_thr": 0.3, "max_per_img": 20}}  # fmt: skip
        config.write_text(f"_base_ = {str(ROOT / 'configs' / base)!r}\nmodel = {model!r}\n")
        torch.manual_seed(0)
        built = build_model(load_config(str(config)))
        weights = built.state_dict()
        for name in ("rpn_head.rpn_cls.weight", "roi_head.bbox_head.fc_cls.weight"):
            if name in weights:
                # more, and scores of 1 would be ties
                weights[name] *= 3
        meta = {"dataset_meta": {"classes": CLASSES.get(method, shapes.SEMANTIC_CLASSES)}}
        torch.save({"state_dict": weights, "meta": meta}, folder / f"{method}.pth")
        made[method] = config, folder / f"{method}.pth"
    return made


@pytest.fixture(scope="module")
def predictors(small) -> dict[str, Predictor]:
    return {
        method: Predictor(load_config(str(config)), str(weights), torch.device("cpu"))
        for method, (config, weights) in small.items()
    }


@pytest.fixture(scope="module")
def exported(tool, small, predictors, tmp_path_factory) -> Callable[[str], Path]:
    """An ONNX file of a method, one of them by the tool; each is exported once."""
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def export_once(method: str) -> Path:
        path = folder / f"{method}.onnx"
        if method == "mask_rcnn":
            result = tool("export.py", *small[method], path)
            assert result.returncode == 0, result.stderr[-3000:]
            assert "largest difference from PyTorch" in result.stdout
        else:
            assert export.run(predictors[method], path).difference < comparison.TOLERANCE
        return path

    return export_once


# ------------------------------------------------------------------------ the parts of a graph


@pytest.mark.official
@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(6, 6), (7, 13), (2, 3)])
def test_adaptive_pool_is_pytorchs(bins, size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = nn.AdaptiveAvgPool2d(bins)(x)
    torch.testing.assert_close(graphs.AdaptivePool(bins)(x), expected)


def test_normalize_takes_rgb(predictors):
    model = predictors["mask_rcnn"].model
    images = torch.rand(1, 3, 40, 70) * 255
    bgr = images[0].flip(0)
    expected = model.data_preprocessor({"inputs": [bgr], "data_samples": None}, False)["inputs"]
    given = graphs.Normalize(model.data_preprocessor, 32)(images)
    assert given.shape == (1, 3, 64, 96)
    torch.testing.assert_close(given, expected)


@pytest.mark.official
@pytest.mark.parametrize("size", [(64, 64), (50, 90), (33, 128)])
def test_mask_rcnn_in_one_graph_predicts_what_mmdetection_does(predictors, size):
    predictor, (height, width) = predictors["mask_rcnn"], size
    image = make_image(0, width, height)
    (sample,) = predictor.predict_samples([image])
    expected = sample.pred_instances
    module = mask_rcnn.MaskRCNN(predictor.model).eval()
    rgb = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        boxes, scores, labels, masks = module(rgb)
    assert len(expected) > 3
    torch.testing.assert_close(boxes, expected.bboxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(scores, expected.scores, rtol=1e-4, atol=1e-4)
    assert torch.equal(labels, expected.labels)
    paste = load_tool("run_exported").paste
    for mask, box, whole in zip(masks, boxes, expected.masks.numpy(), strict=True):
        pasted = paste(mask.numpy(), box.numpy(), height, width)
        assert (pasted != whole).mean() < 0.005


def test_no_detections_at_all(predictors):
    predictor = predictors["mask_rcnn"]
    module = mask_rcnn.MaskRCNN(predictor.model).eval()
    threshold = module.roi.test_cfg.score_thr
    module.roi.test_cfg.score_thr = 2.0
    with torch.no_grad():
        outputs = module(torch.zeros(1, 3, 32, 32))
    module.roi.test_cfg.score_thr = threshold
    assert [tuple(o.shape) for o in outputs] == [(0, 4), (0,), (0,), (0, 28, 28)]


def test_proposals_without_extent_are_none(predictors):
    """All anchors are moved out of the image, where nothing is left of them."""
    predictor = predictors["mask_rcnn"]
    bias = predictor.model.rpn_head.rpn_reg.bias
    before = bias.detach().clone()
    with torch.no_grad():
        bias += torch.tensor([50.0, 0, 0, 0]).repeat(len(bias) // 4)
        outputs = mask_rcnn.MaskRCNN(predictor.model).eval()(torch.full((1, 3, 64, 64), 99.0))
        result = predictor(np.full((64, 64, 3), 99, np.uint8))
        bias.copy_(before)
    assert len(result) == len(outputs[1]) == 0


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([{"scale": [1333, 800], "keep_ratio": True}], (1067, 800)),
        ([{"scale": [2048, 512], "keep_ratio": True}, {"multiple": 32}], (704, 512)),
        ([{"scale": [60, 50], "keep_ratio": False}], (60, 50)),
        ([{"factor": 0.5}], (32, 24)),
        ([{"factor": 0.37}], (24, 18)),
        ([], (64, 48)),
    ],
)
def test_the_script_resizes_as_mmcv_does(steps, expected):
    from mmcv.transforms import Resize

    image = make_image(0)
    resized = load_tool("run_exported").resize(image, steps)
    assert resized.shape[1::-1] == expected
    if len(steps) == 1:
        if "scale" in steps[0]:
            step = Resize(scale=tuple(steps[0]["scale"]), keep_ratio=steps[0]["keep_ratio"])
        else:
            step = Resize(scale_factor=steps[0]["factor"])
        assert np.array_equal(step({"img": image})["img"], resized)


# -------------------------------------------------------------------------- what is written


@pytest.mark.slow
def test_a_detector_runs_without_pytorch(predictors, exported, tmp_path):
    image = make_image(0, 64, 64)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    result = run_exported(exported("mask_rcnn"), tmp_path / "a.png", tmp_path / "out.png")
    assert result.returncode == 0, result.stderr
    (sample,) = predictors["mask_rcnn"].predict_samples([image])
    found = sample.pred_instances[sample.pred_instances.scores >= 0.5]
    first, *lines, last = result.stdout.splitlines()
    assert first == f"{len(found)} objects that score at least 0.5"
    assert last == f"drawn: {tmp_path / 'out.png'}"
    lines.reverse()
    assert len(lines) == len(found) > 0
    for line, label, score in zip(lines, found.labels, found.scores, strict=True):
        assert line.startswith(f"{shapes.CLASSES[label]} {score:.2f}"[:-1])
    drawn = read(tmp_path / "out.png")
    assert drawn.shape == (64, 64, 3) and not np.array_equal(drawn, image)


@pytest.mark.parametrize(
    "method", ["semantic_fpn", pytest.param("upernet", marks=pytest.mark.slow)]
)
def test_a_segmentor_runs_without_pytorch(predictors, exported, tmp_path, method):
    cv2.imwrite(str(tmp_path / "a.png"), make_image(1, 72, 56))
    result = run_exported(exported(method), tmp_path / "a.png", tmp_path / "out.png")
    assert result.returncode == 0, result.stderr
    (sample,) = predictors[method].predict_samples([make_image(1, 72, 56)])
    labels = sample.pred_sem_seg.data.numpy()
    expected = [
        f"{name}: {(labels == i).mean():.1%} of the image"
        for i, name in enumerate(shapes.SEMANTIC_CLASSES)
        if (labels == i).any()
    ]
    assert result.stdout.splitlines() == [*expected, f"drawn: {tmp_path / 'out.png'}"]
    assert not np.array_equal(read(tmp_path / "out.png"), make_image(1, 72, 56))


@pytest.mark.slow
@pytest.mark.parametrize("method", CONFIGS)
def test_tensorrt_has_the_operators_of_a_file(exported, method):
    assert_tensorrt_reads(exported(method))


@pytest.mark.slow
def test_features_and_torch_export(predictors, tmp_path):
    for ending in ("onnx", "pt2"):
        path = tmp_path / f"f.{ending}"
        assert (
            export.run(predictors["mask_rcnn"], path, "features").difference < comparison.TOLERANCE
        )
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "f.onnx"))
    # larger than the last level's stride, and of another number of positions than in the trace
    images = torch.rand(3, 3, 96, 224) * 255
    model = predictors["mask_rcnn"].model
    with torch.no_grad():
        expected = model.extract_feat(
            model.data_preprocessor({"inputs": list(images.flip(1)), "data_samples": None}, False)[
                "inputs"
            ]
        )
    about = {export.ABOUT: ""}
    loaded = torch.export.load(tmp_path / "f.pt2", extra_files=about).module()
    assert json.loads(about[export.ABOUT])["kind"] == "features"
    outputs = session.run(None, {"images": images.numpy()})
    for given, other, wanted in zip(outputs, loaded(images), expected, strict=True):
        scale = float(wanted.abs().max())
        assert np.abs(given - wanted.numpy()).max() < 1e-4 * scale
        assert (other - wanted).abs().max() < 1e-4 * scale


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stride"),
    [
        pytest.param("detection/retinanet_fcvit_s12_1x_coco.py", 128, marks=pytest.mark.slow),
        ("classification/fcvit_tiny_shapes.py", 32),
    ],
)
def test_features_of_other_models(tmp_path, name, stride):
    """Maps of one position in small images, and MMPretrain's own preprocessor."""

    def config():
        cfg = load_config(str(ROOT / "configs" / name))
        cfg.model.backbone.update(arch=dict(SMALL), kernel_size=5, init_cfg=None)
        if "retinanet" in name:
            cfg.model.neck.in_channels = list(SMALL["dims"][1:])
        else:
            cfg.model.head.in_channels = SMALL["dims"][-1]
        return cfg

    weights = build_model(config()).state_dict()
    # as many as any head here has classes
    meta = {"dataset_meta": {"classes": [f"class {i}" for i in range(1000)]}}
    torch.save({"state_dict": weights, "meta": meta}, tmp_path / "a.pth")
    predictor = Predictor(config(), str(tmp_path / "a.pth"), torch.device("cpu"))
    assert export.run(predictor, tmp_path / "a.pt2", "features").difference < comparison.TOLERANCE
    maps = torch.export.load(tmp_path / "a.pt2").module()(torch.rand(1, 3, 150, 300) * 255)
    assert maps[-1].shape[2:] == (-(-150 // stride), -(-300 // stride))


def test_roi_align_is_torchvisions(predictors, monkeypatch):
    """mmcv's own compiled operator could not be exported."""
    from mmcv.ops.roi_align import RoIAlignFunction

    def refuse(*_):
        raise AssertionError("mmcv's operator is called")

    monkeypatch.setattr(RoIAlignFunction, "forward", refuse)
    with torch.no_grad():
        outputs = mask_rcnn.MaskRCNN(predictors["mask_rcnn"].model).eval()(torch.rand(1, 3, 64, 64))
    assert outputs[0].shape[1] == 4


# ------------------------------------------------------------------------------- the check


def test_own_predictions_are_of_the_size_of_the_image(predictors, monkeypatch):
    """A pipeline that resizes notes sizes of its own in the sample."""
    from mmengine.dataset import Compose
    from mmengine.registry import TRANSFORMS, init_default_scope

    predictor = predictors["semantic_fpn"]
    init_default_scope("mmseg")
    steps = load_config(str(ROOT / "configs/segmentation/semantic_fpn_fcvit_s12_ade20k.py"))
    steps = [s for s in steps.test_pipeline if not s["type"].startswith("Load")]
    monkeypatch.setattr(predictor, "pipeline", Compose([TRANSFORMS.build(s) for s in steps]))
    with torch.no_grad():
        (logits,) = comparison.own_predictions(
            predictor, graphs.Segmentor(predictor.model), make_image(0, 64, 96)
        )
    assert logits.shape == (1, 5, 96, 64)


def test_masks_and_labels_that_differ_are_refused(predictors):
    predictor = predictors["mask_rcnn"]
    module = mask_rcnn.MaskRCNN(predictor.model).eval()
    probabilities = module.masks

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        with torch.no_grad():
            return list(module(images))

    assert comparison.check(predictor, module, run) < 1e-5
    # the file agrees with the module, and neither with the model
    module.masks = lambda *inputs: 1 - probabilities(*inputs)  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="differs from PyTorch"):
        comparison.check(predictor, module, run)
    labels = [torch.tensor([0, 1]), torch.tensor([0, 2])]
    with pytest.raises(ConfigError, match=r"other labels than PyTorch, \[0, 2\] where"):
        comparison.difference(labels[:1], labels[1:], ["labels"])


def test_detections_of_equal_scores_may_swap():
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9], [5, 5, 9, 9]])
    scores = torch.tensor([0.9, 0.5000001, 0.5])
    labels = torch.tensor([0, 1, 0])
    masks = torch.rand(3, 28, 28)
    expected, names = [boxes, scores, labels, masks], mask_rcnn.MaskRCNN.outputs
    swapped = [output[[0, 2, 1]] for output in expected]
    ordered = comparison.in_order(expected, swapped)
    assert comparison.difference(expected, ordered, names) == 0
    # what goes by the label alone keeps its mask
    swapped[3] = masks
    assert comparison.difference(expected, comparison.in_order(expected, swapped), names) > 0.1
    # two of one are not one of each
    twice = [output[[0, 1, 1]] for output in expected]
    with pytest.raises(ConfigError, match="other labels"):
        comparison.difference(expected, comparison.in_order(expected, twice), names)
    none = [output[:0] for output in expected]
    assert comparison.difference(none, comparison.in_order(none, none), names) == 0


def test_a_file_that_differs_is_refused(predictors):
    predictor = predictors["semantic_fpn"]
    module = graphs.Segmentor(graphs.with_open_size(predictor.model)).eval()

    def run(share: float, images: torch.Tensor) -> list[torch.Tensor]:
        with torch.no_grad():
            logits = module(images)
        return [logits + share * logits.abs().max()]

    assert comparison.check(predictor, module, lambda x: run(5e-5, x)) > 4e-5
    with pytest.raises(ConfigError, match="differs from PyTorch by 2.0e-04"):
        comparison.check(predictor, module, lambda x: run(2e-4, x))
    with pytest.raises(ConfigError, match="differs from PyTorch by nan"):
        comparison.check(predictor, module, lambda x: run(float("nan"), x))
    with pytest.raises(ConfigError, match="gives other logits"):
        comparison.check(predictor, module, lambda x: [run(0, x)[0][:, :, 1:]])


def test_a_graph_that_is_not_the_models_is_refused(predictors):
    """The module and the file agree with each other, but not with the model's predictions."""
    predictor = predictors["semantic_fpn"]
    module = graphs.Segmentor(graphs.with_open_size(predictor.model)).eval()
    module.features.normalize.mean += 1

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        with torch.no_grad():
            return [module(images)]

    with pytest.raises(ConfigError, match="differs from PyTorch"):
        comparison.check(predictor, module, run)


def test_nothing_is_left_of_a_refused_export(predictors, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "TOLERANCE", -1.0)
    with pytest.raises(ConfigError, match="nothing was written"):
        export.run(predictors["semantic_fpn"], tmp_path / "a.pt2", "features")
    assert list(tmp_path.iterdir()) == []


def test_wrong_input_is_one_sentence(tool, small, tmp_path):
    config, weights = small["mask_rcnn"]
    result = tool("export.py", config, weights, tmp_path / "a.txt")
    assert result.returncode == 2 and "a.txt must end in .onnx or .xml or .pt2" in result.stderr
    assert_sentence(tool("export.py", config, tmp_path / "no.pth", tmp_path / "a.onnx"), "no.pth")
    other = ROOT / "configs/detection/retinanet_fcvit_s12_1x_coco.py"
    options = ["--cfg-options", "model.bbox_head.type=FCOSHead"]
    result = tool("export.py", other, weights, tmp_path / "a.onnx", *options)
    assert_sentence(result, "RetinaNet with these heads is not exported", "--part features")
    config, _ = small["semantic_fpn"]
    for option, value in (("test_cfg.mode", "slide"), ("data_preprocessor.test_cfg.size", (9, 9))):
        with pytest.raises(ConfigError, match=f"model.{option.rpartition('.')[0]}"):
            export.kind_of(load_config(str(config), {f"model.{option}": value}), "whole")


def test_what_cannot_be_traced_is_one_sentence(predictors, tmp_path, monkeypatch):
    def forward(self, images):
        return (images[images.sum() > 0],)

    monkeypatch.setattr(graphs.Features, "forward", forward)
    for ending in ("onnx", "pt2"):
        with pytest.raises(ConfigError, match="semantic_fpn.py can't be exported: "):
            export.run(predictors["semantic_fpn"], tmp_path / f"a.{ending}", "features")
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(predictors, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ConfigError, match=r"needs onnxscript.*fcvit-mm\[export\]"):
        export.run(predictors["semantic_fpn"], tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.slow
def test_the_script_refuses_what_it_cannot_read(exported, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    result = run_exported(exported("semantic_fpn"), tmp_path / "text.jpg", tmp_path / "out.png")
    assert_sentence(result, "text.jpg is not an image")
    cv2.imwrite(str(tmp_path / "a.png"), make_image(0))
    result = run_exported(tmp_path / "text.jpg", tmp_path / "a.png", tmp_path / "out.png")
    assert_sentence(result, "can't be run as a model of fcvit export")
    result = run_exported(exported("semantic_fpn"), tmp_path / "a.png", tmp_path / "out.txt")
    assert_sentence(result, "out.txt can't be written")
    # an image of one pixel is one for it as well
    cv2.imwrite(str(tmp_path / "one.png"), make_image(0)[:1, :1])
    result = run_exported(exported("mask_rcnn"), tmp_path / "one.png", tmp_path / "out.png")
    assert result.returncode == 0, result.stderr
