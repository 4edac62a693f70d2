"""Check the values of label maps against the classes of their dataset."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .report import Report, listed

ONE_CLASS = (
    "with 0 for the background and 1 for the object in the label maps, set "
    "{where}.metainfo=dict(classes=('background', {name!r})), {where}.reduce_zero_label=False and "
    "num_classes=2 in the heads, and, for one output, out_channels=1 with a sigmoid: "
    "docs/custom_data.md, Binary segmentation"
)


def check_counts(
    where: str,
    classes: Sequence[str],
    counts: np.ndarray,
    report: Report,
    unknown: Collection[str] = (),
) -> None:
    """Warn of classes that never occur, but not of `unknown`; refuse a dataset in which none does.

    counts: of the objects or pixels of each class.
    """
    if not counts.sum():
        report.error(where, "nothing of any class", "correct classes and annotations")
        return
    for name, count in zip(classes, counts, strict=True):
        if not count and name not in unknown:
            report.warn(where, "classes that never occur", "add examples", repr(name))


def check_pairs(dataset: Any, entries: list[dict], report: Report) -> None:
    """Report label maps without an image, which a dataset of folders passes over."""
    folder = dataset.data_prefix.get("seg_map_path")
    # those that an ann_file lists are meant to be all
    if not folder or not entries or dataset.ann_file:
        return
    used = {os.path.normpath(entry.get("seg_map_path", "")) for entry in entries}
    for path in sorted(Path(folder).rglob(f"*{dataset.seg_map_suffix}")):
        if os.path.normpath(path) not in used:
            remedy = (
                "put the images there, remove the label maps, set img_suffix, which is the same "
                "for all images, or list the images in an ann_file"
            )
            report.error(folder, "label maps without image", remedy, path.name)


def label_table(dataset: Any) -> np.ndarray:
    """Return the class that each value becomes, -1 where it is ignored, -2 where none, (257,)."""
    table: np.ndarray = np.arange(257)
    if dataset.reduce_zero_label:
        table = np.where((table == 0) | (table == 255), 255, table - 1)
        table[256] = 256
    old = table.copy()
    for before, after in (dataset.label_map or {}).items():
        table[old == before] = after
    classes = len(dataset.metainfo["classes"])
    return np.where(table == dataset.ignore_index, -1, np.where(table < classes, table, -2))


class MapCounter:
    """Add up the values of a dataset's label maps and report those that are no class."""

    def __init__(self, dataset: Any, where: str, report: Report) -> None:
        self.where, self.report = where, report
        self.ignored = dataset.ignore_index
        self.classes = dataset.metainfo["classes"]
        self.folder = dataset.data_prefix.get("seg_map_path") or where
        self.table = label_table(dataset)
        self.is_alone = len(self.classes) == 1
        if self.is_alone:
            what = (
                f"a single class, {self.classes[0]!r}: a softmax over one class is 1 everywhere, "
                "so that nothing is learned, with loss 0 and mIoU 100"
            )
            report.error(where, what, ONE_CLASS.format(where=where, name=self.classes[0]))
        self.total = np.zeros(257, np.int64)

    def add(self, path: str, counts: np.ndarray) -> None:
        """Count the pixels of a label map, (257,)."""
        self.total += counts
        wrong = [
            f"{'above 255' if value == 256 else value} in {counts[value]} pixels"
            for value in np.flatnonzero((self.table == -2) & (counts > 0)).tolist()
        ]
        # of one class alone, what else there is will be the background
        if wrong and not self.is_alone:
            allowed = np.flatnonzero(self.table >= 0)
            self.report.error(
                self.folder,
                f"label maps with values that are no class (its {len(self.classes)} classes are "
                f"the values {allowed[0]} to {allowed[-1]}, {self.ignored} is ignored)",
                "correct the label maps or the classes; where 0 is unlabeled and classes count "
                f"from 1, set {self.where}.reduce_zero_label=True",
                f"{os.path.basename(path)} ({listed(wrong)})",
            )

    def finish(self) -> None:
        """Report the number of pixels, and the classes without."""
        known = self.table >= 0
        counts = np.bincount(
            self.table[known], weights=self.total[known], minlength=len(self.classes)
        )
        self.report.labeled, self.report.unit = int(counts.sum()), "pixels"
        if self.ignored == 255 and np.flatnonzero(self.total).tolist() == [0, 255]:
            share = self.total[255] / self.total.sum()
            what = f"255 is ignored and is {share:.0%} of the pixels, while all others are 0"
            remedy = "where 255 is the object, store 1 in its place: labels[labels == 255] = 1"
            self.report.error(self.folder, what, remedy)
            return
        check_counts(self.folder, self.classes, counts, self.report)
