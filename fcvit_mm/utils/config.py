"""Read configs, apply a user's options, and adapt them to this machine."""

import copy
import inspect
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from importlib import import_module
from inspect import Parameter
from pathlib import Path
from typing import Any

import torch
from mmengine import registry
from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from . import mim
from .errors import ConfigError, name_failure
from .work_dir import find_config

# What MMEngine's Runner reads of a config besides its own arguments, and what we read.
KEYS = {
    *inspect.signature(Runner).parameters,
    *("activation_checkpointing", "compile", "efficient_conv_bn_eval", "find_unused_parameters",
      "model_wrapper_cfg", "runner_type", "strategy", "sync_bn"),
    *("check_data", "auto_scale_lr", "tta_model", "tta_pipeline", "verbose"),
}  # fmt: skip
# What OpenMMLab takes out of a dict before it builds a class from the others.
TAKEN_OUT = {"type", "_scope_", "_delete_", "by_epoch", "constructor", "convert_to_iter_based",
             "dataset", "num_batch_per_epoch", "override", "paramwise_cfg", "priority",
             "requires_grad"}  # fmt: skip
# Dicts that need no type.
UNTYPED: dict[str, list[Any]] = {
    **{f"{split}_dataloader": [DataLoader] for split in ("train", "val", "test")},
    "train_cfg": [EpochBasedTrainLoop, IterBasedTrainLoop],
    "randomness": [Runner.set_randomness],
}
# How alike two names are (of 1) before one is taken for the other misspelt.
ALIKE = 0.8
# The tasks of a config, by its default_scope.
TASKS = {"mmdet": "detection", "mmseg": "segmentation", "mmpretrain": "classification"}
# In a label map: no class, as OpenMMLab's datasets mark pixels to ignore.
IGNORED = 255


def iter_leaf_datasets(dataset: Any, path: str) -> Iterator[tuple[str, dict]]:
    """Yield the datasets of a loader's `dataset`, all wrappers taken off, each with its path."""
    if not isinstance(dataset, dict):
        return
    if "datasets" in dataset:
        for i, inner in enumerate(dataset["datasets"]):
            yield from iter_leaf_datasets(inner, f"{path}.datasets.{i}")
    elif "dataset" in dataset:
        yield from iter_leaf_datasets(dataset["dataset"], f"{path}.dataset")
    else:
        yield path, dataset


def iter_config_dicts(node: Any, path: str = "") -> Iterator[tuple[str, dict]]:
    """Yield every dict in a config with its dotted path, parents first."""
    if isinstance(node, dict):
        yield path, node
    elif not isinstance(node, list | tuple):
        return
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        yield from iter_config_dicts(value, f"{path}.{key}" if path else str(key))


def task_of(cfg: Config) -> str:
    """Return the task of a config, by its default_scope; a ConfigError if that is unknown."""
    scope = cfg.get("default_scope")
    if scope not in TASKS:
        raise ConfigError(
            f"{cfg.filename}: default_scope is {scope!r}; set it to one of {', '.join(TASKS)}"
        )
    return TASKS[scope]


def load_config(
    filename: str,
    options: dict | None = None,
    work_dir: str | None = None,
    launcher: str = "none",
    verbose: bool = False,
) -> Config:
    """Read a config file as MMEngine does, with a user's changes.

    Args:
        filename: path of a config, or `fcvit_mm::` and one of the package below its configs/, or
            the work directory of a training.
        options: `--cfg-options`, dotted keys and their values.
        work_dir: overrides the config's; the default is work_dirs/NAME_OF_THE_CONFIG.
        launcher: none, pytorch, slurm or mpi.
        verbose: begin the log of a run with environment, config and hooks.

    Raises:
        ConfigError: no such file, one that can't be read, or an option that doesn't fit it.
    """
    path, is_folder = filename, Path(filename).is_dir()
    if is_folder:
        path, work_dir = str(find_config(filename)), work_dir or filename
    elif filename.startswith(mim.PREFIX):
        try:
            path = mim.config_path(filename.removeprefix(mim.PREFIX))
        except FileNotFoundError as error:
            raise ConfigError(str(error)) from error
    elif not Path(filename).is_file():
        raise ConfigError(
            f"{filename}: there is no such config; ours lie in configs/ of a clone and are "
            f"named {mim.PREFIX}detection/... elsewhere"
        )
    with name_failure(f"{filename} can't be read as a config"):
        cfg = Config.fromfile(path)
    if is_folder and cfg.get("resume"):
        # as the training was told, or found out for itself
        cfg.resume, cfg.load_from = False, None
    _merge_options(cfg, options or {})
    cfg.work_dir = str(work_dir or cfg.get("work_dir") or f"work_dirs/{Path(filename).stem}")
    cfg.launcher = launcher
    if verbose:
        cfg.verbose = True
    return cfg


def _merge_options(cfg: Config, options: dict[str, Any]) -> None:
    """Merge dotted keys and their values into a config, in place.

    Raises:
        ConfigError: an option doesn't fit the config, or nothing would read it.
    """
    before = cfg._cfg_dict
    with name_failure(f"--cfg-options does not fit {cfg.filename}"):
        cfg.merge_from_dict(options)
    old, new = (dict(iter_config_dicts(node)) for node in (before, cfg._cfg_dict))
    for key, value in options.items():
        within = [f"{path}.{k}" for path, node in iter_config_dicts(value, key) for k in node]
        for path in (key, *within):
            words = path.split(".")
            for depth, word in enumerate(words):
                where = ".".join(words[:depth])
                if where in new and word not in old.get(where, {}):
                    _check_new(where, word, new[where], old.get(where, {}), cfg)
    for name in {key.split(".")[0] for key in options} & {*before} - KEYS:
        _set_variable(name, before[name], cfg)


def classes_named(name: Any, scope: str) -> list[Any]:
    """Return what the registries of a scope, and MMEngine's own, have under a name."""
    if not isinstance(name, str):
        return [name] if callable(name) else []
    given, _, short = name.rpartition(".")
    try:
        import_module(f"{given or scope}.registry")
    except ImportError:
        return []
    found = []
    for root in (root for root in vars(registry).values() if isinstance(root, Registry)):
        for node in (root.children.get(given or scope, root), root):
            node.import_from_location()
            if short in node.module_dict:
                found.append(node.module_dict[short])
                break
    return found


def _check_new(where: str, key: str, node: dict, before: dict, cfg: Config) -> None:
    """Refuse a new key of a dict if nothing reads it; warn if that can't be known."""
    dot = f"{where}." if where else ""
    if where:
        scope = cfg.get("default_scope") or "mmengine"
        built = classes_named(node["type"], scope) if "type" in node else UNTYPED.get(where, [])
        arguments = [_arguments(one) for one in built]
        known = set().union(TAKEN_OUT, *filter(None, arguments))
        reason = f"{' or '.join(one.__name__ for one in built)} takes no {key}"
        is_certain = built and None not in arguments
    else:
        known, reason = {*before, *KEYS}, f"{cfg.filename} has no {key}, and MMEngine reads none"
        is_certain = True
    if key in known:
        return
    if is_certain:
        (nearest,) = get_close_matches(key, known - TAKEN_OUT or known, n=1, cutoff=0)
        raise ConfigError(
            f"--cfg-options: unknown key {dot}{key}: {reason}; did you mean {dot}{nearest}?"
        )
    for near in get_close_matches(key, known | before.keys(), 1, ALIKE):
        print(f"warning: --cfg-options: {dot}{key} is new; if {dot}{near} was meant, nothing "
              "reads it", file=sys.stderr)  # fmt: skip


def _arguments(built: Any) -> set[str] | None:
    """Return the names that a class or function takes, its bases' too where it passes on others.

    None: any.
    """
    # mmcv takes settings of its own out of those of PyTorch's layers
    if str(getattr(built, "__module__", "")).startswith("torch.nn."):
        return None
    names: set[str] = set()
    for one in built.__mro__ if inspect.isclass(built) else [built]:
        function = vars(one).get("__init__") if inspect.isclass(one) else one
        if function is None:
            continue
        parameters = inspect.signature(function).parameters.values()
        passed_on = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        names |= {one.name for one in parameters if one.kind not in passed_on} - {"self"}
        if all(one.kind != Parameter.VAR_KEYWORD for one in parameters):
            return names
    return None


def _set_variable(name: str, old: Any, cfg: Config) -> None:
    """Have a changed variable of a config file take effect, or refuse it.

    MMEngine reads `visualizer.vis_backends`, say, to which the file has copied its `vis_backends`.
    """
    nodes = [
        (path, node)
        for path, node in iter_config_dicts(cfg._cfg_dict)
        if path and path.split(".")[0] != name
    ]
    # an equal number or text may be another's
    copied = any(True for _ in iter_config_dicts(old)) and any(
        [_replace(node, old, cfg[name]) for key, node in cfg._cfg_dict.items() if key != name]
    )
    if not copied:
        places = [f"{path}.{name}" for path, node in nodes if name in node]
        raise ConfigError(
            f"--cfg-options: {name} is a variable of {cfg.filename}, which copies it when it is "
            f"read; set {' or '.join(places) or 'what it is copied to'} instead"
        )


def _replace(node: Any, old: Any, new: Any) -> bool:
    """Put copies of `new` wherever a part of a config equals `old`; tell whether one does."""
    replaced = False
    if isinstance(node, dict | list):
        for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
            if value == old:
                node[key], replaced = copy.deepcopy(new), True
            else:
                replaced |= _replace(value, old, new)
    return replaced


def adapt(cfg: Config) -> list[str]:
    """Change in a config, in place, what this machine or launcher can't run; return the changes.

    Without a GPU: float32 for mixed precision, gloo for nccl. Without a GPU, or in one process:
    BN for SyncBN. Elsewhere nothing.
    """
    cuda, distributed = torch.cuda.is_available(), cfg.get("launcher", "none") != "none"
    changes = []
    if not (cuda and distributed):
        for path, node in iter_config_dicts(cfg._cfg_dict):
            if node.get("type") in ("SyncBN", "MMSyncBN"):
                node["type"] = "BN"
                changes.append(f"{path}: BN for SyncBN, which needs GPUs and several processes")
    if cuda:
        return changes
    optim_wrapper = cfg.get("optim_wrapper") or {}
    if optim_wrapper.get("type") == "AmpOptimWrapper":
        optim_wrapper["type"] = "OptimWrapper"
        for key in ("loss_scale", "dtype", "use_fsdp"):
            optim_wrapper.pop(key, None)
        changes.append("optim_wrapper: float32 for mixed precision, which needs a GPU")
    if distributed:
        env_cfg = cfg.get("env_cfg") or {}
        dist_cfg = dict(env_cfg.get("dist_cfg") or {}, backend="gloo")
        cfg.env_cfg = dict(env_cfg, dist_cfg=dist_cfg)
        cfg.model_wrapper_cfg = {
            "type": "MMDistributedDataParallel",
            "find_unused_parameters": cfg.get("find_unused_parameters", False),
            **(cfg.get("model_wrapper_cfg") or {}),
            "device_ids": None,
        }
        cfg.sync_bn = None
        changes.append("env_cfg: gloo for nccl, which needs a GPU")
    return changes


def drop_pretrained(cfg: Config) -> None:
    """Load no pretrained weights, which a whole checkpoint overwrites and which may be absent."""
    for _, node in list(iter_config_dicts(cfg.model)):
        init_cfg = node.get("init_cfg")
        if isinstance(init_cfg, dict) and init_cfg.get("type") == "Pretrained":
            node["init_cfg"] = None
