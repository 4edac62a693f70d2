"""Build the model of a config for prediction."""

from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from ..utils.config import adapt, drop_pretrained
from ..utils.errors import ConfigError, first_line
from .preflight import check_neck

# In a label map: no class, as OpenMMLab's datasets mark what is ignored.
IGNORED = 255


TASKS = {"mmdet": "detection", "mmseg": "segmentation", "mmpretrain": "classification"}


def task_of(cfg: Config) -> str:
    """What a config is for: detection, segmentation or classification.

    Raises:
        ConfigError: its default_scope says nothing of the kind.
    """
    scope = cfg.get("default_scope")
    if scope not in TASKS:
        raise ConfigError(
            f"{cfg.filename}: default_scope is {scope!r}; set it to one of {', '.join(TASKS)}"
        )
    return TASKS[scope]


def check_model(cfg: Config) -> None:
    """Make sure that a config has a model; one of a dataset or a schedule alone has none.

    Raises:
        ConfigError: it has none.
    """
    if not isinstance(cfg.get("model"), dict):
        raise ConfigError(f"{cfg.filename} has no model; give the config of a whole model")


def find_device(name: str | None = None) -> torch.device:
    """The device of a name such as cuda:1; without one the GPU if there is any, else the CPU.

    Raises:
        ConfigError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except Exception as error:  # torch has many kinds of devices, each with errors of its own
        raise ConfigError(
            f"--device {name} can't be used: {first_line(error)}; leave it out for the "
            "GPU if there is one, else the CPU"
        ) from error
    return device


def build_model(cfg: Config) -> Any:
    """Build the model of a config with random weights, adapted to this machine.

    Raises:
        ConfigError: the config names something that can't be built.
    """
    check_model(cfg)
    adapt(cfg)
    drop_pretrained(cfg)
    task_of(cfg)
    init_default_scope(cfg.default_scope)
    try:
        model = MODELS.build(cfg.model)
    except Exception as error:  # a config names arbitrary classes, which fail in their own ways
        raise ConfigError(f"{cfg.filename} can't be built: {first_line(error)}") from error
    check_neck(model)
    return model
