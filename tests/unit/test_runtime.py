"""What runtime checks and changes before a Runner is built."""

import logging
import os
import re
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.fileio.backends.registry_utils import backends
from mmengine.runner import CheckpointLoader, checkpoint

from fcvit_mm import CheckpointError, FCViT, engine, register_all
from fcvit_mm.checkpoint import mmengine_backends
from fcvit_mm.engine import resume
from fcvit_mm.engine.hooks.complete_checkpoint_hook import CompleteCheckpointHook
from fcvit_mm.engine.preflight import check_files, check_settings, schedule_mismatch
from fcvit_mm.models.weights import RELEASED_WEIGHTS
from fcvit_mm.utils.config import adapt, iter_config_dicts, load_config
from fcvit_mm.utils.errors import ConfigError
from fcvit_mm.utils.files import sha256
from fcvit_mm.utils.options import enable_amp, start_from_scratch
from helpers import ROOT

DETECTION = str(ROOT / "configs/detection/mask_rcnn_fcvit_s12_coco.py")
SEGMENTATION = str(ROOT / "configs/segmentation/semantic_fpn_fcvit_s12_ade20k.py")
SHAPES = DETECTION.replace("s12_coco", "tiny_shapes")


def norms(cfg: Config) -> set[str]:
    return {
        node["type"]
        for _, node in iter_config_dicts(cfg._cfg_dict)
        if str(node.get("type")) in ("BN", "SyncBN")
    }


@pytest.mark.parametrize("launcher", ["none", "pytorch"])
def test_without_a_gpu_nothing_is_left_that_needs_one(monkeypatch, launcher):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = load_config(SEGMENTATION, launcher=launcher)
    assert norms(cfg) == {"SyncBN"} and cfg.optim_wrapper.type == "AmpOptimWrapper"
    changes = adapt(cfg)
    assert norms(cfg) == {"BN"}
    assert cfg.optim_wrapper.type == "OptimWrapper" and "loss_scale" not in cfg.optim_wrapper
    assert (cfg.env_cfg.dist_cfg.backend == "gloo") == (launcher == "pytorch")
    assert any("BN for SyncBN" in line for line in changes)
    assert any("float32 for mixed precision" in line for line in changes)
    assert adapt(cfg) == [line for line in changes if "gloo" in line]


def test_with_gpus_and_several_processes_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cfg = load_config(SEGMENTATION, launcher="pytorch")
    before = cfg.pretty_text
    assert adapt(cfg) == [] and cfg.pretty_text == before


def test_on_one_gpu_only_syncbn_is_replaced(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cfg = load_config(SEGMENTATION)
    changes = adapt(cfg)
    assert norms(cfg) == {"BN"} and cfg.optim_wrapper.type == "AmpOptimWrapper"
    assert all("SyncBN" in line for line in changes)


@pytest.mark.parametrize("arch", ["tiny", "s12", "s24", "s48"])
def test_missing_weights_say_where_to_get_them_and_how_to_do_without(tmp_path, monkeypatch, arch):
    monkeypatch.chdir(tmp_path)
    path = DETECTION.replace("s12", arch)
    with pytest.raises(ConfigError) as error:
        check_files(load_config(path), ())
    message = str(error.value)
    assert f"pretrained/fcvit_{arch}.pth" in message
    assert RELEASED_WEIGHTS[arch] in message
    assert message.endswith("To start from random weights instead, add --from-scratch.")
    # What the message advises works.
    cfg = load_config(path)
    start_from_scratch(cfg)
    check_files(cfg, ())
    (tmp_path / "pretrained").mkdir()
    (tmp_path / f"pretrained/fcvit_{arch}.pth").touch()
    check_files(load_config(path), ())


def test_a_wrong_arch_is_named_before_its_missing_weights():
    with pytest.raises(ConfigError, match=r"model\.backbone: arch='s13'.*nearest name is 's12'"):
        check_files(load_config(DETECTION, {"model.backbone.arch": "s13"}), ())


def test_with_a_checkpoint_to_load_no_pretrained_weights_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "epoch_1.pth"
    torch.save({"state_dict": {}}, checkpoint)
    cfg = load_config(DETECTION, {"load_from": str(checkpoint)})
    with pytest.raises(ConfigError, match="data/coco"):
        engine.train(cfg)
    assert cfg.model.backbone.init_cfg is None


@pytest.mark.parametrize(
    ("config", "wanted", "source"),
    [
        (DETECTION, "data/coco/annotations/instances_train2017.json", "cocodataset.org"),
        (SEGMENTATION, "data/ade/ADEChallengeData2016/images/training", "sceneparsing"),
        (
            SEGMENTATION.replace("ade20k", "80k_cityscapes"),
            "data/cityscapes/leftImg8bit/train",
            "csCreateTrainIdLabelImgs",
        ),
        (
            DETECTION.replace("s12_coco", "tiny_shapes"),
            "data/shapes/annotations/instances_train.json",
            "python -m fcvit_mm.datasets.shapes data/shapes",
        ),
        (
            DETECTION.replace("s12_coco", "tiny_coins"),
            "data/coins",
            "python -m fcvit_mm.datasets.coins data/coins",
        ),
    ],
    ids=["coco", "ade20k", "cityscapes", "shapes", "coins"],
)
def test_missing_data_say_where_to_get_them(tmp_path, monkeypatch, config, wanted, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        cfg = load_config(config, {"model.backbone.init_cfg": None})
        check_files(cfg, ("train_dataloader", "val_dataloader"))
    assert wanted in str(error.value) and source in str(error.value)
    assert "train_dataloader.dataset" in str(error.value)


def test_data_inside_wrappers_are_checked_too(tmp_path):
    inner = dict(type="CocoDataset", data_root=str(tmp_path), ann_file="a.json")
    cfg = Config(dict(train_dataloader=dict(dataset=dict(type="Repeat", datasets=[inner]))))
    cfg.check_data = False
    with pytest.raises(ConfigError, match=r"train_dataloader\.dataset\.datasets\.0: .*a\.json"):
        check_files(cfg, ("train_dataloader",))
    (tmp_path / "a.json").touch()
    check_files(cfg, ("train_dataloader",))


def test_a_checkpoint_of_other_outputs_can_be_loaded_from_but_not_resumed(
    tmp_path, caplog, monkeypatch
):
    """The output norms of stages that only one of both has are no part of what must fit."""
    path = tmp_path / "epoch_1.pth"
    models = {
        outs: torch.nn.ModuleDict({"backbone": FCViT("tiny", out_indices=outs)})
        for outs in ((0, 1, 2), (1, 2, 3))
    }
    checkpoint = {"state_dict": models[0, 1, 2].state_dict()}
    torch.save(checkpoint, path)
    runner = SimpleNamespace(model=models[1, 2, 3], logger=logging.getLogger("test"))
    with caplog.at_level(logging.INFO, "test"):
        CompleteCheckpointHook(str(path), whole=False).after_load_checkpoint(runner, checkpoint)
    assert f"FCViT: the backbone, and of other parts what fits, comes from {path}" in caplog.text
    # a name of one of MMEngine's tables
    tables = {"open-mmlab": lambda: {"net": str(path)}}
    monkeypatch.setattr(mmengine_backends, "TABLES", tables)
    with caplog.at_level(logging.INFO, "test"):
        hook = CompleteCheckpointHook("open-mmlab://net", whole=False)
        hook.after_load_checkpoint(runner, checkpoint)
    assert f"comes from open-mmlab://net, SHA-256 {sha256(path)}" in caplog.text
    with pytest.raises(CheckpointError, match="2 missing: backbone.norm6.bias"):
        CompleteCheckpointHook(str(path), whole=True).after_load_checkpoint(runner, checkpoint)
    del checkpoint["state_dict"]["backbone.network.0.0.norm1.bias"]
    with pytest.raises(CheckpointError, match="1 missing: backbone.network.0.0.norm1.bias"):
        CompleteCheckpointHook(str(path), whole=False).after_load_checkpoint(runner, checkpoint)


def test_work_dir_follows_the_name_of_the_config():
    assert load_config(DETECTION).work_dir == "work_dirs/mask_rcnn_fcvit_s12_coco"
    assert load_config(DETECTION, work_dir="here").work_dir == "here"
    option = {"work_dir": "there"}
    assert load_config(DETECTION, option).work_dir == "there"
    assert load_config(DETECTION, option, work_dir="here").work_dir == "here"


@pytest.mark.official
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"train_cfg.max_iters": 1e30}, r"train_cfg\.max_iters is 1e\+30; .* from 1 to 10\^9"),
        ({"train_cfg.max_iters": -3}, r"train_cfg\.max_iters is -3; "),
        ({"train_cfg.max_iters": float("nan")}, r"train_cfg\.max_iters is nan; "),
        ({"train_cfg.val_interval": 0}, r"train_cfg\.val_interval is 0; "),
        ({"optim_wrapper": None}, "optim_wrapper is None; to train, it must be a dict"),
        ({"model": None}, "model is None; "),
        ({"default_hooks": 5}, "default_hooks is 5; it must be a dict or None"),
        ({"load_from": 5}, "load_from is 5; it must be a str or None"),
        ({"model.type": "FCViT"}, "model.type=FCViT is only a part of a model"),
        ({"runner_type": "FlexibleRunner"}, "runner_type='FlexibleRunner' is not supported"),
        ({"strategy.type": "FSDPStrategy"}, "strategy=.*FSDPStrategy.* is not supported"),
        ({"work_dir": "file"}, "work_dir file can't be written: .*file is a file"),
        ({"work_dir": "file/a/b"}, "work_dir file/a/b can't be written: .*file is a file"),
        ({"work_dir": "a" * 300}, "work_dir a+ can't be written: File name too long"),
    ],
    ids=str,
)
def test_what_fails_late_or_is_ignored_is_refused_first(
    tmp_path, monkeypatch, capfd, options, says
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=says) as error:
        engine.train(load_config(SHAPES, options))
    assert "\n" not in str(error.value) and "Config:" not in capfd.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_can_not_be_written_to_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(ConfigError, match=f"nothing can be written to {tmp_path}"):
        check_settings(load_config(SHAPES, work_dir=str(tmp_path / "a")), "train")


@pytest.mark.parametrize(
    ("config", "options", "says"),
    [
        (SHAPES, {"train_cfg.max_iters": 4}, "ends at 330, .*max_iters=4: it is cut off"),
        (SHAPES, {"param_scheduler.1.end": 100}, "ends at 100, .*=330: its last value is kept"),
        (DETECTION, {"train_cfg.max_epochs": 24}, r"ends at 12, .*set param_scheduler\.1\.end=24"),
        (DETECTION, {"param_scheduler.1.end": 10**9}, None),
        (DETECTION, {"param_scheduler": None}, None),
        (DETECTION, {"param_scheduler.1.end": "x"}, None),
    ],
    ids=str,
)
def test_a_schedule_of_another_length_than_the_training_is_said(config, options, says):
    lines = schedule_mismatch(load_config(config, options))
    assert len(lines) == (says is not None) and all(re.search(str(says), line) for line in lines)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("[!_]*/*.py")), ids=lambda p: p.stem
)
def test_schedules_of_our_configs_end_with_the_training(path):
    assert not schedule_mismatch(load_config(str(path)))


def test_amp_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="--amp needs a GPU"):
        enable_amp(load_config(DETECTION))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cfg = load_config(DETECTION, {"optim_wrapper.type": "OptimWrapper"})
    enable_amp(cfg)
    assert cfg.optim_wrapper.type == "AmpOptimWrapper"


@pytest.mark.parametrize("key", ["epoch", "iter", "seed"])
def test_a_number_that_a_terminal_would_obey_is_not_resumed(tmp_path, key):
    """MMEngine prints it."""
    meta = {"epoch": 1, "iter": 2, "seed": 3, key: "\x1b[2J"}
    torch.save({"state_dict": {}, "optimizer": {}, "meta": meta}, tmp_path / "a.pth")
    cfg = load_config(SHAPES, {"load_from": str(tmp_path / "a.pth"), "resume": True})
    with pytest.raises(CheckpointError, match=rf"a\.pth can't be resumed: meta\.{key} is no int"):
        resume.read_start(cfg)


def changed() -> list:
    """What `register_all` changes."""
    finders, filters = list(sys.meta_path), list(warnings.filters)
    schemes, writer = dict(CheckpointLoader._schemes), checkpoint.get_file_backend
    return [finders, filters, schemes, writer, dict(backends), Config._get_cfg_path]


def test_register_all_a_second_time_changes_nothing():
    # pytest has filters of its own
    register_all()
    before = changed()
    register_all()
    assert changed() == before
    assert backends["local"] is LocalBackend
    loaders = CheckpointLoader._schemes
    assert {loader.func for loader in loaders.values()} == {mmengine_backends.load_from_file}
    names = {"": "local", "http://": "http", "mmcls://": "mmcls", "pavi://": "pavi"}
    assert {scheme: loaders[scheme].__name__.split("_")[-1] for scheme in names} == names
