"""What options of training and test change in a config, and what they refuse."""

import pytest

from fcvit_mm.engine.preflight import check_settings
from fcvit_mm.utils import cli
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.errors import ConfigError
from fcvit_mm.utils.options import (
    LOGGERS,
    add_loggers,
    drop_training_options,
    list_classes,
    stop_early,
)
from helpers.tools import CONFIGS

DETECTION, SEGMENTATION = str(CONFIGS["mask_rcnn"]), str(CONFIGS["semantic_fpn"])


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)


def test_loggers_come_behind_those_of_the_config(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("fcvit_mm.utils.options.require", lambda module, extra: None)
    cfg = load_config(DETECTION)
    add_loggers(cfg, ["wandb", "mlflow", "wandb"])
    kinds = [backend["type"] for backend in cfg.visualizer.vis_backends]
    assert kinds == ["LocalVisBackend", "WandbVisBackend", "MLflowVisBackend"]
    # the folder of files that is MMEngine's default is refused by MLflow 3
    assert cfg.visualizer.vis_backends[2].tracking_uri.endswith("tiny_shapes/mlflow.db")
    # nobody else's list has grown
    assert len(load_config(DETECTION).vis_backends) == len(cfg.vis_backends) == 1
    # a test, for which they would begin an empty run, may not even have them installed
    drop_training_options(cfg)
    assert cfg.visualizer.vis_backends == [dict(type="LocalVisBackend")]


def test_mlflow_writes_to_the_server_of_its_environment_variable(monkeypatch):
    monkeypatch.setattr("fcvit_mm.utils.options.require", lambda module, extra: None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    cfg = load_config(DETECTION)
    add_loggers(cfg, ["mlflow"])
    backend = cfg.visualizer.vis_backends[-1]
    assert backend.tracking_uri == "http://127.0.0.1:5000" and "artifact_location" not in backend


@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_that_is_not_installed_is_named(nothing_installed, name):
    with pytest.raises(ConfigError, match=rf"needs {name}, .*pip install 'fcvit-mm\[{name}\]'"):
        add_loggers(load_config(DETECTION), [name])


def test_a_config_without_visualizer_has_no_loggers():
    with pytest.raises(ConfigError, match="has no visualizer"):
        add_loggers(load_config(DETECTION, {"visualizer": None}), ["tensorboard"])


@pytest.mark.parametrize(
    ("settings", "monitor", "rule"),
    [
        ({}, "coco/bbox_mAP", None),
        ({"save_best": ["coco/segm_mAP", "coco/bbox_mAP"]}, "coco/segm_mAP", None),
        ({"save_best": "noise", "rule": "less"}, "noise", "less"),
    ],
    ids=str,
)
def test_patience_watches_the_metric_of_the_best_checkpoint(settings, monitor, rule):
    cfg = load_config(DETECTION)
    cfg.default_hooks.checkpoint.update(settings)
    before = len(cfg.custom_hooks)
    stop_early(cfg, 5)
    stop_early(cfg, 3)
    hook = cfg.custom_hooks[-1]
    assert len(cfg.custom_hooks) == before + 1 and hook.type == "EarlyStoppingHook"
    assert (hook.monitor, hook.rule, hook.patience) == (monitor, rule, 3)


@pytest.mark.parametrize(
    "options",
    [
        {"default_hooks.checkpoint.save_best": None},
        {"default_hooks.checkpoint.save_best": "auto"},
        {"val_cfg": None},
    ],
    ids=str,
)
def test_patience_without_a_metric_is_refused(options):
    with pytest.raises(ConfigError, match=r"--patience: .*default_hooks\.checkpoint\.save_best"):
        stop_early(load_config(DETECTION, options), 3)


def test_a_detectors_test_lists_classes_and_a_segmentors_config_stays():
    cfg = load_config(DETECTION)
    list_classes(cfg)
    assert cfg.test_evaluator.classwise
    several = load_config(DETECTION)
    several.test_evaluator = [several.test_evaluator, dict(type="DumpDetResults")]
    list_classes(several)
    assert several.test_evaluator[0].classwise and "classwise" not in several.test_evaluator[1]
    other = load_config(SEGMENTATION)
    list_classes(other)
    assert other.test_evaluator == load_config(SEGMENTATION).test_evaluator


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_faster_metric_is_asked_for_before_anything_runs(tmp_path, split, nothing_installed):
    key = "val_evaluator" if split == "train" else "test_evaluator"
    cfg = load_config(DETECTION, {f"{key}.type": "FasterCocoMetric"}, str(tmp_path))
    with pytest.raises(ConfigError, match=r"needs faster_coco_eval.*fcvit-mm\[faster-eval\]"):
        check_settings(cfg, split)
