"""Convert the annotations of labeling tools to COCO's format, and outlines to label maps.

    dataset = convert(Path("labeled"), Path("data/parts"))

writes what docs/custom_data.md describes: images/{train,val}/, annotations/{train,val}.json and, if
asked for, label_maps/{train,val}/.
"""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from mmengine.config import Config
from pycocotools import mask as coco_mask
from rich.console import Console

from ...utils.errors import DatasetError
from ...visualization.images import read_image, write_image
from ..checks.coco import outline_flaw
from ..checks.report import Report
from ..coco_writer import write_folder, write_instances
from .readers import read
from .source import Sample
from .splits import Group, group_duplicates, split

BACKGROUND = "background"
KEYS = ("train", "val", "test")


@dataclass
class Dataset:
    """What has been written.

    classes: of the objects. splits: the samples of each, train first. has_outlines: whether each
    object has one. label_maps: whether there are any. report: what was noticed in the source.
    """

    folder: Path
    classes: list[str]
    splits: dict[str, list[Sample]]
    has_outlines: bool
    label_maps: bool
    report: Report = field(default_factory=lambda: Report("source"))

    @property
    def map_classes(self) -> list[str]:
        """The classes of the label maps, in the order of their values."""
        return [BACKGROUND, *(name for name in self.classes if name != BACKGROUND)]

    def configs(self) -> list[Config]:
        """Return configs that hold the datasets alone, as `checks.check` reads them."""
        root = str(self.folder)
        steps = [dict(type="LoadAnnotations", with_mask=self.has_outlines)]
        made = [Config(dict(default_scope="mmdet"))]
        if self.label_maps:
            made.append(Config(dict(default_scope="mmseg")))
        for key in self.splits:
            made[0][f"{key}_dataloader"] = dict(
                dataset=dict(
                    type="CocoDataset",
                    data_root=root,
                    metainfo=dict(classes=tuple(self.classes)),
                    ann_file=f"annotations/{key}.json",
                    data_prefix=dict(img=f"images/{key}/"),
                    test_mode=key != "train",
                    pipeline=steps,
                )
            )
            if key != "train":
                evaluator = dict(ann_file=os.path.join(root, f"annotations/{key}.json"))
                made[0][f"{key}_evaluator"] = evaluator
            if self.label_maps:
                prefix = dict(img_path=f"images/{key}", seg_map_path=f"label_maps/{key}")
                made[1][f"{key}_dataloader"] = dict(
                    dataset=dict(
                        type="BaseSegDataset",
                        data_root=root,
                        metainfo=dict(classes=tuple(self.map_classes)),
                        img_suffix=self.image_suffix,
                        data_prefix=prefix,
                        pipeline=[],
                    )
                )
        return made

    @property
    def image_suffix(self) -> str:
        """The ending of the images, which is the same for all where there are label maps."""
        return suffix_of([one for samples in self.splits.values() for one in samples])


def suffix_of(samples: list[Sample]) -> str:
    """Return the ending that images get next to label maps: theirs, or .png where they differ."""
    found = {sample.image.suffix for sample in samples}
    return found.pop() if len(found) == 1 else ".png"


def convert(
    source: Path,
    out: Path,
    kind: str = "auto",
    label_maps: bool = False,
    share: float = 0.2,
    seed: int = 0,
    console: Console | None = None,
) -> Dataset:
    """Convert a folder of images and annotations; write all of it or nothing.

    Args:
        out: a folder that is new or empty.
        kind: format of the annotations: voc, yolo, labelme, coco, or auto to recognize it.
        label_maps: write label maps, too.
        share: of the images that are for validation, where the source has no splits.
        seed: of the drawing of those.
        console: where to show the progress; nowhere if None.

    Raises:
        DatasetError: something can't be read or written; the message names the file.
    """
    with write_folder(out) as fresh:
        report = Report("source")
        classes, samples = read(source, kind, report, console)
        if label_maps and len(classes) > 254:
            raise DatasetError(
                f"{source}: {len(classes)} classes are more than label maps can hold"
            )
        groups = group_duplicates(samples)
        chosen = split(samples, groups, share, seed)
        _report_duplicates(source, samples, groups, chosen, report)
        splits: dict[str, list[Sample]] = {key: [] for key in KEYS if key in chosen}
        for key, sample in zip(chosen, samples, strict=True):
            splits[key].append(sample)
        outlined = all("segmentation" in one for s in samples for _, one in s.objects)
        dataset = Dataset(out, classes, splits, outlined, label_maps, report)
        for key in splits:
            _write(dataset, key, fresh)
    return dataset


def _report_duplicates(
    source: Path, samples: list[Sample], groups: list[Group], chosen: list[str], report: Report
) -> None:
    """Warn of images that look the same, above all of those in several splits."""
    splits = {sample.image: key for sample, key in zip(samples, chosen, strict=True)}
    for group in groups:
        if len(group) == 1:
            continue
        example = " = ".join(str(sample.image) for sample in group[:3])
        if len({splits[sample.image] for sample in group}) == 1:
            report.warn(source, "images that look the same, kept in one split",
                        "remove all but one", example)  # fmt: skip
        else:
            report.warn(source, "images that look the same in different splits, which makes the "
                        "metrics too good", "keep them in one", example)  # fmt: skip


def _write(dataset: Dataset, key: str, folder: Path) -> None:
    """Write the images, annotations and label maps of a split."""
    samples = dataset.splits[key]
    # as absolute paths, since images may lie outside of the source
    root = os.path.commonpath([sample.image.absolute().parent for sample in samples])
    suffix = dataset.image_suffix if dataset.label_maps else None
    content = []
    taken: dict[Path, Path] = {}
    for sample in samples:
        name = sample.image.absolute().relative_to(root)
        name = name.with_suffix(suffix) if suffix else name
        if name in taken:
            raise DatasetError(
                f"{taken[name]} and {sample.image} differ in their ending alone, so that both "
                f"would get the label map {name.with_suffix('.png')}: rename one"
            )
        taken[name] = sample.image
        target = folder / "images" / key / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == sample.image.suffix:
            shutil.copyfile(sample.image, target)
        else:
            write_image(target, read_image(sample.image), direct=True)
        numbers = {class_name: i for i, class_name in enumerate(dataset.classes, 1)}
        found = [{"category_id": numbers[label], **one} for label, one in sample.objects]
        content.append((name.as_posix(), sample.size, found))
        if dataset.label_maps:
            path = (folder / "label_maps" / key / name).with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, label_map(sample, dataset.map_classes), direct=True)
    write_instances(folder / "annotations" / f"{key}.json", dataset.classes, content)


def label_map(sample: Sample, classes: list[str]) -> np.ndarray:
    """Draw the outlines of objects: (H, W), uint8; small ones over large ones, 0 where none is.

    Args:
        classes: of the values, the background first.

    Raises:
        DatasetError: an object has no outline, or one that can't be drawn.
    """
    width, height = sample.size
    labels = np.zeros((height, width), np.uint8)
    for name, one in sorted(sample.objects, key=lambda item: -item[1]["area"]):
        outline = one.get("segmentation")
        if outline is None:
            raise DatasetError(
                f"{sample.source}: an object ({name}) has a box and no outline, which label maps "
                "are made of: outline it, or leave out --label-maps"
            )
        if flaw := outline_flaw(outline, sample.size):
            raise DatasetError(f"{sample.source}: {flaw[0]} ({name}); {flaw[1]}")
        if isinstance(outline, list):
            parts = [part for part in outline if len(part) >= 6]
            code = coco_mask.merge(coco_mask.frPyObjects(parts, height, width))
        elif isinstance(outline["counts"], list):
            code = coco_mask.frPyObjects(outline, height, width)
        else:
            code = outline
        labels[coco_mask.decode(code) > 0] = classes.index(name)
    return labels
