"""Check the pretrained weights and the datasets of a config before anything is built."""

import errno
import os
import sys
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.model import BaseTTAModel, is_model_wrapper
from rich.console import Console

from ..checkpoint.reader import is_url
from ..datasets import checks
from ..models.arch import get_arch
from ..models.fcvit import FCViT
from ..models.weights import check_exists
from ..utils.cli import require, writing
from ..utils.config import classes_named, iter_config_dicts, iter_leaf_datasets
from ..utils.errors import CheckpointError, ConfigError
from .checked_data import CheckedData
from .dist import run_on_main_process

# Where each dataset of our configs comes from, by its data_root.
DATA_SOURCES = {
    "data/coco": "Download train2017, val2017 and the annotations from https://cocodataset.org "
    "and unpack them there",
    "data/ade/ADEChallengeData2016": "Download ADEChallengeData2016.zip (scene parsing) from "
    "http://sceneparsing.csail.mit.edu and unpack it in data/ade",
    "data/cityscapes": "Download leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from "
    "https://www.cityscapes-dataset.com, unpack them there and make the label maps of the 19 "
    "classes, gtFine/*/*/*_labelTrainIds.png: pip install cityscapesscripts, then "
    "CITYSCAPES_DATASET=data/cityscapes csCreateTrainIdLabelImgs",
    "data/imagenet": "Download ILSVRC2012 from https://image-net.org and unpack it there: train/ "
    "and val/ with one folder per class",
    "data/shapes": "Generate it: python -m fcvit_mm.datasets.shapes data/shapes",
    "data/shapes_classification": "Generate it: python -m fcvit_mm.datasets.shapes "
    "data/shapes_classification --task classification",
    "data/coins": "Generate it: python -m fcvit_mm.datasets.coins data/coins",
}

# Of iterations or epochs; MMEngine's schedules without an end have this one.
LONGEST = 10**9


def check_settings(cfg: Config, split: str) -> None:
    """Refuse what a Runner fails on late, or ignores; before anything is built, logged or written.

    Args:
        cfg: a config.
        split: train or test.
    """
    name = cfg.filename
    for key in ("runner_type", "strategy"):
        if cfg.get(key, "Runner") not in ("Runner", None):
            raise ConfigError(
                f"{name}: {key}={cfg[key]!r} is not supported: MMEngine's Runner trains here, in "
                f"several processes with DDP; leave out {key}"
            )
    needed = ["model", f"{split}_dataloader", f"{split}_cfg"]
    for key in [*needed, "optim_wrapper"] if split == "train" else needed:
        if not isinstance(cfg.get(key), dict):
            raise ConfigError(f"{name}: {key} is {cfg.get(key)!r}; to {split}, it must be a dict")
    for key, kind in (("default_hooks", dict), ("load_from", str)):
        if not isinstance(cfg.get(key), kind | None):
            raise ConfigError(
                f"{name}: {key} is {cfg[key]!r}; it must be a {kind.__name__} or None"
            )
    for key in ("max_epochs", "max_iters", "val_interval") if split == "train" else ():
        value = cfg.train_cfg.get(key, 1)
        if not isinstance(value, int | float) or not 1 <= value <= LONGEST or value % 1:
            raise ConfigError(
                f"{name}: train_cfg.{key} is {value!r}; it must be a whole number from 1 to 10^9"
            )
    evaluators = iter_config_dicts(
        cfg.get("val_evaluator" if split == "train" else "test_evaluator")
    )
    if any(node.get("type") == "FasterCocoMetric" for _, node in evaluators):
        # MMDetection would find out after the whole evaluation
        require("faster_coco_eval", "faster-eval")
    models = classes_named(cfg.model.get("type"), cfg.get("default_scope") or "mmengine")
    if models and not any(hasattr(model, f"{split}_step") for model in models):
        raise ConfigError(
            f"{name}: model.type={cfg.model.type} is only a part of a model, which can't {split} "
            "alone; set the type of that part, such as model.backbone.type"
        )
    work_dir = Path(cfg.work_dir).absolute()
    with writing(f"work_dir {cfg.work_dir}"):
        there = next(path for path in (work_dir, *work_dir.parents) if path.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{there} is a file")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"nothing can be written to {there}")


def schedule_mismatch(cfg: Config) -> list[str]:
    """Say in a line if the schedule of the learning rate ends before or beyond the training."""
    kind = "max_epochs" if "max_epochs" in cfg.train_cfg else "max_iters"
    length, given = cfg.train_cfg.get(kind), cfg.get("param_scheduler") or []
    ends = [
        (node.get("end", LONGEST), i)
        for i, node in enumerate(given if isinstance(given, list) else [given])
        if isinstance(node.get("end", LONGEST), int)  # what else it can't be, MMEngine says
        and node.get("by_epoch", True) == (kind == "max_epochs")
    ]
    # without an end, one lasts for as long as the training does
    end, i = max(ends, default=(LONGEST, 0))
    if length is None or end in (length, LONGEST):
        return []
    what = "its last value is kept" if end < length else "it is cut off"
    return [
        f"the schedule of the learning rate ends at {end}, the training at {kind}={length}: "
        f"{what}; to change that, set param_scheduler.{i}.end={length} and what belongs to it, "
        "such as milestones"
    ]


def check_files(cfg: Config, loaders: tuple[str, ...], checked: bool = False) -> None:
    """Make sure that weights and data are there before anything is built.

    Args:
        cfg: a config.
        loaders: which of train_dataloader, val_dataloader and test_dataloader will be used.
        checked: leave out the content of the data.

    Raises:
        ConfigError: something is missing; the message says where to get it and to put it.
    """
    for path, node in iter_config_dicts(cfg.get("model", {}), "model"):
        init_cfg = node.get("init_cfg")
        if isinstance(init_cfg, dict) and init_cfg.get("type") == "Pretrained":
            _check_weights(str(init_cfg.get("checkpoint")), node.get("arch", "s12"), path)
    check_data_exist(cfg, loaders)
    if cfg.get("check_data", True) and not checked:
        run_on_main_process(lambda: _check_data(cfg, loaders))


def check_data_exist(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Make sure that the files and folders of datasets are there, or raise a ConfigError."""
    for loader in loaders:
        dataset = (cfg.get(loader) or {}).get("dataset")
        for path, node in iter_leaf_datasets(dataset, f"{loader}.dataset"):
            _check_dataset(node, path)


def _check_weights(checkpoint: str, arch: Any, path: str) -> None:
    """Make sure that the pretrained weights of a part of the model, at `path`, are there."""
    try:
        get_arch(arch)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    try:
        check_exists(checkpoint, arch)
    except CheckpointError as error:
        raise ConfigError(
            f"{path}.init_cfg: {str(error).rstrip('.')}. To start from random weights instead, add "
            "--from-scratch."
        ) from error


def _check_dataset(dataset: dict, path: str) -> None:
    root = dataset.get("data_root") or ""
    prefix = dataset.get("data_prefix") or {}
    # MMPretrain's is a string
    prefixes = [prefix] if isinstance(prefix, str) else prefix.values()
    for name in (dataset.get("ann_file"), dataset.get("proposal_file"), *prefixes):
        # not all datasets have each
        if not isinstance(name, str) or not name or is_url(name) or is_url(root):
            continue
        if name.endswith((".pkl", ".pickle")):
            raise ConfigError(
                f"{path}: {name} is a pickle, which can run code when it is read; if it is your "
                "own, write it as JSON"
            )
        wanted = Path(root, name)
        if not wanted.exists():
            remedy = DATA_SOURCES.get(root.rstrip("/"), "Put it there")
            raise ConfigError(
                f"{path}: {wanted} does not exist. {remedy}, or set {path}.data_root to where "
                "the data are."
            )
        if not wanted.is_file() and not wanted.is_dir():
            raise ConfigError(
                f"{path}: {wanted} is a pipe or a device; name a file that holds its content"
            )


def _check_data(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Check the content of datasets that has not passed yet, and print warnings."""
    checked = CheckedData(cfg, loaders)
    if earlier := checked.find():
        print(
            f"data: unchanged since they were checked at {earlier['checked']}, as {checked.path} "
            "notes; fcvit check_data checks them again",
            *(f"warning: {warning}" for warning in earlier["warnings"]),
            sep="\n",
            file=sys.stderr,
        )
        return
    console = Console(stderr=True)
    reports = checks.check(cfg, loaders, console=console if console.is_terminal else None)
    for warning in (warning for report in reports for warning in report.warnings):
        print(f"warning: {warning}", file=sys.stderr)
    if errors := [error for report in reports for error in report.errors]:
        more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
        raise ConfigError(
            f"{errors[0]}{more}. All is listed by fcvit check_data {cfg.filename}; "
            "--cfg-options check_data=False leaves this check out."
        )
    checked.add(reports)


def unwrap(model: Any) -> Any:
    """Return the model inside of DDP and of test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def check_neck(model: Any) -> None:
    """Refuse a neck for other channels than the backbone has, which would fail when it is used."""
    model = unwrap(model)
    backbone = getattr(model, "backbone", None)
    wanted = getattr(getattr(model, "neck", None), "in_channels", None)
    if not isinstance(backbone, FCViT) or not isinstance(wanted, list | tuple):
        return
    if list(wanted) != (channels := list(backbone.out_channels)):
        raise ConfigError(
            f"model.neck.in_channels is {list(wanted)}, while the backbone's outputs have "
            f"{channels} channels; set model.neck.in_channels={channels}, or the backbone's arch "
            "and out_indices"
        )
