"""Check a config's heads and evaluators against its dataset."""

import os
from typing import Any

from ...utils.config import iter_config_dicts
from .report import Report

# Parts of a model whose num_classes is not the dataset's: proposals have one class, and stuff has
# its own.
OTHER_CLASSES = {"backbone", "rpn_head", "semantic_head"}
KEYS = ("num_classes", "num_things_classes", "num_stuff_classes")


def check_heads(model: dict, where: str, classes: int, report: Report) -> None:
    """Compare the number of classes of every head, whatever its name, with the dataset's."""
    for path, node in iter_config_dicts(model, "model"):
        keys = [key for key in KEYS if type(node.get(key)) is int]
        is_other = OTHER_CLASSES.intersection(path.split("."))
        if keys and not is_other and sum(node[key] for key in keys) != classes:
            what = f"heads with another number of classes than the {classes} of {where}"
            held = ", ".join(f"{path}.{key} is {node[key]}" for key in keys)
            report.error("model", what, f"set them to {classes}", held)
        weights = node.get("class_weight")
        # some losses have a weight for the background, too
        if isinstance(weights, list | tuple) and len(weights) - classes not in (0, 1):
            what = f"weights of another number of classes than the {classes} of {where}"
            remedy = f"give {classes}, or {classes + 1} with one for the background"
            report.error("model", what, remedy, f"{path}.class_weight has {len(weights)}")


def check_evaluators(evaluators: dict[str, dict], dataset: Any, where: str, report: Report) -> None:
    """Refuse an evaluator of another file than the dataset's, which fails after an epoch."""
    for path, evaluator in evaluators.items():
        given = evaluator.get("ann_file")
        if isinstance(given, str) and os.path.realpath(given) != os.path.realpath(dataset.ann_file):
            what = f"is {given}, while {where} reads {dataset.ann_file}"
            report.error(f"{path}.ann_file", what, "set it to the same file")
