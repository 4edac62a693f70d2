"""Export of each method beyond Mask R-CNN, Semantic FPN and UperNet, on the smallest networks."""

import copy
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from fcvit_mm.apis import export
from fcvit_mm.apis.export import accuracy, comparison, transformers
from fcvit_mm.apis.export.graphs import Graph, with_open_size
from fcvit_mm.apis.model import build_model
from fcvit_mm.apis.predictor import Predictor
from fcvit_mm.datasets import shapes
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.errors import ConfigError
from helpers import ROOT
from helpers.images import make_image
from helpers.tensorrt import assert_tensorrt_reads
from helpers.tools import load_tool

DIMS = (16, 16, 24, 32)
BACKBONE = {
    "arch": {"_delete_": True, "layers": (1,) * 4, "dims": DIMS, "mlp_ratios": (2,) * 4},
    "kernel_size": 5,
    # an export's time goes with the number of operators
    "global_context": False,
    "init_cfg": None,
}
# Of Mask2Former's heads, the fewest layers.
ONE_LAYER = {
    "in_channels": list(DIMS),
    "num_queries": 12,
    "feat_channels": 32,
    "out_channels": 32,
    "positional_encoding": {"num_feats": 16},
    "pixel_decoder": {
        "encoder": {
            "num_layers": 1,
            "layer_cfg": {
                "self_attn_cfg": {"embed_dims": 32},
                "ffn_cfg": {"embed_dims": 32, "feedforward_channels": 32},
            },
        },
        "positional_encoding": {"num_feats": 16},
    },
    "transformer_decoder": {
        "num_layers": 2,
        "layer_cfg": {
            "self_attn_cfg": {"embed_dims": 32},
            "cross_attn_cfg": {"embed_dims": 32},
            "ffn_cfg": {"embed_dims": 32, "feedforward_channels": 32},
        },
    },
}
ATTENTION = {"embed_dims": 32}
FFN = {"embed_dims": 32, "feedforward_channels": 32}
DATA = {
    "detection": ["datasets/shapes_instance.py", "runtime_detection_iter.py"],
    "segmentation": ["datasets/shapes_semantic.py", "runtime_segmentation.py"],
    "classification": ["datasets/shapes_classification.py", "runtime_classification.py"],
}


def box_head(agnostic: bool) -> dict[str, Any]:
    return {
        "type": "Shared2FCBBoxHead",
        "in_channels": 32,
        "fc_out_channels": 32,
        "num_classes": 4,
        "reg_class_agnostic": agnostic,
        "bbox_coder": {"type": "DeltaXYWHBBoxCoder", "target_stds": [0.1, 0.1, 0.2, 0.2]},
        "loss_cls": {"type": "CrossEntropyLoss"},
        "loss_bbox": {"type": "SmoothL1Loss"},
    }


# The base config of the model, its task, and what makes it small.
METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "retinanet": (
        "retinanet_fcvit_fpn.py",
        "detection",
        {
            "neck": {"in_channels": list(DIMS[1:]), "out_channels": 32},
            "bbox_head": {
                "num_classes": 4,
                "in_channels": 32,
                "feat_channels": 32,
                "stacked_convs": 1,
            },
            "test_cfg": {"nms_pre": 50, "max_per_img": 20},
        },
    ),
    "cascade": (
        "cascade_mask_rcnn_fcvit_fpn.py",
        "detection",
        {
            "neck": {"in_channels": list(DIMS), "out_channels": 32},
            "rpn_head": {"in_channels": 32, "feat_channels": 32},
            "roi_head": {
                "bbox_roi_extractor": {"out_channels": 32},
                # the first two go on from the box of the best class, and from the only one
                "bbox_head": [box_head(agnostic) for agnostic in (False, True, False)],
                "mask_roi_extractor": {"out_channels": 32},
                "mask_head": {"in_channels": 32, "conv_out_channels": 32, "num_classes": 4},
            },
            "test_cfg": {
                "rpn": {"nms_pre": 40, "max_per_img": 30},
                "rcnn": {"score_thr": 0.3, "max_per_img": 20},
            },
        },
    ),
    "dino": (
        "dino_fcvit.py",
        "detection",
        {
            "num_queries": 30,
            "neck": {
                "in_channels": list(DIMS[1:]),
                "out_channels": 32,
                "norm_cfg": {"num_groups": 4},
            },
            "encoder": {
                "num_layers": 1,
                "layer_cfg": {"self_attn_cfg": ATTENTION, "ffn_cfg": FFN},
            },
            "decoder": {
                "num_layers": 2,
                "layer_cfg": {
                    "self_attn_cfg": ATTENTION,
                    "cross_attn_cfg": ATTENTION,
                    "ffn_cfg": FFN,
                },
            },
            "positional_encoding": {"num_feats": 16},
            "bbox_head": {"num_classes": 4, "embed_dims": 32},
            "test_cfg": {"max_per_img": 20},
        },
    ),
    "mask2former": (
        "mask2former_fcvit_instance.py",
        "detection",
        {
            "panoptic_head": {
                **ONE_LAYER,
                "num_things_classes": 4,
                "loss_cls": {"class_weight": [1.0] * 4 + [0.1]},
            },
            "panoptic_fusion_head": {"num_things_classes": 4},
            "test_cfg": {"max_per_image": 10},
        },
    ),
    "mask2former_semantic": (
        "mask2former_fcvit_semantic.py",
        "segmentation",
        {
            "data_preprocessor": {"size": (64, 64)},
            "decode_head": {
                **ONE_LAYER,
                "num_classes": 5,
                "loss_cls": {"class_weight": [1.0] * 5 + [0.1]},
            },
        },
    ),
    "classifier": (
        "classifier_fcvit.py",
        "classification",
        {
            "data_preprocessor": {"num_classes": 4},
            "head": {"num_classes": 4, "in_channels": DIMS[-1]},
            "train_cfg": None,
        },
    ),
}
# Layers of scores and masks, to be spread: rounding decides between scores that are nearly equal.
SPREAD = ("rpn_cls", "fc_cls", "cls_branches", "cls_embed", "head.fc", "mask_embed.4")
BATCHES = ("dino", "mask2former")
DETECTORS = [name for name in METHODS if METHODS[name][1] == "detection"]


@pytest.fixture(scope="module")
def predictor_of(tmp_path_factory) -> Callable[[str], Predictor]:
    """A Predictor of each method, with random weights whose scores are far apart."""
    folder = tmp_path_factory.mktemp("methods")

    @cache
    def build(method: str) -> Predictor:
        base, task, model = METHODS[method]
        files = [f"models/{base}", *DATA[task], "schedules/adamw_example.py"]
        bases = [str(ROOT / "configs/_base_" / file) for file in files]
        config = folder / f"{method}.py"
        config.write_text(f"_base_ = {bases!r}\nmodel = {dict(model, backbone=BACKBONE)!r}\n")
        torch.manual_seed(0)
        built = build_model(load_config(str(config)))
        built.init_weights()
        with torch.no_grad():
            for name, parameter in built.named_parameters():
                # offsets and boxes start as zeros
                parameter += 0.05 * torch.randn_like(parameter)
                if parameter.ndim > 1 and any(part in name for part in SPREAD):
                    parameter *= 3
        classes = shapes.SEMANTIC_CLASSES if task == "segmentation" else shapes.CLASSES
        content = {"state_dict": built.state_dict(), "meta": {"dataset_meta": {"classes": classes}}}
        torch.save(content, folder / f"{method}.pth")
        return Predictor(
            load_config(str(config)), str(folder / f"{method}.pth"), torch.device("cpu")
        )

    return build


def graph_of(predictor: Predictor) -> Graph:
    kind = export.kind_of(predictor.cfg, "whole")
    return export.GRAPHS[kind](with_open_size(copy.deepcopy(predictor.model))).eval()


@torch.no_grad()
def outputs_of(graph: Graph, image: np.ndarray) -> dict[str, torch.Tensor]:
    """What a graph makes of an image (H, W, 3), BGR, by name, without the axis for images."""
    rgb = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None].float()
    outputs = comparison.as_list(graph(rgb))
    if graph.batch:
        outputs = [output[0] for output in outputs]
    return dict(zip(graph.outputs, outputs, strict=True))


@pytest.mark.parametrize("size", [(64, 96), (71, 90)], ids=str)
@pytest.mark.parametrize("method", DETECTORS)
def test_a_detector_predicts_what_mmdetection_does(predictor_of, method, size):
    height, width = size
    predictor, image = predictor_of(method), make_image(0, width, height)
    (sample,) = predictor.predict_samples([image])
    expected = sample.pred_instances
    given = outputs_of(graph_of(predictor), image)
    wanted = [expected.bboxes, expected.scores, expected.labels]
    ordered = comparison.in_order(wanted, [given[n] for n in ("boxes", "scores", "labels")])
    assert len(expected) > 3
    assert comparison.difference(wanted, ordered, list(given)) < 1e-4
    assert (given["scores"].diff() <= 0).all()
    batch = {name: output[None] for name, output in given.items()} if method in BATCHES else given
    found = accuracy.as_sample(predictor.model, batch, predictor.prepare(image)["data_samples"])
    torch.testing.assert_close(found.pred_instances.bboxes, given["boxes"])
    if "masks" in expected:
        whole = expected.masks[expected.scores.argmax()].numpy()
        assert 0 < whole.mean() < 1
        assert (found.pred_instances.masks[0].numpy() != whole).mean() < 0.005
        about = {"classes": shapes.CLASSES, "palette": [(255, 255, 255)] * 4}
        best = {name: output[:1].numpy() for name, output in given.items()}
        drawn = np.zeros((height, width, 3), np.uint8)
        load_tool("run_exported").draw_objects(about, drawn, best, size, 0.0)
        # but for the box that is drawn around it
        left, top, right, bottom = (int(n) for n in best["boxes"][0])
        inside = slice(top + 1, bottom - 1), slice(left + 1, right - 1)
        assert ((drawn[..., 0] > 0)[inside] != whole[inside]).mean() < 0.02


def test_a_segmentor_and_a_classifier(predictor_of):
    image = make_image(1, 90, 71)
    predictor = predictor_of("mask2former_semantic")
    (sample,) = predictor.predict_samples([image])
    logits = outputs_of(graph_of(predictor), image)["logits"]
    torch.testing.assert_close(logits, sample.seg_logits.data, rtol=1e-4, atol=1e-4)
    predictor = predictor_of("classifier")
    (sample,) = predictor.predict_samples([image])
    scores = outputs_of(graph_of(predictor), image)["scores"]
    torch.testing.assert_close(scores, sample.pred_score, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_an_onnx_file_of_each_method(predictor_of, tmp_path, capsys, method):
    """Checked by the export itself; here several images, and the program without PyTorch."""
    predictor = predictor_of(method)
    path = tmp_path / "a.onnx"
    assert export.run(predictor, path).difference < comparison.TOLERANCE
    assert_tensorrt_reads(path)
    script = load_tool("run_exported")
    run, about = script.open_model(str(path))
    if graph_of(predictor).batch:
        images = comparison.random_images(5, 3, 96, 224).numpy()
        together, alone = run(images), run(images[1:2])
        assert {len(output) for output in together.values()} == {3}
        best = "scores" if "scores" in together else "logits"
        difference = np.abs(together[best][1] - alone[best][0]).max()
        assert difference < 1e-4 * np.abs(alone[best]).max()
    cv2.imwrite(str(tmp_path / "a.png"), make_image(0, 90, 71))
    script.main([str(path), str(tmp_path / "a.png"), str(tmp_path / "b.png"),
                 "--score-threshold", "0.005"])  # fmt: skip
    drawn = cv2.imread(str(tmp_path / "b.png"))
    assert drawn is not None and not np.array_equal(drawn, make_image(0, 90, 71))
    printed = capsys.readouterr().out
    assert any(name in printed for name in about["classes"])
    if method in DETECTORS:
        assert re.search(r"^[1-9]\d* objects that score", printed, re.MULTILINE)


def test_the_check_takes_the_queries_of_the_file(predictor_of):
    """Rounding may swap two of nearly equal scores, and the trained queries go by their order."""
    predictor = predictor_of("dino")
    graph = graph_of(predictor)

    def run(images: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> list:
        with torch.no_grad():
            queries = change(graph(images)[-1])
            chosen = transformers.Chosen(queries)
            with chosen:
                return list(graph(images))

    def swap(queries: torch.Tensor) -> torch.Tensor:
        return queries[:, [1, 0, *range(2, queries.shape[1])]]

    # two that do not score alike
    with pytest.raises(ConfigError, match=r"differs from PyTorch by [1-9]"):
        comparison.check(predictor, graph, lambda images: run(images, swap))
    assert comparison.check(predictor, graph, lambda images: run(images, lambda x: x)) < 1e-5
    images = comparison.random_images(0, 1, 96, 128)
    with torch.no_grad():
        queries = graph(images)[-1]
        with transformers.Chosen(swap(queries)) as chosen:
            assert torch.equal(graph(images)[-1], swap(queries))
    assert chosen.difference > 1e-4


def test_another_image_is_tried_where_rounding_decides(predictor_of, monkeypatch):
    predictor = predictor_of("classifier")
    graph = graph_of(predictor)
    seen = []

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        seen.append(images.shape)
        with torch.no_grad():
            scores = graph(images)
        # wrong for the first image of each size
        return [scores + (seen.count(images.shape) == 1)]

    assert comparison.check(predictor, graph, run) < 1e-5
    assert len(seen) == 4
    monkeypatch.setattr(comparison, "TRIES", 1)
    seen.clear()
    with pytest.raises(ConfigError, match="differs from PyTorch"):
        comparison.check(predictor, graph, run)


def test_what_is_not_exported_is_a_sentence(predictor_of):
    config = predictor_of("mask2former").cfg.filename
    for option in ("test_cfg.panoptic_on=True", "panoptic_head.num_stuff_classes=2"):
        name, _, value = option.partition("=")
        cfg = load_config(config, {f"model.{name}": eval(value)})
        with pytest.raises(ConfigError, match="not a panoptic one"):
            export.kind_of(cfg, "whole")
    padded = load_config(
        predictor_of("dino").cfg.filename, {"model.data_preprocessor.pad_size_divisor": 32}
    )
    with pytest.raises(ConfigError, match="pad_size_divisor=1"):
        export.kind_of(padded, "whole")
    other = load_config(
        predictor_of("retinanet").cfg.filename, {"model.bbox_head.type": "FCOSHead"}
    )
    with pytest.raises(ConfigError, match="RetinaNet with these heads is not exported whole"):
        export.kind_of(other, "whole")


def test_the_operator_that_onnx_lacks_is_named(predictor_of, tmp_path, monkeypatch):
    def forward(self, images):
        return (torch.linalg.eigvalsh(images @ images.mT),)

    monkeypatch.setattr(export.Features, "forward", forward)
    with pytest.raises(ConfigError, match=r"no form of PyTorch's operator aten\.\w*eig"):
        export.run(predictor_of("classifier"), tmp_path / "a.onnx", "features")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "steps",
    [
        [{"type": "ResizeEdge", "scale": 40, "edge": "short", "backend": "pillow",
          "interpolation": "bicubic"}],
        [{"type": "ResizeEdge", "scale": 40}, {"type": "CenterCrop", "crop_size": 33}],
    ],
)  # fmt: skip
def test_a_classifiers_images_are_resized_as_mmpretrain_does(predictor_of, monkeypatch, steps):
    from mmengine.dataset import Compose
    from mmengine.registry import TRANSFORMS, init_default_scope

    predictor = predictor_of("classifier")
    init_default_scope("mmpretrain")
    cfg = copy.deepcopy(predictor.cfg)
    cfg.test_dataloader.dataset.pipeline = [
        {"type": "LoadImageFromFile"}, *steps, {"type": "PackInputs"}
    ]  # fmt: skip
    monkeypatch.setattr(predictor, "cfg", cfg)
    about = export.describe(predictor, "classifier")
    image = make_image(0, 90, 71)
    expected = Compose([TRANSFORMS.build(step) for step in steps])({"img": image})["img"]
    assert np.array_equal(load_tool("run_exported").resize(image, about["resize"]), expected)
    cfg.test_dataloader.dataset.pipeline[1]["edge"] = "long"
    with pytest.raises(ConfigError, match="the test pipeline has ResizeEdge"):
        export.describe(predictor, "classifier")
