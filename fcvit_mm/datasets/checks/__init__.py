"""Check the datasets of a config: find what would stop a training or spoil it unnoticed.

Each dataset is built by its own class, without its pipeline, so that it says itself where its files
lie and which classes it has. Of datasets that are neither COCO's instances format nor label maps,
such as MMPretrain's folders, the images alone are checked.
"""

import math
import os
import textwrap
from collections.abc import Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from time import perf_counter
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...checkpoint.reader import is_url
from ...utils.config import iter_config_dicts, iter_leaf_datasets
from ...utils.errors import first_line
from .coco import check_coco
from .heads import check_evaluators, check_heads
from .images import File, check_file
from .label_maps import MapCounter, check_pairs
from .report import Report

__all__ = ["Report", "check"]
DECODING = 60  # seconds that decoding may take in all, where it is not asked for


def check(
    cfg: Config, loaders: Sequence[str], decode: bool = False, console: Console | None = None
) -> list[Report]:
    """Check the datasets of a config, whose files and folders must exist.

    Args:
        cfg: a config.
        loaders: which of train_dataloader, val_dataloader and test_dataloader; a dataset that
            several of them use alike is checked once.
        decode: decode every image, where otherwise as many are decoded, evenly spread, as take a
            minute; of the others beginning and end are read. Label maps always are decoded.
        console: where to show the progress; nowhere if None.

    Returns:
        One report per dataset.
    """
    seen: list[tuple[dict, list]] = []
    found: list[tuple[Report, list[dict], list[File], MapCounter | None]] = []
    for loader in loaders:
        key = loader.replace("_dataloader", "_evaluator")
        evaluators = dict(iter_config_dicts(cfg.get(key), key))
        dataset = (cfg.get(loader) or {}).get("dataset")
        for where, node in iter_leaf_datasets(dataset, f"{loader}.dataset"):
            # train, or train.datasets.1 of several
            name = where.replace("_dataloader.dataset", "")
            content = node, [*evaluators.values()]
            if content in seen:
                found[seen.index(content)][0].name += f", {name}"
            else:
                seen.append(content)
                report = Report(name)
                steps = [step for _, step in iter_config_dicts(node.get("pipeline"))]
                lists = _check_lists(cfg, where, node, evaluators, steps, report)
                found.append((report, steps, *lists))
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    progress = Progress(*columns, TimeRemainingColumn(), console=console, disable=console is None)
    with progress, ThreadPool() as pool:
        every = 1 if decode else _affordable(pool, [one for *_, files, _ in found for one in files])
        for report, steps, files, maps in found:
            report.decoded = math.ceil(len(files) / every)
            jobs = [file._replace(decode=i % every == 0) for i, file in enumerate(files)]
            read = pool.imap(partial(check_file, steps=steps), jobs, chunksize=32)
            results = progress.track(read, len(files), description=report.name)
            for file, (problems, counts) in zip(files, results, strict=True):
                for problem in problems:
                    report.add(problem)
                if maps and file.label_map and counts is not None:
                    maps.add(file.label_map, counts)
            if maps and files:
                maps.finish()
    return [report for report, *_ in found]


def _affordable(pool: ThreadPool, files: list[File]) -> int:
    """Return the least n such that decoding every n-th image takes no longer than `DECODING`."""
    sample = [File(file.path, decode=True) for file in files[:: len(files) // 64 + 1]]
    begin = perf_counter()
    pool.map(partial(check_file, steps=[]), sample, chunksize=1)
    seconds = (perf_counter() - begin) * len(files) / max(len(sample), 1)
    return max(math.ceil(seconds / DECODING), 1)


def _check_lists(
    cfg: Config, where: str, node: dict, evaluators: dict, steps: list[dict], report: Report
) -> tuple[list[File], MapCounter | None]:
    """Check all of a dataset but the content of its files, which are returned."""
    backend = (node.get("backend_args") or {}).get("backend", "local")
    places = node.get("data_root"), node.get("ann_file")
    if backend != "local" or any(is_url(str(place)) for place in places):
        report.warn(where, "not on this machine", "it is not checked")
        return [], None
    dataset = build(node, where, cfg.get("default_scope"), report)
    if dataset is None:
        return [], None
    # by name, since mmdet need not be installed; a class for another format overrides one
    if all(
        getattr(getattr(dataset, method, None), "__qualname__", "") == f"CocoDataset.{method}"
        for method in ("load_data_list", "parse_data_info")
    ):
        check_evaluators(evaluators, dataset, where, report)
        masks = any(step.get("with_mask") for step in steps)
        files = check_coco(dataset, where, report, masks, evaluators)
    else:
        files = _list_files(dataset, where, report)
    report.images = len(files)
    report.folders = {os.path.dirname(n) for f in files for n in (f.path, f.label_map) if n}
    # after the files: those of a folder per class name their classes themselves
    classes = dataset.metainfo.get("classes")
    is_semantic = hasattr(dataset, "reduce_zero_label")
    if classes:
        report.classes = len(classes)
        check_heads(cfg.get("model") or {}, where, len(classes), report)
    elif is_semantic:
        report.error(where, "no classes", f"set {where}.metainfo=dict(classes=(...))")
    return files, MapCounter(dataset, where, report) if classes and is_semantic else None


def build(node: dict, where: str, scope: str | None, report: Report) -> Any:
    """Build a dataset of a config without its pipeline and content; None where that fails."""
    metainfo = node.get("metainfo")
    classes = metainfo.get("classes") if isinstance(metainfo, dict) else None
    if isinstance(classes, str) and not Path(classes).is_file():
        remedy = f"set {where}.metainfo=dict(classes=({classes!r},)), with the comma"
        report.error(where, f"the classes are one text, {classes!r}, and not several", remedy)
        return None
    try:
        return DATASETS.build(dict(_scope_=scope) | node | dict(lazy_init=True, pipeline=[]))
    except Exception as error:  # a config names arbitrary classes, which fail in their own ways
        # MMSegmentation's error lists all classes of both
        reason = textwrap.shorten(first_line(error), 200, placeholder=" ...")
        has_own = "METAINFO" in str(error)
        remedy = f"set {where}.type='BaseSegDataset' for classes of your own"
        report.error(where, f"can't be built ({reason})", remedy if has_own else "correct it")
        return None


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
