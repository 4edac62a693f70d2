"""Exported models in OpenVINO and in 8 bits: their accuracy, damage, and what is refused."""

import copy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn
from torch.nn import functional

from fcvit_mm import FCViT, engine
from fcvit_mm.apis import export
from fcvit_mm.apis.export import accuracy, comparison
from fcvit_mm.apis.export.layers import for_runtimes
from fcvit_mm.apis.model import build_model
from fcvit_mm.apis.predictor import Predictor
from fcvit_mm.models.layers import GlobalContext, Norm
from fcvit_mm.utils import cli
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.errors import ConfigError
from helpers.images import make_image
from helpers.models import CONFIGS, META, make_smallest
from helpers.tools import TEST, load_tool, run_exported

SCOPES = {"detection": "mmdet", "segmentation": "mmseg", "classification": "mmpretrain"}
OPTIONS = {
    **{key: False if value == "False" else int(value) for key, _, value in
       (option.partition("=") for option in TEST)},
    "test_dataloader.batch_size": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Config and checkpoint of the smallest model for a task."""
    folder = tmp_path_factory.mktemp("trained")

    def write(task: str) -> tuple[Path, Path]:
        config, weights = folder / f"{task}.py", folder / f"{task}.pth"
        if not config.exists():
            cfg = load_config(str(CONFIGS[SCOPES[task]]), OPTIONS)
            make_smallest(cfg.model)
            cfg.dump(config)
            torch.manual_seed(0)
            content = {"state_dict": build_model(cfg).state_dict(),
                       "meta": {"dataset_meta": META[SCOPES[task]]}}  # fmt: skip
            torch.save(content, weights)
        return config, weights

    return write


@pytest.fixture
def predictor(trained):
    def load(task: str, options: dict | None = None) -> Predictor:
        config, weights = trained(task)
        return Predictor(load_config(str(config), options), str(weights), torch.device("cpu"))

    return load


def about(path: Path) -> dict:
    return load_tool("run_exported").open_model(str(path))[1]


# --------------------------------------------------------------------------------- layers


@pytest.mark.official
@pytest.mark.parametrize("weighted", [True, False])
def test_layers_compute_the_same_in_the_form_of_the_runtimes(weighted):
    backbone = FCViT(
        {"layers": (1,) * 4, "dims": (8, 16, 16, 32), "mlp_ratios": (2,) * 4},
        weighted_context=weighted,
        layer_scale_init=0.5,
    )
    for parameter in backbone.parameters():
        # biases, too, which are 0 at first
        nn.init.normal_(parameter, std=0.5)
    backbone = backbone.double().eval()
    images = torch.randn(2, 3, 45, 70, dtype=torch.float64)
    with torch.no_grad():
        expected = backbone(images)
        changed = for_runtimes(copy.deepcopy(backbone)).double()
        for given, wanted in zip(changed(images), expected, strict=True):
            torch.testing.assert_close(given, wanted)
    kinds = {type(module) for module in changed.modules()}
    assert not kinds & {Norm, GlobalContext}


# ------------------------------------------------------------------------------- accuracy


def perfect(cfg, scale: float = 1.0):
    """What finds exactly the ground truth of the test images, in their order."""
    init_default_scope(cfg.default_scope)
    samples = [s for b in Runner.build_dataloader(cfg.test_dataloader) for s in b["data_samples"]]

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        sample = samples.pop(0)
        if "gt_label" in sample:
            return [functional.one_hot(sample.gt_label, 4).float()]
        if "gt_sem_seg" in sample:
            labels = sample.gt_sem_seg.data
            return [functional.one_hot(labels.long(), 5).permute(0, 3, 1, 2).float()]
        wanted = sample.gt_instances
        boxes = torch.as_tensor(wanted.bboxes.tensor)
        masks = wanted.masks.to_ndarray()
        masks = [
            cv2.resize(mask[top:bottom, left:right], (28, 28), interpolation=cv2.INTER_NEAREST)
            for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True)
        ]
        assert images.shape[2:] == tuple(int(n * scale) for n in sample.ori_shape)
        scores = torch.ones(len(boxes))
        return [boxes * scale, scores, wanted.labels, torch.from_numpy(np.stack(masks)).float()]

    return run


@pytest.mark.parametrize(
    ("task", "outputs", "expected"),
    [
        (
            "detection",
            ("boxes", "scores", "labels", "masks"),
            {"coco/bbox_mAP": 1, "coco/segm_mAP": 0.8},
        ),
        ("segmentation", ("logits",), {"mIoU": 1}),
        ("classification", ("scores",), {"accuracy/top1": 1}),
    ],
)
def test_a_file_that_finds_the_ground_truth_is_perfect(data, predictor, task, outputs, expected):
    options = {}
    if task == "detection":
        # the file sees images twice as large; boxes and masks are compared in the image's own size
        options = {"test_dataloader.dataset.pipeline.1.scale_factor": 2.0}
    loaded = predictor(task, options)
    found = accuracy.measure(loaded, outputs, perfect(loaded.cfg, 2.0 if options else 1.0))
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert expected[name] <= values["file"] <= 1 and 0 <= values["model"] < 0.9


def test_masks_of_whole_images_come_to_the_size_of_the_image():
    """As Mask2Former gives them: for a padded image, a position per 4x4 pixels, in a batch."""
    sample = DetDataSample(
        metainfo={"img_shape": (40, 56), "ori_shape": (20, 28), "scale_factor": (2.0, 2.0)}
    )
    logits = torch.full((1, 1, 16, 16), -1.0)
    # in the image from its column 14 to the right, and over what is padded
    logits[..., 7:] = 1.0
    found = {
        "boxes": torch.tensor([[[28.0, 0, 56, 40]]]),
        "scores": torch.ones(1, 1),
        "labels": torch.zeros(1, 1, dtype=torch.long),
        "mask_logits": logits,
        "queries": torch.zeros(1, 9),
    }
    instances = accuracy.as_sample(None, found, sample).pred_instances
    assert instances.bboxes.tolist() == [[14, 0, 28, 20]] and instances.masks.shape == (1, 20, 28)
    assert instances.masks[0].float().mean(0).tolist() == [0.0] * 14 + [1.0] * 14


def test_the_models_own_accuracy_is_that_of_a_test(data, predictor, trained):
    config, weights = trained("segmentation")
    loaded = predictor("segmentation")

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        (sample,) = loaded.model.test_step({"inputs": [images[0].flip(0).byte()]})
        return [sample.seg_logits.data[None]]

    found = accuracy.measure(loaded, ("logits",), run)["mIoU"]
    cfg = load_config(str(config))
    cfg.load_from = str(weights)
    assert found["model"] == found["file"] == pytest.approx(engine.test(cfg)["mIoU"] / 100)


def test_a_loss_is_allowed_up_to_the_bound():
    def found(file: float) -> dict:
        return {"mIoU": {"model": 0.5, "file": 0.6}, "coco/bbox_mAP": {"model": 0.5, "file": file}}

    accuracy.refuse_loss(found(0.25), 0.25)
    for value in (0.2, float("nan")):
        with pytest.raises(ConfigError, match=r"bbox_mAP is .*0\.5000.*--max-drop allows 0.25"):
            accuracy.refuse_loss(found(value), 0.25)


# -------------------------------------------------------------------------- what is written


@pytest.fixture(scope="module")
def segmentor(trained, example_data, tmp_path_factory) -> Path:
    """An OpenVINO file of a segmentor, in fp32."""
    path = tmp_path_factory.mktemp("openvino") / "segmentor.xml"
    config, weights = trained("segmentation")
    loaded = Predictor(load_config(str(config)), str(weights), torch.device("cpu"))
    found = export.run(loaded, path)
    assert found.difference < comparison.TOLERANCE and found.accuracy == {}
    return path


def test_an_openvino_file_gives_the_models_logits(segmentor, predictor):
    run, description = load_tool("run_exported").open_model(str(segmentor))
    assert description["kind"] == "segmentor" and description["precision"] == "fp32"
    model = predictor("segmentation").model
    # rounded to bf16, as by default on some processors, it would not be that near
    images = torch.rand(2, 3, 96, 64) * 255
    with torch.no_grad():
        inputs = model.data_preprocessor({"inputs": list(images.flip(1))}, False)["inputs"]
        expected = model.encode_decode(inputs, [{"img_shape": (96, 64)}] * 2)
    logits = run(images.numpy())["logits"]
    assert np.abs(logits - expected.numpy()).max() < 1e-4 * expected.abs().max()


def test_a_damaged_openvino_file_is_refused(segmentor, tmp_path):
    script = load_tool("run_exported")
    graph, weights = segmentor.read_bytes(), segmentor.with_suffix(".bin").read_bytes()

    def refused(graph: bytes, weights: bytes, words: str) -> None:
        (tmp_path / "a.xml").write_bytes(graph)
        (tmp_path / "a.bin").write_bytes(weights)
        with pytest.raises(ValueError, match=words):
            script.open_model(str(tmp_path / "a.xml"))

    for i in range(0, len(weights), len(weights) // 8):
        refused(graph, weights[:i] + bytes([weights[i] ^ 1]) + weights[i + 1 :], "it is damaged")
    refused(graph, weights[:-1], "it is damaged")
    refused(graph.replace(b"segmentor", b"mask_rcnn"), weights, "it is damaged")
    refused(graph.replace(b"sha256", b"sha512"), weights, "no SHA-256")
    (tmp_path / "a.bin").unlink()
    (tmp_path / "a.xml").write_bytes(graph)
    with pytest.raises(FileNotFoundError):
        script.open_model(str(tmp_path / "a.xml"))


def test_openvino_runs_it_without_pytorch(segmentor, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), make_image(1))
    result = run_exported(segmentor, tmp_path / "a.png", tmp_path / "out.png")
    assert result.returncode == 0, result.stderr
    assert "% of the image" in result.stdout and (tmp_path / "out.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_in_8_bits_convolutions_alone_are_quantized(data, trained, tmp_path, capsys, suffix):
    """The tool prints both accuracies, and they are in the file."""
    path = tmp_path / f"segmentor{suffix}"
    arguments = [*map(str, trained("segmentation")), str(path), "--precision", "int8"]
    load_tool("export").main([*arguments, "--max-drop", "1"])
    noted = about(path)
    values = noted["accuracy"]["mIoU"]
    assert noted["precision"] == "int8"
    assert f"mIoU: {values['model']:.4f} of the model, {values['file']:.4f} of the" in (
        capsys.readouterr().out
    )
    if suffix == ".onnx":
        import onnx

        nodes = onnx.load(path).graph.node
        makers = {output: node.op_type for node in nodes for output in node.output}
        sources = {
            kind: {makers.get(node.input[0]) for node in nodes if node.op_type == kind}
            for kind in ("Conv", "Gelu", "ReduceMean")
        }
        assert sources["Conv"] == {"DequantizeLinear"}
        assert "DequantizeLinear" not in sources["Gelu"] | sources["ReduceMean"]
        return
    import openvino

    quantized: dict[str, set[bool]] = {}
    for operator in openvino.Core().read_model(path).get_ops():
        kind = operator.get_type_name()
        if kind == "GroupConvolution":
            kind = f"depthwise {operator.get_input_shape(1)[-1]}"
        if kind in ("Convolution", "Gelu", "ReduceMean", "depthwise 3", "depthwise 11"):
            source = operator.input_value(0).get_node().get_type_name()
            quantized.setdefault(kind, set()).add(source == "FakeQuantize")
    assert quantized == {"Convolution": {True}, "depthwise 3": {True}, "depthwise 11": {False},
                         "Gelu": {False}, "ReduceMean": {False}}  # fmt: skip


def test_calibration_images_are_of_the_training_set_as_for_a_test(data, predictor):
    cfg = predictor("detection", {"test_dataloader.dataset.pipeline.1.scale_factor": 2.0}).cfg
    images = accuracy.CalibrationImages(cfg)
    found = [image for image in images]
    assert len(found) == len(images) == 8
    for image in found:
        assert image.shape == (1, 3, 128, 128) and image.dtype == np.float32
    sources = [
        cv2.imread(str(path))[..., ::-1] for path in sorted((data / "images/train").iterdir())
    ]
    wanted = {
        cv2.resize(s, (128, 128)).transpose(2, 0, 1).astype(np.float32).tobytes() for s in sources
    }
    assert {image[0].tobytes() for image in found} == wanted


# ------------------------------------------------------------------------- what is refused


def test_a_file_that_loses_too_much_is_not_written(data, predictor, tmp_path, monkeypatch):
    values = {"mIoU": {"model": 0.5, "file": 0.4}}
    monkeypatch.setattr(export, "measure", lambda *_: values)
    with pytest.raises(ConfigError, match="mIoU is 0.4000.*nothing was written"):
        export.run(predictor("segmentation"), tmp_path / "a.xml", max_drop=0.05)
    assert list(tmp_path.glob("*.xml")) == list(tmp_path.glob("*.bin")) == []


def test_wrong_input_is_one_sentence(trained, tmp_path, monkeypatch, capsys):
    """Before anything is traced; there is no data here."""
    monkeypatch.chdir(tmp_path)
    files = [*map(str, trained("segmentation"))]
    tool = load_tool("export")

    def status(*arguments: str) -> int:
        try:
            return cli.run_tool(tool.main, [*files, *arguments])
        except SystemExit as end:
            return int(str(end.code))

    monkeypatch.setattr(export, "trace", None)
    for arguments, words in (
        (["a.onnx", "--precision", "bf16"], "ONNX Runtime can't run bf16 on a CPU; --precision"),
        (["a.onnx", "--format", "openvino"], "--format openvino must end in .xml"),
        (["a.xml", "--precision", "int8", "--part", "features"], "maps have no accuracy"),
        (["a.xml", "--precision", "int8"], "data/shapes"),
        (["a.onnx", "--max-drop", "0.1"], "data/shapes"),
        (["a.onnx", "--max-drop", "2"], "a number from 0 to 1"),
    ):
        assert status(*arguments) == 2, arguments
        assert words in capsys.readouterr().err
    for missing, name in (("openvino", "a.xml"), ("nncf", "a.xml"), ("nncf", "a.onnx")):
        with monkeypatch.context() as patch:
            patch.setattr(cli, "find_spec", lambda n, gone=missing: None if n == gone else n)
            assert status(name, "--precision", "int8") == 2
            assert f"needs {missing}" in (text := capsys.readouterr().err)
            assert "fcvit-mm[openvino]" in text
    assert list(tmp_path.iterdir()) == []
