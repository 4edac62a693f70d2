"""fcvit publish: a folder that loads, tests and predicts as the model that it was made from."""

import errno
import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from huggingface_hub import ModelCard, constants
from mmengine.registry import MODELS, init_default_scope

import fcvit_mm
from fcvit_mm.apis import publish
from fcvit_mm.utils.cli import run_tool
from fcvit_mm.utils.config import load_config
from helpers.images import make_image
from helpers.models import CONFIGS, META, make_smallest
from helpers.services import serve
from helpers.tools import load_tool
from helpers.trainings import SEGMENTATION

TOOL = load_tool("publish")


@pytest.fixture
def trained(data, tmp_path):
    """Write what a training of the smallest network leaves, by its scope; next to the data."""

    def write(scope: str, config: Path | None = None) -> Path:
        config = config or CONFIGS[scope]
        cfg = load_config(str(config))
        make_smallest(cfg.model)
        cfg.load_from, cfg.resume, cfg.work_dir = "start.pth", False, "/home/somebody/parts"
        cfg.model.backbone.init_cfg = dict(type="Pretrained", checkpoint="/home/somebody/a.pth")
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            loader.num_workers, loader.persistent_workers = 0, False
        init_default_scope(scope)
        torch.manual_seed(0)
        weights = MODELS.build(cfg.model).state_dict()  # random: nobody calls init_weights
        for key in ("rpn_head.rpn_cls.weight", "roi_head.bbox_head.fc_cls.weight"):
            if key in weights:  # untrained scores are all but equal
                weights[key] *= 100
        folder = tmp_path / "work_dirs/parts"
        folder.mkdir(parents=True)
        cfg.dump(folder / config.name)
        content = {"meta": {"dataset_meta": META[scope]}, "optimizer": {"state": {}}}
        for name, factor in (("best_score_iter_8", 1), ("iter_9", 2)):
            changed = {key: value * factor for key, value in weights.items()}
            torch.save({**content, "state_dict": changed}, folder / f"{name}.pth")
        return folder

    return write


def test_a_detector_predicts_the_same_to_the_bit_and_tests_as_its_card_says(trained, capsys):
    folder, out = trained("mmdet"), Path("published/parts")
    assert run_tool(TOOL.main, [str(folder), str(out)]) == 0, capsys.readouterr().err
    config = CONFIGS["mmdet"].name
    names = ["README.md", "SHA256SUMS", "config.json", config, "model.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    assert [*out.parent.iterdir()] == [out]

    ours, theirs = fcvit_mm.load(folder, device="cpu"), fcvit_mm.load(out, device="cpu")
    for seed in range(2):
        one, other = (predictor(make_image(seed)) for predictor in (ours, theirs))
        assert len(one) > 0
        for name in ("boxes", "scores", "labels", "masks"):
            assert np.array_equal(getattr(one, name), getattr(other, name))
    assert theirs.classes == META["mmdet"]["classes"]
    assert theirs.palette == [*META["mmdet"]["palette"]]

    weights = safetensors.torch.load_file(out / "model.safetensors")
    assert weights.keys() == ours.model.state_dict().keys()
    text = (out / config).read_text()
    for word in ("somebody", "start.pth", str(folder), "resume", "_base_"):
        assert word not in text

    facts = json.loads((out / "config.json").read_text())
    assert facts["classes"] == [*META["mmdet"]["classes"]] and facts["task"] == "detection"
    assert facts["preprocessing"]["data_preprocessor"]["mean"] == [123.675, 116.28, 103.53]
    assert any(step["type"] == "Resize" for step in facts["preprocessing"]["pipeline"])
    assert facts["metrics"]["command"] == "fcvit test parts"
    assert {"coco/bbox_mAP", "coco/segm_mAP"} <= facts["metrics"]["values"].keys()
    assert min(facts["metrics"]["values"].values()) >= 0

    card = ModelCard.load(out / "README.md")
    assert card.data.pipeline_tag == "object-detection" and card.data.library_name == "fcvit_mm"
    assert {one.metric_type: one.metric_value for one in card.data.eval_results} == facts[
        "metrics"
    ]["values"]
    assert "`fcvit test parts`" in card.text
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=out, check=True)
    assert len((out / "SHA256SUMS").read_text().splitlines()) == 4

    capsys.readouterr()
    assert run_tool(load_tool("test").main, [str(out), "--work-dir", "logs"]) == 0
    said = capsys.readouterr()
    for key, value in facts["metrics"]["values"].items():
        assert re.search(rf"{key}: {value:.4f}\b", said.out + said.err), key


def test_a_segmentor_that_was_trained_with_averaged_weights(trained):
    folder, out = trained("mmseg", SEGMENTATION), Path("parts")
    assert run_tool(TOOL.main, [str(folder), str(out)]) == 0
    ours, theirs = fcvit_mm.load(folder, device="cpu"), fcvit_mm.load(out, device="cpu")
    one, other = (predictor(make_image(0)) for predictor in (ours, theirs))
    assert one.semantic.tolist() == other.semantic.tolist()
    assert theirs.classes == META["mmseg"]["classes"] and theirs.palette == ours.palette
    assert json.loads((out / "config.json").read_text())["metrics"]["values"]["mIoU"] > 0


def test_a_classifier_and_no_metrics(trained):
    folder, out = trained("mmpretrain"), Path("parts")
    assert run_tool(TOOL.main, [str(folder), str(out), "--no-test"]) == 0
    ours, theirs = fcvit_mm.load(folder, device="cpu"), fcvit_mm.load(out, device="cpu")
    one, other = (predictor(make_image(0)) for predictor in (ours, theirs))
    assert one.scores.tolist() == other.scores.tolist()
    assert theirs.classes == META["mmpretrain"]["classes"]
    assert "were not measured" in (out / "README.md").read_text()
    assert "metrics" not in json.loads((out / "config.json").read_text())


def test_it_is_uploaded_to_the_hub_and_comes_back(trained, tmp_path, monkeypatch, capsys):
    folder = trained("mmpretrain")
    words = [str(folder), "parts", "--no-test", "--hub", "org/name"]
    with serve(monkeypatch, tmp_path) as site:
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        assert run_tool(TOOL.main, words) == 2
        (error,) = re.findall("^error: .*", capsys.readouterr().err, re.MULTILINE)
        assert "parts is complete, but was not uploaded to org/name" in error
        assert "hf auth login" in error and "hf upload org/name parts" in error
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        words[1] = "again"
        assert run_tool(TOOL.main, words) == 0, capsys.readouterr().err
        assert f"uploaded: {site.address}/org/name" in capsys.readouterr().out
        assert site.uploaded == {path.name: path.read_bytes() for path in Path("again").iterdir()}
        site.files = {f"/org/name/{'a' * 40}/{k}": v for k, v in site.uploaded.items()}
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        name = f"hf://org/name/model.safetensors@{'a' * 40}"
        loaded = fcvit_mm.load(Path("again") / CONFIGS["mmpretrain"].name, name, device="cpu")
    ours = fcvit_mm.load("again", device="cpu")
    assert all(v.equal(ours.model.state_dict()[k]) for k, v in loaded.model.state_dict().items())


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_can_not_be_published_is_a_sentence_and_leaves_nothing(trained, capsys, monkeypatch):
    folder = trained("mmpretrain")

    def refused(*words: str) -> str:
        assert run_tool(TOOL.main, [*words]) == 2
        (line,) = re.findall("^error: .*", capsys.readouterr().err, re.MULTILINE)
        return line

    assert "is there already" in refused(str(folder), "data")
    assert "no work directory" in refused("absent", "parts")
    for path in Path("data").rglob("*.png"):
        path.unlink()
    assert "To publish without metrics, add --no-test" in refused(str(folder), "parts")
    assert not [path for path in Path().iterdir() if "parts" in path.name]
    with monkeypatch.context() as patch:
        patch.setattr(publish, "write_json", full_disk)
        line = refused(str(folder), "parts", "--no-test")
        assert line == "error: parts can't be written: No space left on device"
    assert not [path for path in Path().iterdir() if "parts" in path.name]
    (folder / "best_score_iter_8.pth").write_bytes(b"PK")
    assert "is damaged" in refused(str(folder), "parts", "--no-test")
    with pytest.raises(SystemExit) as end:
        TOOL.main([str(folder), "parts", "--hub", "name"])
    assert end.value.code == 2 and "must be ORG/NAME" in capsys.readouterr().err
