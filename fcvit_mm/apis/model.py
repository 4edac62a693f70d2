"""Build the model of a config, and load a trained one with its classes and colors."""

from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope

from ..checkpoint.mmengine_backends import load_from_file
from ..checkpoint.reader import are_class_names
from ..datasets.checks.heads import count_classes
from ..engine.preflight import check_neck
from ..models.weights import check_fit, model_weights
from ..utils.config import (
    adapt,
    drop_pretrained,
    iter_config_dicts,
    iter_leaf_datasets,
    task_of,
)
from ..utils.errors import CheckpointError, ConfigError, name_failure
from ..visualization.draw import distinct_colors


def find_device(name: str | None = None) -> torch.device:
    """Return a device by name, by default the GPU if any, else the CPU; a ConfigError if absent."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    remedy = "; leave it out for the GPU if there is one, else the CPU"
    with name_failure(f"--device {name} can't be used", remedy):
        device = torch.device(name)
        torch.empty(0, device=device)
    return device


def build_model(cfg: Config) -> Any:
    """Build the model of a config with random weights, adapted in place to this machine.

    Raises:
        ConfigError: the config has no model, or names something that can't be built.
    """
    if not isinstance(cfg.get("model"), dict):
        raise ConfigError(f"{cfg.filename} has no model; give the config of a whole model")
    adapt(cfg)
    drop_pretrained(cfg)
    task_of(cfg)
    init_default_scope(cfg.default_scope)
    with name_failure(f"{cfg.filename} can't be built"):
        model = MODELS.build(cfg.model)
    check_neck(model)
    return model


def load_model(cfg: Config, checkpoint: str, device: torch.device | None = None) -> Any:
    """Build the model of a config and fill it completely from a checkpoint, in evaluation mode.

    Its `dataset_meta`, where OpenMMLab's inferencers keep it, has the classes and the palette of
    the dataset that it was trained on.

    Args:
        cfg: changed in place as this machine needs it.
        checkpoint: path, URL or name, see `checkpoint.reader.fetch`.
        device: see `find_device`.

    Raises:
        ConfigError: the config can't be built.
        CheckpointError: the file can't be read, or does not fit the model.
    """
    content = load_from_file(checkpoint)
    model = build_model(cfg)
    weights = model_weights(content, model.state_dict())
    check_fit(checkpoint, weights, model.state_dict())
    model.load_state_dict(weights)
    model.dataset_meta = _dataset_meta(cfg, content)
    named = len(model.dataset_meta["classes"])
    for path, node in iter_config_dicts(cfg.model, "model"):
        if (known := sum(count_classes(node, path).values())) > named:
            raise CheckpointError(
                f"{path} of {cfg.filename} has {known} classes, of which {checkpoint} or the "
                f"config's dataset names {named}; take the config that it was trained with"
            )
    return model.to(device or find_device()).eval()


def _dataset_meta(cfg: Config, content: dict[str, Any]) -> dict[str, Any]:
    """Return classes and palette: the checkpoint's, or else those of the config's dataset."""
    meta = content.get("meta")
    named: list[Any] = [meta.get("dataset_meta"), meta] if isinstance(meta, dict) else []
    for _, node in iter_leaf_datasets((cfg.get("test_dataloader") or {}).get("dataset"), "dataset"):
        metainfo = getattr(DATASETS.get(node["type"]), "METAINFO", {})
        named.append({**metainfo, **(node.get("metainfo") or {})})
    found: dict[str, Any] = {}
    # OpenMMLab 1 writes the names in capitals; the reader leaves in a file what can be printed
    for key, value in (item for one in named if isinstance(one, dict) for item in one.items()):
        name, values = str(key).lower(), (value,) if isinstance(value, str) else value
        if (name == "classes" and are_class_names(values)) or name == "palette":
            found.setdefault(name, values)
    # which MMSegmentation draws for a dataset without a palette
    drawn = np.random.RandomState(42).randint(0, 255, (len(found.get("classes", ())), 3)).tolist()
    if np.array_equal(found.get("palette", []), drawn):
        del found["palette"]
    if "classes" not in found:
        raise CheckpointError(
            f"neither the checkpoint nor {cfg.filename} names the classes; add "
            "test_dataloader.dataset.metainfo=dict(classes=(...)) to the config"
        )
    return with_palette(tuple(found["classes"]), found.get("palette"))


def with_palette(classes: tuple[str, ...], palette: Any) -> dict[str, Any]:
    """Return classes and palette; distinct colors unless one RGB color is given per class.

    Datasets of one's own inherit the palette of the dataset class, which has colors for others.
    """
    try:
        colors = np.asarray(palette, np.float64)
    except (TypeError, ValueError, OverflowError):
        colors = np.zeros(0)
    fits = colors.ndim == 2 and colors.shape[1] == 3 and len(colors) == len(classes)
    if not fits or not ((colors >= 0) & (colors <= 255)).all():
        colors = distinct_colors(len(classes))
    return {"classes": classes, "palette": [tuple(map(int, color)) for color in colors]}
