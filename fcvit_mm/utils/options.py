"""What options of training and test change in a config, in place."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict

from .cli import require
from .config import iter_config_dicts
from .errors import ConfigError

# MMEngine's writers of losses and metrics, by the package that each needs.
LOGGERS = {
    "tensorboard": "TensorboardVisBackend",
    "wandb": "WandbVisBackend",
    "mlflow": "MLflowVisBackend",
}
# MMDetection's metrics with a table of classes.
COCO_METRICS = ("CocoMetric", "FasterCocoMetric")
# Initial value of the layer scales of a backbone that starts from random weights.
SCRATCH_LAYER_SCALE = 0.1
# Below the last digit of every metric, so that any gain counts and none does not.
LEAST_GAIN = 1e-4


def enable_amp(cfg: Config) -> None:
    """Train in mixed precision (`--amp`); refuse it where there is no GPU."""
    if not torch.cuda.is_available():
        raise ConfigError("--amp needs a GPU, and this machine has none; leave it out")
    if not cfg.get("optim_wrapper"):
        raise ConfigError(f"--amp: {cfg.filename} has no optim_wrapper; add it")
    cfg.optim_wrapper.type = "AmpOptimWrapper"
    cfg.optim_wrapper.setdefault("loss_scale", "dynamic")


def enable_auto_scale_lr(cfg: Config) -> None:
    """Scale the learning rate to the actual batch size (`--auto-scale-lr`)."""
    if "base_batch_size" not in (cfg.get("auto_scale_lr") or {}):
        raise ConfigError(
            f"--auto-scale-lr: {cfg.filename} has no auto_scale_lr.base_batch_size; add it"
        )
    cfg.auto_scale_lr.enable = True


def start_from_scratch(cfg: Config) -> None:
    """Train from random weights (`--from-scratch`), with layer scales at which they learn.

    With the published 1e-6 each block begins as the identity, and a few hundred iterations change
    little in that.
    """
    backbones = [node for _, node in iter_config_dicts(cfg.model) if node.get("type") == "FCViT"]
    if not backbones:
        raise ConfigError(f"--from-scratch: {cfg.filename} has no FCViT; leave it out")
    for node in backbones:
        node["init_cfg"], node["layer_scale_init"] = None, SCRATCH_LAYER_SCALE
    cfg.load_from = None


def enable_tta(cfg: Config) -> None:
    """Test with test-time augmentation (`--tta`): wrap the model, and replace the pipeline."""
    if not cfg.get("tta_model") or not cfg.get("tta_pipeline"):
        raise ConfigError(f"--tta: {cfg.filename} has no tta_model and tta_pipeline; add both")
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def dump_predictions(cfg: Config, filename: Path) -> None:
    """Have a test write its predictions to a .pkl file as OpenMMLab does (`--out`)."""
    metric = "DumpDetResults" if cfg.get("default_scope") == "mmdet" else "DumpResults"
    given = cfg.test_evaluator
    evaluators = given if isinstance(given, list | tuple) else [given]
    cfg.test_evaluator = [*evaluators, dict(type=metric, out_file_path=str(filename))]


def add_loggers(cfg: Config, names: Iterable[str]) -> None:
    """Have a run write losses, metrics and drawn images for other loggers, too (`--logger`)."""
    if not cfg.get("visualizer"):
        raise ConfigError(f"--logger: {cfg.filename} has no visualizer; add it")
    backends = [*(cfg.visualizer.get("vis_backends") or [])]
    for name in names:
        require(name, name)
        settings = _mlflow_settings(cfg) if name == "mlflow" else {}
        if all(backend["type"] != LOGGERS[name] for backend in backends):
            backends.append(dict(type=LOGGERS[name], **settings))
    cfg.visualizer.vis_backends = backends


def _mlflow_settings(cfg: Config) -> dict[str, Any]:
    """Return where MLflow writes: to the server of its own environment variable, or a database.

    MMEngine's default, a folder of files, is refused by MLflow 3, and it ignores the variable.
    """
    work_dir = Path(cfg.work_dir).absolute()
    settings: dict[str, Any] = dict(exp_name=work_dir.name)
    if server := os.environ.get("MLFLOW_TRACKING_URI"):
        return dict(settings, tracking_uri=server)
    return dict(
        settings,
        tracking_uri=f"sqlite:///{work_dir}/mlflow.db",
        artifact_location=(work_dir / "mlruns").as_uri(),
        # MMEngine would copy the work directory's files into it, those of earlier runs included
        artifact_suffix=(),
    )


def stop_early(cfg: Config, patience: int) -> None:
    """End a training after so many evaluations without a gain (`--patience`).

    The metric is that by which the best checkpoint is chosen.
    """
    checkpoint = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
    first = {}
    for key in ("save_best", "rule"):
        value = checkpoint.get(key)
        first[key] = value[0] if isinstance(value, list | tuple) and value else value
    if not cfg.get("val_cfg") or first["save_best"] in (None, "auto"):
        raise ConfigError(
            f"--patience: {cfg.filename} needs an evaluation, and the name of its metric in "
            "default_hooks.checkpoint.save_best, such as coco/bbox_mAP; add both"
        )
    hook = dict(
        type="EarlyStoppingHook",
        monitor=first["save_best"],
        rule=first["rule"],
        patience=patience,
        min_delta=LEAST_GAIN,
    )
    # the config of an earlier training may have another
    cfg.custom_hooks = [*_other_hooks(cfg), hook]


def drop_training_options(cfg: Config) -> None:
    """Take out of a training's config what `--logger` and `--patience` put in, for a test.

    MMEngine would begin an empty run of each logger, and refuses to stop what it does not train.
    """
    if visualizer := cfg.get("visualizer"):
        visualizer.vis_backends = [
            backend
            for backend in visualizer.get("vis_backends") or []
            if backend.get("type") not in LOGGERS.values()
        ]
    cfg.custom_hooks = _other_hooks(cfg)


def _other_hooks(cfg: Config) -> list[dict]:
    hooks = cfg.get("custom_hooks") or []
    return [hook for hook in hooks if hook.get("type") != "EarlyStoppingHook"]


def list_classes(cfg: Config) -> None:
    """Have a detector's test print the AP of each class; segmentors' print their IoU anyway."""
    given = cfg.get("test_evaluator")
    for evaluator in given if isinstance(given, list | tuple) else [given]:
        if isinstance(evaluator, dict) and evaluator.get("type") in COCO_METRICS:
            evaluator.setdefault("classwise", True)
