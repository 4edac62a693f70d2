"""Check a config's heads and evaluators against its dataset."""

import os
from typing import Any

from ...utils.config import iter_config_dicts
from .report import Report

# Parts of a model whose num_classes is not the dataset's: proposals have one class, and stuff has
# its own.
OTHER_CLASSES = {"backbone", "rpn_head", "semantic_head"}
KEYS = ("num_classes", "num_things_classes", "num_stuff_classes")


def count_classes(node: dict, path: str) -> dict[str, int]:
    """Return the keys by which a part of a model has a number of the dataset's classes."""
    if OTHER_CLASSES.intersection(path.split(".")):
        return {}
    return {key: node[key] for key in KEYS if type(node.get(key)) is int}


def check_heads(model: dict, where: str, classes: int, report: Report) -> None:
    """Compare the number of classes of every head, whatever its name, with the dataset's."""
    for path, node in iter_config_dicts(model, "model"):
        counts = count_classes(node, path)
        if counts and sum(counts.values()) != classes:
            what = f"heads with another number of classes than the {classes} of {where}"
            held = ", ".join(f"{path}.{key} is {n}" for key, n in counts.items())
            report.error("model", what, f"set them to {classes}", held)
        loss = node.get("loss_decode") if node.get("out_channels") == 1 else None
        loss = loss if isinstance(loss, dict) else {}
        if "CrossEntropy" in str(loss.get("type")) and not loss.get("use_sigmoid"):
            what = "heads of one output with a softmax, which is 1 everywhere"
            remedy = "set loss_decode.use_sigmoid=True, or out_channels=2"
            report.error("model", what, remedy, path)
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
