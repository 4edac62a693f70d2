"""Read configs, apply a user's options, and adapt them to this machine."""

import inspect
import re
from collections.abc import Iterator
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from mmengine import registry
from mmengine.config import Config, ConfigDict
from mmengine.registry import Registry
from mmengine.runner import Runner

from . import mim
from .errors import ConfigError, first_line

# Keys of a config besides those that MMEngine's Runner takes and those that it sets itself.
OUR_KEYS = ("check_data", "auto_scale_lr", "tta_model", "tta_pipeline", "verbose")
# Keys whose classes OpenMMLab looks up in registries and then in all modules; scopes, it imports.
NAMES_OF_CLASSES = ("type", "constructor", "norm_layer", "check_fn")
NAMES_OF_SCOPES = ("default_scope", "_scope_")
SCOPES = ("mmengine", "mmcv", "mmdet", "mmseg", "mmpretrain")
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
        filename: path of a config, or `fcvit_mm::` and one of the package below its configs/.
        options: `--cfg-options`, dotted keys and their values.
        work_dir: overrides the config's; the default is work_dirs/NAME_OF_THE_CONFIG.
        launcher: none, pytorch, slurm or mpi.
        verbose: begin the log of a run with environment, config and hooks.

    Raises:
        ConfigError: no such file, one that can't be read, or an option that doesn't fit it.
    """
    try:
        path = filename
        if filename.startswith(mim.PREFIX):
            path = mim.config_path(filename.removeprefix(mim.PREFIX))
        elif not Path(filename).is_file():
            raise FileNotFoundError(
                f"{filename}: there is no such config; ours lie in configs/ of a clone and are "
                f"named {mim.PREFIX}detection/... elsewhere"
            )
    except FileNotFoundError as error:
        raise ConfigError(str(error)) from error
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is a program and may fail in any way
        raise ConfigError(f"{filename} can't be read as a config: {first_line(error)}") from error
    options = options or {}
    for key, value in options.items():
        _check_option(key, value, cfg)
    try:
        cfg.merge_from_dict(options)
    except Exception as error:
        raise ConfigError(f"--cfg-options does not fit {filename}: {first_line(error)}") from error
    cfg.work_dir = work_dir or cfg.get("work_dir") or f"work_dirs/{Path(filename).stem}"
    cfg.launcher = launcher
    if verbose:
        cfg.verbose = True
    return cfg


def _check_option(key: str, value: Any, cfg: Config) -> None:
    """Refuse a key that nothing would read, and what could run code.

    Below the first level, what is built refuses a key.
    """
    _check_runs_nothing(key, value)
    first = key.split(".")[0]
    known = {*cfg, *inspect.signature(Runner).parameters, *OUR_KEYS}
    if first not in known:
        (nearest,) = get_close_matches(first, known, n=1, cutoff=0)
        raise ConfigError(
            f"--cfg-options: unknown key {key}, neither in {cfg.filename} nor of MMEngine; did you "
            f"mean {nearest}?"
        )


def _check_runs_nothing(key: str, value: Any) -> None:
    """Refuse an option by which OpenMMLab would import, evaluate or unpickle what it names."""
    path = key.split(".")
    if isinstance(value, list | tuple):
        for item in value:
            _check_runs_nothing(key, item)
    if "custom_imports" in path or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        why = "can't be set here"
    elif not isinstance(value, str):
        return
    elif path[-1] in NAMES_OF_CLASSES and not _is_registered(value):
        why = "names no registered class"
    elif path[-1] in NAMES_OF_SCOPES and value not in SCOPES:
        why = f"is not one of {', '.join(SCOPES)}"
    elif "(" in value:
        # a few places of OpenMMLab's evaluate texts
        why = "has a bracket"
    elif value.endswith((".pkl", ".pickle")) and path[-1] != "out_file_path":
        # the exception is written, not read
        why = "is a pickle, which can run code when it is read"
    else:
        return
    raise ConfigError(f"--cfg-options: {key}={value} {why}; a config file alone may say that")


def _is_registered(name: str) -> bool:
    """Return whether a registry finds a name itself; what it doesn't find it imports.

    NOTE: a name without a point may be unknown, too: it is then no module and can't be imported.
    """
    scope, _, short = name.rpartition(".")
    if not scope:
        return re.fullmatch(r"[\w/]+", name) is not None and find_spec(name) is None
    if scope not in SCOPES or find_spec(scope) is None:
        return False
    import_module(f"{scope}.registry")
    roots = [root for root in vars(registry).values() if isinstance(root, Registry)]
    nodes = [node for root in roots for node in (root, *root.children.values())]
    for node in (node for node in nodes if node.scope == scope):
        node.import_from_location()
        if short in node.module_dict:
            return True
    return False


def enable_amp(cfg: Config) -> None:
    """Train in mixed precision (`--amp`); refuse it where there is no GPU."""
    if not torch.cuda.is_available():
        raise ConfigError("--amp needs a GPU, and this machine has none; leave it out")
    cfg.optim_wrapper.type = "AmpOptimWrapper"
    cfg.optim_wrapper.setdefault("loss_scale", "dynamic")


def enable_auto_scale_lr(cfg: Config) -> None:
    """Scale the learning rate to the actual batch size (`--auto-scale-lr`)."""
    if "base_batch_size" not in cfg.get("auto_scale_lr", {}):
        raise ConfigError(
            f"--auto-scale-lr: {cfg.filename} has no auto_scale_lr.base_batch_size; add it"
        )
    cfg.auto_scale_lr.enable = True


def enable_tta(cfg: Config) -> None:
    """Test with test-time augmentation (`--tta`): wrap the model, and replace the pipeline."""
    if "tta_model" not in cfg or "tta_pipeline" not in cfg:
        raise ConfigError(f"--tta: {cfg.filename} has no tta_model and tta_pipeline; add both")
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def dump_predictions(cfg: Config, filename: Path) -> None:
    """Have a test write its predictions to a .pkl file as OpenMMLab does (`--out`)."""
    metric = "DumpDetResults" if cfg.get("default_scope") == "mmdet" else "DumpResults"
    given = cfg.test_evaluator
    evaluators = given if isinstance(given, list | tuple) else [given]
    cfg.test_evaluator = [*evaluators, dict(type=metric, out_file_path=str(filename))]


def draw_predictions(cfg: Config, directory: str) -> None:
    """Have a test draw every image's prediction into a directory (`--show-dir`)."""
    hook = cfg.default_hooks.get("visualization")
    if hook is None:
        raise ConfigError(f"--show-dir: {cfg.filename} has no default_hooks.visualization; add it")
    hook.interval = 1
    if (scope := cfg.get("default_scope")) == "mmpretrain":
        hook.enable, hook.out_dir = True, directory
    elif scope == "mmdet":
        hook.draw, hook.test_out_dir = True, str(Path(directory).absolute())
    else:
        hook.draw, cfg.visualizer.save_dir = True, directory


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
    optim_wrapper = cfg.get("optim_wrapper", {})
    if optim_wrapper.get("type") == "AmpOptimWrapper":
        optim_wrapper.type = "OptimWrapper"
        for key in ("loss_scale", "dtype", "use_fsdp"):
            optim_wrapper.pop(key, None)
        changes.append("optim_wrapper: float32 for mixed precision, which needs a GPU")
    if distributed:
        cfg.env_cfg.dist_cfg = dict(backend="gloo")
        cfg.model_wrapper_cfg = dict(type="MMDistributedDataParallel", device_ids=None)
        changes.append("env_cfg: gloo for nccl, which needs a GPU")
    return changes


def drop_pretrained(cfg: Config) -> None:
    """Load no pretrained weights, which a whole checkpoint overwrites and which may be absent."""
    for _, node in list(iter_config_dicts(cfg.model)):
        init_cfg = node.get("init_cfg")
        if isinstance(init_cfg, dict) and init_cfg.get("type") == "Pretrained":
            node["init_cfg"] = None
