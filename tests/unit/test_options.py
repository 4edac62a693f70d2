"""`--cfg-options`: what is taken, and that a key which nothing reads is refused by its path."""

import argparse

import pytest

from fcvit_mm.utils.cli import add_config
from fcvit_mm.utils.config import adapt, load_config
from fcvit_mm.utils.errors import ConfigError
from helpers.tools import CONFIGS

DETECTION, SEGMENTATION = str(CONFIGS["mask_rcnn"]), str(CONFIGS["semantic_fpn"])


def parsed(*words: str) -> dict:
    parser = argparse.ArgumentParser()
    add_config(parser)
    return parser.parse_args(["a.py", "--cfg-options", *words]).cfg_options


def test_dicts_and_nested_lists_are_read_as_in_a_config():
    options = parsed(
        "vis_backends=[dict(type='TensorboardVisBackend')]",
        "model.test_cfg.rcnn.nms=dict(type='nms', iou_threshold=0.3)",
        "model.rpn_head.anchor_generator.ratios=[[0.5,1.0],(2.0,)]",
        "resume=True",
        "work_dir=12",
    )
    cfg = load_config(DETECTION, options)
    # as MMDetection's FAQ says; MMEngine itself reads the visualizer's alone
    assert cfg.visualizer.vis_backends == cfg.vis_backends == [{"type": "TensorboardVisBackend"}]
    assert cfg.model.test_cfg.rcnn.nms == {"type": "nms", "iou_threshold": 0.3}
    assert cfg.model.rpn_head.anchor_generator.ratios == [[0.5, 1.0], (2.0,)]
    assert cfg.resume is True and cfg.work_dir == "12"


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("a=[dict(type=FPN)]", "name 'FPN' is not defined"),
        ("a=dict(b=1", "can't be: "),
        ("a=[1,(2]", "its brackets are no list"),
    ],
)
def test_a_value_that_can_not_be_read_is_a_sentence(capsys, word, says):
    with pytest.raises(SystemExit) as end:
        parsed(word)
    assert end.value.code == 2 and says in capsys.readouterr().err


@pytest.mark.official
@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("load_form", "load_from"),
        ("train_dataloder.batch_size", "train_dataloader"),
        ("model.bakbone.arch", "model.backbone"),
        ("model.backbone.drop_path", "model.backbone.drop_path_rate"),
        ("model.roi_head.bbox_head.fc_out_chanels", "model.roi_head.bbox_head.fc_out_channels"),
        # an argument of the class that its class extends
        ("model.roi_head.bbox_head.class_agnostic", "model.roi_head.bbox_head.reg_class_agnostic"),
        ("model.train_cfg.rpn.assigner.pos_iou", "model.train_cfg.rpn.assigner.pos_iou_thr"),
        ("optim_wrapper.optimizer.weight_decy", "optim_wrapper.optimizer.weight_decay"),
        ("optim_wrapper.accumulative", "optim_wrapper.accumulative_counts"),
        ("train_dataloader.batchsize", "train_dataloader.batch_size"),
        ("train_dataloader.dataset.filters", "train_dataloader.dataset.filter_cfg"),
        ("train_dataloader.dataset.pipeline.1.with_boxes",
         "train_dataloader.dataset.pipeline.1.with_bbox"),
        ("train_cfg.val_intervall", "train_cfg.val_interval"),
        ("param_scheduler.1.eta_minimum", "param_scheduler.1.eta_min"),
        ("val_evaluator.proposals", "val_evaluator.proposal_nums"),
        ("randomness.sed", "randomness.seed"),
    ],
    ids=str,
)  # fmt: skip
def test_a_key_that_nothing_reads_is_refused_at_every_depth(
    tmp_path, monkeypatch, capfd, key, nearest
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        load_config(DETECTION, {key: 2})
    message = str(error.value)
    unknown = ".".join(key.split(".")[: nearest.count(".") + 1])
    assert message.startswith(f"--cfg-options: unknown key {unknown}: ")
    assert message.endswith(f"; did you mean {nearest}?")
    # nothing is logged but what importing a toolbox prints
    assert "Config" not in capfd.readouterr().out and not list(tmp_path.iterdir())


def test_keys_inside_of_values_are_checked_too():
    with pytest.raises(ConfigError, match=r"unknown key visualizer\.vis_backends\.0\.direct: "):
        value = [dict(type="LocalVisBackend", direct="a")]
        load_config(DETECTION, {"visualizer.vis_backends": value})


@pytest.mark.official
def test_where_anything_may_be_read_a_name_like_another_is_warned_of(capsys):
    load_config(DETECTION, {"model.test_cfg.rcnn.score_trh": 0.1})
    assert "score_trh is new; if model.test_cfg.rcnn.score_thr was meant" in capsys.readouterr().err
    load_config(DETECTION, {"default_hooks.checkpoint.save_bst": 0.1})
    assert "if default_hooks.checkpoint.save_best was meant" in capsys.readouterr().err
    load_config(DETECTION, {"default_hooks.checkpoint.save_optimizer": False})
    assert not capsys.readouterr().err


def test_a_variable_takes_effect_where_it_was_copied_to_or_is_refused():
    cfg = load_config(SEGMENTATION, {"test_pipeline.0.imdecode_backend": "pillow"})
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.pipeline[0].imdecode_backend == "pillow"
    with pytest.raises(ConfigError, match=r"max_iters is a variable of .*set train_cfg\.max_iters"):
        load_config(DETECTION, {"max_iters": 5})


@pytest.mark.official
@pytest.mark.parametrize(
    "option",
    [
        {"compile": True},
        {"model_wrapper_cfg.type": "MMDistributedDataParallel"},
        {"find_unused_parameters": True},
        {"activation_checkpointing": ["backbone"]},
        {"efficient_conv_bn_eval": ["backbone"]},
        {"sync_bn": "torch"},
        {"randomness.seed": 1},
        {"check_data": True},
        {"experiment_name": "a"},
        {"model.backbone.with_cp": True},
        {"model.neck.norm_cfg": dict(type="BN", requires_grad=False)},
        {"model.neck.type": "mmdet.PAFPN"},
        {"model.neck._delete_": True, "model.neck.type": "FPN", "model.neck.num_outs": 3},
        {"optim_wrapper.paramwise_cfg.norm_decay_mult": 0.0, "optim_wrapper.constructor": "A"},
        {"param_scheduler.0.convert_to_iter_based": True},
        {"default_hooks.checkpoint.priority": "LOW"},
        {"custom_hooks": [dict(type="EMAHook", momentum=0.1)]},
        {"train_dataloader.pin_memory": True, "train_dataloader.num_batch_per_epoch": 2},
        {"train_dataloader.dataset.indices": 4},
        {"train_cfg.val_begin": 2},
        {"val_dataloader": None, "val_cfg": None, "val_evaluator": None},
        {"test_evaluator.outfile_prefix": "a"},
    ],
    ids=str,
)
def test_what_mmengine_or_a_class_reads_is_taken(option, capsys):
    cfg = load_config(DETECTION, option)
    assert all(key.split(".")[0] in cfg for key in option) and not capsys.readouterr().err


def test_settings_of_several_processes_are_kept_without_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    options = {"find_unused_parameters": True, "model_wrapper_cfg.static_graph": True}
    cfg = load_config(DETECTION, {**options, "sync_bn": "torch"}, launcher="pytorch")
    adapt(cfg)
    assert cfg.model_wrapper_cfg.find_unused_parameters and cfg.model_wrapper_cfg.static_graph
    assert cfg.model_wrapper_cfg.device_ids is None and cfg.sync_bn is None
