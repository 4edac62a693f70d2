"""What every tool needs between a config file and a Runner: checks first, then the machine.

A config is written for GPUs, with mixed precision and SyncBN; `adapt` changes what this machine
can't do. `check_files` names missing weights and data before anything is built. `run_tool` turns
what a user can mend into one sentence and exit status 2.
"""

import argparse
import errno
import inspect
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from mmengine import registry
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.dist import get_rank, init_dist, is_distributed, is_main_process
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import Registry
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing
from rich.console import Console
from torch.distributed import (
    broadcast_object_list,
    destroy_process_group,
    init_process_group,
    new_group,
)

from ..checkpoint.reader import (
    OUTPUT_NORM,
    CheckpointError,
    check_fit,
    fetch,
    is_url,
    model_weights,
    read_checkpoint,
    sha256,
)
from ..datasets import checks
from ..datasets.checks import dicts, innermost
from ..models.arch import ALIASES, get_arch
from ..models.fcvit import FCViT
from ..utils import mim
from . import resume
from .hooks.non_finite_loss_hook import NonFiniteError
from .seeding import RepeatableRunner, SeedHook

# The authors' shared drive, a folder a model; there is no direct link to the files.
DRIVE = "https://drive.google.com/drive/folders/"
RELEASED_WEIGHTS = {
    "tiny": DRIVE + "1YSa8tkXkUQT94mgo-L7q4pv5KiHRTAaR",
    "s12": DRIVE + "1QuyalIGhJeD2pxcVxR0_gJNrk2mZ8WEb",
    "s24": DRIVE + "1II2v1rhNe9sgLJtoSR-cgSh2mpPQMt4t",
    "s48": DRIVE + "16joP1cQwbx4oICL-WbPC1SqGNoc4-NZm",
}

# Where each data set of our configs comes from, by its data_root.
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
    "and val/ with a folder a class",
    "data/shapes": "Generate it: python -m fcvit_mm.datasets.shapes data/shapes",
    "data/shapes_classification": "Generate it: python -m fcvit_mm.datasets.shapes "
    "data/shapes_classification --task classification",
    "data/coins": "Generate it: python -m fcvit_mm.datasets.coins data/coins",
}


# An optional metric of MMDetection that says at import that "metrics will not be computed".
warnings.filterwarnings("ignore", message="faster_coco_eval is not installed")


# What a config may have beside what MMEngine's Runner takes and what it sets itself.
OUR_KEYS = ("check_data", "auto_scale_lr", "tta_model", "tta_pipeline")


# By which keys OpenMMLab looks a class up, in its registries and then among all modules there are,
# and a scope, whose registry it imports.
NAMES_OF_CLASSES = ("type", "constructor", "norm_layer", "check_fn")
NAMES_OF_SCOPES = ("default_scope", "_scope_")
SCOPES = ("mmengine", "mmcv", "mmdet", "mmseg", "mmpretrain")
# Keys of files that are written, not read.
WRITTEN = ("out_file_path",)

# What the system says when nothing more can be written: no space, quota, largest file.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

T = TypeVar("T")


class ConfigError(ValueError):
    """A config, or what it names, can't be used; the message says what, where and the way out."""


class DeadWorkerError(RuntimeError):
    """A process that loads pictures has died; the message says which, how, and the way out."""


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool's main function; end with one sentence and status 2 where a user can mend it."""
    try:
        main()
    except (CheckpointError, ConfigError, NonFiniteError) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        else:
            # torchrun ends all processes of a machine with the first: let that be the one that
            # speaks.
            time.sleep(10)
        sys.exit(2)
    except DeadWorkerError as error:
        # which the others know nothing of; a dying process leaves an unfinished line
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(2)
    # Left to the end of the interpreter, the threads of a group may abort the process.
    if is_distributed():
        destroy_process_group()


def require(module: str, extra: str) -> None:
    """Make sure that a package is there which one tool alone needs.

    Raises:
        ConfigError: it is not; the message names the extra that brings it.
    """
    if find_spec(module) is None:
        raise ConfigError(f"this needs {module}, which is not installed: pip install "
                          f"'fcvit-mm[{extra}]'")  # fmt: skip


# ------------------------------------------------------------------------------- configs


def load_config(
    filename: str, options: dict | None = None, work_dir: str | None = None, launcher: str = "none"
) -> Config:
    """Read a config file as MMEngine does, with a user's changes.

    Args:
        filename: path of a config, or `fcvit_mm::` and one of the package below its configs/.
        options: `--cfg-options`, dotted keys and their values.
        work_dir: overrides the config's; the default is work_dirs/NAME_OF_THE_CONFIG.
        launcher: none, pytorch, slurm or mpi.

    Raises:
        ConfigError: no such file, one that can't be read, or an option that doesn't fit it.
    """
    path = filename
    if filename.startswith(mim.PREFIX):
        try:
            path = mim.config_path(filename.removeprefix(mim.PREFIX))
        except FileNotFoundError as error:
            raise ConfigError(str(error)) from error
    if not Path(path).is_file():
        raise ConfigError(
            f"{filename}: there is no such config; ours lie in configs/ of a clone and are named "
            f"{mim.PREFIX}detection/... elsewhere"
        )
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
    return cfg


def _check_option(key: str, value: Any, cfg: Config) -> None:
    """Refuse a key that nothing would read, and what could run code, which a config file alone may.

    Below the first level, what is built refuses a key.
    """
    _check_runs_nothing(key, value)
    first = key.split(".")[0]
    known = {*cfg, *inspect.signature(Runner).parameters, *OUR_KEYS}
    if first not in known:
        (nearest,) = get_close_matches(first, known, n=1, cutoff=0)
        raise ConfigError(
            f"--cfg-options: {key} is nothing that {cfg.filename} or MMEngine knows; the nearest "
            f"name is {nearest}"
        )


def _check_runs_nothing(key: str, value: Any) -> None:
    """Refuse an option by which OpenMMLab would import, evaluate or unpickle what it names."""
    path = key.split(".")
    texts = [value] if isinstance(value, str) else []
    if isinstance(value, list | tuple):
        for item in value:
            _check_runs_nothing(key, item)
    for text in texts:
        if path[-1] in NAMES_OF_CLASSES and not _is_registered(text):
            why = "names no registered class"
        elif path[-1] in NAMES_OF_SCOPES and text not in SCOPES:
            why = f"is none of {', '.join(SCOPES)}"
        elif "(" in text:
            # a few places of OpenMMLab's evaluate texts
            why = "has a bracket"
        elif text.endswith((".pkl", ".pickle")) and path[-1] not in WRITTEN:
            why = "is a pickle, which can run code when it is read"
        else:
            continue
        raise ConfigError(f"--cfg-options: {key}={text} {why}; a config file alone may say that")
    if "custom_imports" in path or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        raise ConfigError(f"--cfg-options: {key} can't be set here, but in a config file alone")


def _is_registered(name: str) -> bool:
    """Whether a registry finds a name itself; what it doesn't find it imports.

    NOTE: a name without a point may be unknown, too: it is then no module and can't be imported.
    """
    scope, _, short = name.rpartition(".")
    if not scope:
        return re.fullmatch(r"[\w/]+", name) is not None and find_spec(name) is None
    if scope not in SCOPES or find_spec(scope) is None:
        return False
    import_module(f"{scope}.registry")
    roots = [root for root in vars(registry).values() if isinstance(root, Registry)]
    for node in (node for root in roots for node in (root, *root.children.values())):
        if node.scope == scope:
            node.import_from_location()
            if short in node.module_dict:
                return True
    return False


class _Options(DictAction):
    """`KEY=VALUE ...`, where MMEngine's own ends in a traceback for what it can't read."""

    def __call__(self, parser: Any, namespace: Any, values: Any, *rest: Any) -> None:
        for word in values:
            if "=" not in word:
                parser.error(f"{word!r} is not KEY=VALUE, such as model.backbone.arch=s24")
            try:
                super().__call__(parser, namespace, [word], *rest)
            except (AssertionError, RecursionError):
                parser.error(f"{word!r}: its brackets are no list [a,b] and no tuple (a,b)")


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add `--cfg-options`, which every tool that reads a config has."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=_Options,
        metavar="KEY=VALUE",
        help="changes to the config, such as model.backbone.arch=s24 or key='[a,b]'",
    )


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that train.py and test.py share."""
    add_cfg_options(parser)
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    # torch.distributed.launch passes it; torchrun sets the variable instead.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def whole_number(least: int) -> Callable[[str], int]:
    """A type for argparse: integers from `least` on."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least {least}")
        return number

    return parse


def fraction(text: str) -> float:
    """A type for argparse: numbers from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be a number from 0 to 1")
    return number


def ending(*allowed: str) -> Callable[[str], Path]:
    """A type for argparse: files to write that end in one of `allowed`."""

    def parse(text: str) -> Path:
        if Path(text).suffix not in allowed:
            raise argparse.ArgumentTypeError(f"{text} must end in {' or '.join(allowed)}")
        return Path(text)

    return parse


# what matplotlib writes
PLOTS = (".png", ".pdf", ".svg")


@contextmanager
def writing(what: str | Path) -> Iterator[None]:
    """Say which result could not be written.

    Raises:
        ConfigError: for an OSError inside.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{what} can't be written: {error.strerror or error}") from error


def enable_amp(cfg: Config) -> None:
    """Train in mixed precision (`--amp`); an error where there is no GPU."""
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
    """Test with test-time augmentation (`--tta`): wrap the model, exchange the pipeline."""
    if "tta_model" not in cfg or "tta_pipeline" not in cfg:
        raise ConfigError(f"--tta: {cfg.filename} has no tta_model and tta_pipeline; add both")
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def dump_predictions(cfg: Config, filename: str) -> None:
    """Have a test write its predictions to a file as OpenMMLab does (`--out`)."""
    if Path(filename).suffix not in (".pkl", ".pickle"):
        raise ConfigError(f"--out {filename} must end in .pkl or .pickle")
    if not Path(filename).absolute().parent.is_dir():
        raise ConfigError(f"--out {filename}: its directory does not exist; make it first")
    metric = "DumpDetResults" if cfg.get("default_scope") == "mmdet" else "DumpResults"
    evaluators = cfg.test_evaluator
    cfg.test_evaluator = [
        *(evaluators if isinstance(evaluators, list | tuple) else [evaluators]),
        dict(type=metric, out_file_path=filename),
    ]


def draw_predictions(cfg: Config, directory: str) -> None:
    """Have a test draw every picture's prediction into a directory (`--show-dir`)."""
    hook = cfg.default_hooks.get("visualization")
    if hook is None:
        raise ConfigError(f"--show-dir: {cfg.filename} has no default_hooks.visualization; add it")
    hook.interval = 1
    scope = cfg.get("default_scope")
    if scope == "mmpretrain":
        hook.enable, hook.out_dir = True, directory
        return
    hook.draw = True
    if scope == "mmdet":
        hook.test_out_dir = str(Path(directory).absolute())
    else:
        cfg.visualizer.save_dir = directory


def first_line(error: Exception) -> str:
    """The first line of what an error says, without the quotes of a KeyError."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0]


def adapt(cfg: Config) -> list[str]:
    """Change in a config, in place, what this machine or launcher can't run.

    Without a GPU: float32 for mixed precision, gloo for nccl. Without a GPU, or in one process:
    BN for SyncBN. Elsewhere nothing.

    Returns:
        A line for each change.
    """
    cuda, distributed = torch.cuda.is_available(), cfg.get("launcher", "none") != "none"
    changes = []
    if not (cuda and distributed):
        for path, node in dicts(cfg._cfg_dict):
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


# ----------------------------------------------------------------- what must be there first


def check_checkpoint(filename: str) -> None:
    """Make sure that a checkpoint to load, resume or test can be read; a URL is tried later.

    Raises:
        CheckpointError: no such file, or a damaged or hostile one.
    """
    if not is_url(filename):
        read_checkpoint(filename)


def check_files(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Make sure that weights and data are there before anything is built.

    Args:
        cfg: a config.
        loaders: which of train_dataloader, val_dataloader and test_dataloader will be used.

    Raises:
        ConfigError: something is missing; the message says where to get it and to put it.
    """
    for path, node in dicts(cfg.get("model", {}), "model"):
        if node.get("type") == "Pretrained":
            _check_weights(str(node.get("checkpoint")), path, cfg)
    check_data_exist(cfg, loaders)
    if cfg.get("check_data", True):
        _once(cfg, lambda: _check_data(cfg, loaders))


def check_data_exist(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Make sure that the files and folders of data sets are there.

    Raises:
        ConfigError: one is missing.
    """
    for loader in loaders:
        dataset = (cfg.get(loader) or {}).get("dataset")
        for path, node in innermost(dataset, f"{loader}.dataset"):
            _check_dataset(node, path)


def _check_weights(checkpoint: str, path: str, cfg: Config) -> None:
    owner: Any = cfg
    for key in path.split(".")[:-1]:
        owner = owner[int(key)] if key.isdigit() else owner[key]
    arch = owner.get("arch", "s12")
    try:
        get_arch(arch)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path.removesuffix('.init_cfg')}: {error}") from error
    if is_url(checkpoint) or Path(checkpoint).expanduser().is_file():
        return
    source = RELEASED_WEIGHTS.get(ALIASES.get(arch, arch)) if isinstance(arch, str) else None
    where = f" Download FCViT-{arch} from {source} and save the file there." if source else ""
    raise ConfigError(
        f"{path}: the pretrained weights {checkpoint} do not exist.{where} To start from random "
        f"weights instead, add --cfg-options {path}=None."
    )


def _check_dataset(dataset: dict, path: str) -> None:
    root = dataset.get("data_root") or ""
    prefix = dataset.get("data_prefix") or {}
    # MMPretrain's is a string
    prefixes = [prefix] if isinstance(prefix, str) else prefix.values()
    for name in (dataset.get("ann_file"), dataset.get("proposal_file"), *prefixes):
        # Not all data sets have each; a prefix may be a part of file names, and a URL no file.
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


def check_data(cfg: Config, decode: bool = False) -> None:
    """Check all data sets of a config and print what was found.

    Args:
        cfg: a config.
        decode: decode every picture, see `data_checks.picture_size`.

    Raises:
        ConfigError: there are errors, or files are missing.
    """
    loaders = tuple(f"{split}_dataloader" for split in ("train", "val", "test"))
    check_data_exist(cfg, loaders)
    console = Console()
    reports = checks.check(cfg, loaders, decode, console)
    for report in reports:
        for kind, sentences in (("error", report.errors), ("warning", report.warnings)):
            for sentence in sentences:
                print(f"{report.name}: {kind}: {sentence}")
    console.print(checks.summary(reports))
    n = sum(len(report.errors) for report in reports)
    if n:
        kinds = "kind of error" if n == 1 else "kinds of errors"
        raise ConfigError(f"{cfg.filename}: {n} {kinds} in its data, listed above")


def _once(cfg: Config, function: Callable[[], T]) -> T:
    """What a function returns, or raises for the user, in one process for all."""
    distributed = cfg.get("launcher", "none") != "none"
    if distributed:
        _start_distributed(cfg)
    outcome: list = [None, None]
    if is_main_process():
        try:
            outcome[0] = function()
        except (CheckpointError, ConfigError) as error:
            outcome[1] = error
    if distributed:
        # NCCL, which pictures would be trained with, gives up waiting after ten minutes.
        group: Any = new_group(backend="gloo", timeout=timedelta(days=1))
        broadcast_object_list(outcome, src=0, group=group)
    result, problem = outcome
    if problem:
        raise problem
    return result


def _check_data(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Check the content of data sets."""
    errors: list[str] = []
    console = Console(stderr=True)
    reports = checks.check(cfg, loaders, console=console if console.is_terminal else None)
    for report in reports:
        errors += report.errors
        for warning in report.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    if errors:
        more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
        raise ConfigError(
            f"{errors[0]}{more}. All is listed by python -m fcvit_mm check_data "
            f"{cfg.filename}; "
            "--cfg-options check_data=False leaves this check out."
        )


def _start_distributed(cfg: Config) -> None:
    """Let the processes of a launcher find each other, as a Runner does where it is the first."""
    if is_distributed():
        return
    if torch.cuda.is_available():
        env_cfg = cfg.get("env_cfg", {})
        set_multi_processing(**env_cfg.get("mp_cfg", {}), distributed=True)
        init_dist(cfg.launcher, **env_cfg.get("dist_cfg", {}))
    elif cfg.launcher == "pytorch":
        # MMEngine's own initialisation selects a CUDA device first.
        init_process_group("gloo")
    else:
        raise ConfigError(f"--launcher {cfg.launcher} needs GPUs; on CPUs use --launcher pytorch")


# -------------------------------------------------------------------------------- a Runner


class CompleteCheckpointHook(Hook):
    """Refuse a checkpoint that does not fit, where MMEngine would only warn in its log.

    In test and on resume every tensor must fit; in training with `load_from` the backbone must,
    but for the output norms of stages that only one of both has, while heads of other classes may
    differ.
    """

    def __init__(self, filename: str, whole: bool) -> None:
        self.filename = filename
        self.whole = whole

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the keys and shapes of the file with the model's, before they are loaded."""
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        wanted = model.state_dict()
        given = model_weights(checkpoint, wanted)
        if not self.whole:
            given, wanted = (
                {
                    key: value
                    for key, value in state.items()
                    if key.startswith("backbone.")
                    and (key in other or not OUTPUT_NORM.match(key.removeprefix("backbone.")))
                }
                for state, other in ((given, wanted), (wanted, given))
            )
        check_fit(self.filename, given, wanted)
        part = "the whole model" if self.whole else "the backbone, and of other parts what fits,"
        runner.logger.info(
            f"FCViT: {part} comes from {self.filename}, SHA-256 {sha256(fetch(self.filename))}"
        )


class _Runner(RepeatableRunner):
    """A Runner that says in a sentence what a checkpoint lacks to be loaded or resumed."""

    def load_or_resume(self) -> None:
        try:
            super().load_or_resume()
        except CheckpointError:
            raise
        except Exception as error:  # what a file holds beside weights may be anything
            raise CheckpointError(
                f"{self._load_from or self.work_dir}: its checkpoint can't be loaded or resumed: "
                f"{type(error).__name__} {first_line(error)}"
            ) from error


def build_runner(cfg: Config) -> Runner:
    """Adapt a config to this machine and build its Runner, a repeatable one (see `repeat`).

    Raises:
        ConfigError: something that the config names can't be built.
    """
    changes = adapt(cfg) + resume.keep_enough(cfg)
    if cfg.launcher != "none":
        _start_distributed(cfg)
    try:
        # MMEngine 0.10.7 starts loading with its loop
        with naming_dead_workers():
            runner = _Runner.from_cfg(cfg)
            # MMEngine builds these later, amid the run; each is kept and used as it is built here.
            if cfg.get("train_cfg"):
                _ = runner.train_loop
                runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
            for loop in ("val_loop", "test_loop"):
                if getattr(runner, f"_{loop}") is not None:
                    getattr(runner, loop)
    except DeadWorkerError:
        raise
    except Exception as error:  # a config names arbitrary classes, which fail in their own ways
        raise ConfigError(f"{cfg.filename} can't be built: {first_line(error)}") from error
    check_neck(runner.model)
    for change in changes:
        runner.logger.info(f"adapted to this machine: {change}")
    if cfg.get("load_from"):
        hook = CompleteCheckpointHook(cfg.load_from, whole=cfg.resume or not cfg.get("train_cfg"))
        runner.register_hook(hook)
    if cfg.get("train_cfg"):
        runner.register_hook(SeedHook())
        if cfg.get("resume"):
            runner.register_hook(resume.DueEvaluationHook())
    return runner


def check_neck(model: Any) -> None:
    """Refuse a neck for other channels than the backbone has, which would fail when it is used."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    backbone, neck = getattr(model, "backbone", None), getattr(model, "neck", None)
    wanted = getattr(neck, "in_channels", None)
    if isinstance(backbone, FCViT) and isinstance(wanted, list | tuple):
        channels = list(backbone.out_channels)
        if list(wanted) != channels:
            raise ConfigError(
                f"model.neck.in_channels is {list(wanted)}, while the backbone's outputs have "
                f"{channels} channels; set model.neck.in_channels={channels}, or the backbone's "
                "arch and out_indices"
            )


@contextmanager
def naming_dead_workers() -> Iterator[None]:
    """Say which process that loads pictures has died, and of what.

    Raises:
        DeadWorkerError: for PyTorch's RuntimeError inside.
    """
    try:
        yield
    except RuntimeError as error:
        # the signal is in the error before the last
        said = [
            str(one) for one in (error.__cause__, error) if "DataLoader worker (pid" in str(one)
        ]
        if not said:
            raise
        which, _, how = said[0].partition("is killed by signal: ")
        (pid,) = re.findall(r"\(pid\S* ([\d, ]+)\)", which)
        how = f"was killed by the signal '{how.split('.')[0]}'" if how else "ended by itself"
        raise DeadWorkerError(
            f"the process {pid}, a DataLoader worker of rank {get_rank()}, {how}. 'Killed' mostly "
            "means that memory ran out (see dmesg): set fewer workers, such as --cfg-options "
            "train_dataloader.num_workers=1, or smaller "
            "batches; 'Bus error' that /dev/shm is full: enlarge it, with Docker by --shm-size; "
            "'Segmentation fault' mostly a damaged picture or annotation: num_workers=0 and "
            "persistent_workers=False show where. Then --resume from the last checkpoint"
        ) from error


def drop_pretrained(cfg: Config) -> None:
    """Load no pretrained weights, which a whole checkpoint overwrites and which may be absent."""
    for _, node in list(dicts(cfg.model)):
        init_cfg = node.get("init_cfg")
        if isinstance(init_cfg, dict) and init_cfg.get("type") == "Pretrained":
            node["init_cfg"] = None


def _prepare_resume(cfg: Config) -> None:
    """Set in a config the checkpoint to go on from, if it names none, and the training's seed."""

    def find() -> tuple[str, int | None] | None:
        if cfg.get("load_from"):
            path, content = cfg.load_from, read_checkpoint(cfg.load_from)
        elif (found := resume.newest(cfg)) is None:
            print(f"there is no checkpoint in {resume.folder(cfg)}: the training begins anew")
            return None
        else:
            path, content = found
        meta = content.get("meta")
        if not isinstance(meta, dict) or "iter" not in meta or "optimizer" not in content:
            raise CheckpointError(
                f"{path} holds no training to go on from, such as the optimizer's state; to start "
                f"a new one from its weights, replace --resume by --cfg-options load_from={path}"
            )
        return str(path), meta.get("seed")

    if (found := _once(cfg, find)) is None:
        cfg.resume = False
        return
    cfg.load_from, seed = found
    if not is_url(cfg.load_from) and not Path(cfg.load_from).expanduser().is_file():
        raise CheckpointError(
            f"{cfg.load_from} lies on the first machine, and not on this one; have all machines "
            "share the work directory"
        )
    # MMEngine takes it over too late for the order of the data
    cfg.randomness = dict(cfg.get("randomness") or {}, seed=seed)


def train(cfg: Config) -> Runner:
    """Train by a config, validation included.

    Raises:
        ConfigError, CheckpointError: before the first iteration, see `check_files` and
            `build_runner`, and when a disk is full.
        NonFiniteError: see `NonFiniteLossHook`.
        DeadWorkerError: a process that loads pictures has died.
    """
    if cfg.get("resume"):
        _prepare_resume(cfg)
    elif cfg.get("load_from"):
        check_checkpoint(cfg.load_from)
    if cfg.get("load_from"):
        drop_pretrained(cfg)
    loaders = (
        ("train_dataloader", "val_dataloader") if cfg.get("val_cfg") else ("train_dataloader",)
    )
    check_files(cfg, loaders)
    runner = build_runner(cfg)
    try:
        with naming_dead_workers():
            runner.train()
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        whole = resume.checkpoints(cfg)
        kept = f"{whole[0]} is whole" if whole else "there is no earlier checkpoint"
        raise ConfigError(
            f"{error.filename or f'the log in {cfg.work_dir}'} can't be written: {error.strerror}; "
            f"{kept}. Make room, then go on with --resume"
        ) from error
    return runner


def test(cfg: Config) -> dict[str, float]:
    """Test the checkpoint `cfg.load_from` by a config; returns the metrics.

    Raises:
        ConfigError, CheckpointError: as `train`, or a checkpoint that doesn't fill the model.
        DeadWorkerError: as `train`.
    """
    check_checkpoint(cfg.load_from)
    drop_pretrained(cfg)
    check_files(cfg, ("test_dataloader",))
    # What belongs to training must not be needed, nor built.
    for key in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler",
                "val_dataloader", "val_cfg", "val_evaluator"):  # fmt: skip
        cfg.pop(key, None)
    runner = build_runner(cfg)
    with naming_dead_workers():
        return runner.test()
