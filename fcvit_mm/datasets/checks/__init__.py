"""Checks of the datasets that a config names: what would stop a training or spoil it unnoticed.

A training on damaged data fails late, or not at all: MMDetection leaves out objects whose category
is in no class, OpenCV fills the missing part of a truncated image with gray. Here every dataset
of a config is read once beforehand, and all that is wrong is collected in a `Report`, each problem
with its file and its remedy.

Three kinds of datasets are known: COCO's instances format (MMDetection's `CocoDataset`), label
maps (MMSegmentation's `BaseSegDataset` and the classes built on it), and any other that lists
images, such as MMPretrain's folders, of which the images alone are checked. Each dataset is
built by its own class, without its pipeline, so that it says itself where its files lie and which
classes it has.
"""

import textwrap
from collections.abc import Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...checkpoint.reader import is_url
from ...utils.config import iter_config_dicts, iter_leaf_datasets
from ...utils.errors import first_line
from .coco import check_coco
from .heads import check_evaluators, check_heads
from .images import File, Finding, Limits, check_file, image_size
from .label_maps import MapCounter, check_pairs
from .report import Report, summary

__all__ = ["Report", "check", "image_size", "summary"]


def check(
    cfg: Config, loaders: Sequence[str], decode: bool = False, console: Console | None = None
) -> list[Report]:
    """Check the datasets of a config, whose files and folders must exist.

    Args:
        cfg: a config.
        loaders: which of train_dataloader, val_dataloader and test_dataloader; a dataset that
            several of them use alike is checked once.
        decode: decode every image, see `image_size`; label maps always are.
        console: where to show the progress; nowhere if None.

    Returns:
        One report per dataset.
    """
    checks: list[_Check] = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    progress = Progress(*columns, TimeRemainingColumn(), console=console, disable=console is None)
    with progress, ThreadPool() as pool:
        for loader in loaders:
            key = loader.replace("_dataloader", "_evaluator")
            evaluators = dict(iter_config_dicts(cfg.get(key), key))
            dataset = (cfg.get(loader) or {}).get("dataset")
            for where, node in iter_leaf_datasets(dataset, f"{loader}.dataset"):
                for known in checks:
                    if known.is_of(node, evaluators):
                        known.report.name += f", {_name(where)}"
                        break
                else:
                    checks.append(_Check(cfg, where, node, evaluators))
        for one in checks:
            task = progress.add_task(one.report.name, total=len(one.files))
            read = partial(check_file, decode=decode, limits=one.limits)
            found = pool.imap(read, one.files, chunksize=32)
            for file, (findings, counts) in zip(one.files, found, strict=True):
                one.add(file, findings, counts)
                progress.advance(task)
    return [one.finish() for one in checks]


def _name(where: str) -> str:
    """Shorten a place for the table: train, or train.datasets.1 of several."""
    return where.replace("_dataloader.dataset", "")


class _Check:
    """Check one dataset: its lists when it is made, then its files one by one."""

    def __init__(self, cfg: Config, where: str, node: dict, evaluators: dict[str, dict]) -> None:
        self.node, self.evaluators = node, evaluators
        self.report = report = Report(_name(where))
        self.files: list[File] = []
        self.maps: MapCounter | None = None
        steps = [step for _, step in iter_config_dicts(node.get("pipeline"))]
        self.limits = Limits.of(steps)
        backend = (node.get("backend_args") or {}).get("backend", "local")
        places = node.get("data_root"), node.get("ann_file")
        if backend != "local" or any(is_url(str(place)) for place in places):
            report.warn(where, "not on this machine", "it is not checked")
            return
        dataset = build(node, where, cfg.get("default_scope"), report)
        if dataset is None:
            return
        if _reads_coco(dataset):
            check_evaluators(evaluators, dataset, where, report)
            masks = any(step.get("with_mask") for step in steps)
            self.files = check_coco(dataset, where, report, masks, evaluators)
        else:
            self.files = _list_files(dataset, where, report)
        report.images = len(self.files)
        # after the files: those of a folder per class name their classes themselves
        classes = dataset.metainfo.get("classes")
        is_semantic = hasattr(dataset, "reduce_zero_label")
        if classes:
            report.classes = len(classes)
            check_heads(cfg.get("model") or {}, where, len(classes), report)
            if is_semantic:
                self.maps = MapCounter(dataset, where, steps, report)
        elif is_semantic:
            report.error(where, "no classes", f"set {where}.metainfo=dict(classes=(...))")

    def is_of(self, node: dict, evaluators: dict[str, dict]) -> bool:
        """Tell whether a loader has the same dataset and evaluators."""
        return self.node == node and [*self.evaluators.values()] == [*evaluators.values()]

    def add(self, file: File, findings: list[Finding], counts: np.ndarray | None) -> None:
        """Take in what was found in a file."""
        for finding in findings:
            self.report.add(*finding)
        if self.maps and counts is not None and file.label_map:
            self.maps.add(file.label_map, counts)

    def finish(self) -> Report:
        """Return the report, after all files."""
        if self.maps and self.files:
            self.maps.finish()
        return self.report


def build(node: dict, where: str, scope: str | None, report: Report) -> Any:
    """Build a dataset of a config without its pipeline and content; None where that fails."""
    metainfo = node.get("metainfo")
    classes = metainfo.get("classes") if isinstance(metainfo, dict) else None
    if isinstance(classes, str) and not Path(classes).is_file():
        remedy = f"set {where}.metainfo=dict(classes=({classes!r},)), with the comma"
        report.error(where, f"the classes are one text, {classes!r}, and not several", remedy)
        return None
    try:
        dataset = DATASETS.build(dict(_scope_=scope) | node | dict(lazy_init=True, pipeline=[]))
    except Exception as error:  # a config names arbitrary classes, which fail in their own ways
        # MMSegmentation's error lists all classes of both
        reason = textwrap.shorten(first_line(error), 200, placeholder=" ...")
        has_own = "METAINFO" in str(error)
        remedy = f"set {where}.type='BaseSegDataset' for classes of your own"
        report.error(where, f"can't be built ({reason})", remedy if has_own else "correct it")
        return None
    if not all(isinstance(name, str) for name in dataset.metainfo.get("classes") or ()):
        report.error(where, "classes that are no text", "write their names")
        return None
    return dataset


def _reads_coco(dataset: Any) -> bool:
    # by name, since mmdet need not be installed; a class for another format overrides one
    return all(
        getattr(getattr(dataset, method, None), "__qualname__", "") == f"CocoDataset.{method}"
        for method in ("load_data_list", "parse_data_info")
    )


def _list_files(dataset: Any, where: str, report: Report) -> list[File]:
    """Return the images of a dataset of any class, with their label maps."""
    try:
        entries = dataset.load_data_list()
    except Exception as error:  # each class reads files of its own kinds
        report.error(where, f"can't be read ({first_line(error)})", "correct its files")
        return []
    if not entries:
        folder = dataset.data_prefix.get("img_path") or dataset.data_root or where
        suffix = getattr(dataset, "img_suffix", "")
        held = sorted({path.suffix for path in Path(folder).rglob("*") if path.is_file()})
        what = f"no images that end in {suffix!r} (there are: {', '.join(held) or 'no files'})"
        report.error(folder, what, f"set {where}.img_suffix or data_prefix")
    is_semantic = hasattr(dataset, "reduce_zero_label")
    if is_semantic:
        check_pairs(dataset, entries, report)
    return [
        File(entry["img_path"], label_map=entry.get("seg_map_path") if is_semantic else None)
        for entry in entries
        if isinstance(entry.get("img_path"), str)
    ]
