"""Predict for images, folders and videos: annotated copies, and results for programs.

Detections are written in COCO's format (https://cocodataset.org/#format-data), each with a score;
a segmentation as label maps, PNG files whose values are the numbers of classes.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from ..utils.cli import writing
from ..utils.errors import ConfigError
from ..utils.files import make_folder, write_json
from ..visualization.images import write_image
from .predictor import Predictor
from .sources import Frame, Source, count_frames, read_frames, video_file

INTERRUPTED = "interrupted: what was predicted before is written"


class Results:
    """Write everything below one folder, see `run`; `stack` holds the video that is open."""

    def __init__(self, predictor: Predictor, out: Path, stack: ExitStack) -> None:
        self.predictor, self.out, self.stack = predictor, out, stack
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.frames = 0
        self.source: Source | None = None

    def add(self, frame: Frame, sample: Any) -> None:
        """Write one image or frame; `sample` holds what is to be shown."""
        self.frames += 1
        source, drawn = frame.source, self.predictor.draw(frame.image, sample)
        path = self.out / "drawn" / source.name
        if not source.moving:
            write_image(path, drawn)
        else:
            if source is not self.source:
                self.stack.close()
                video = video_file(path.with_suffix(".mp4"), frame.rate, drawn.shape[1::-1])
                self.video = self.stack.enter_context(video)
                self.source = source
            self.video.write(np.ascontiguousarray(drawn))
        if self.predictor.task == "detection":
            self._add_detections(frame, sample.pred_instances)
            return
        labels = sample.pred_sem_seg.data[0].numpy()
        # 255 is no class, so a byte holds 255 of them
        kind = np.uint8 if len(self.predictor.classes) < 256 else np.uint16
        name = source.name.with_suffix("" if source.moving else ".png")
        if source.moving:
            name /= f"{frame.number:06}.png"
        write_image(self.out / "labels" / name, labels.astype(kind))

    def _add_detections(self, frame: Frame, found: Any) -> None:
        """Note an image and its detections in COCO's format."""
        height, width = frame.image.shape[:2]
        image = {"id": self.frames, "file_name": str(frame.source.path),
                 "width": width, "height": height}  # fmt: skip
        self.images.append(image if frame.number is None else image | {"frame": frame.number})
        for i in range(len(found)):
            left, top, right, bottom = found.bboxes[i].double().tolist()
            annotation = {
                "id": len(self.annotations) + 1,
                "image_id": self.frames,
                "category_id": int(found.labels[i]) + 1,
                "score": float(found.scores[i]),
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "iscrowd": 0,
            }
            if "masks" in found:
                code = coco_mask.encode(np.asfortranarray(found.masks[i].numpy().astype(np.uint8)))
                annotation["area"] = int(coco_mask.area(code))
                annotation["segmentation"] = {**code, "counts": code["counts"].decode()}
            self.annotations.append(annotation)

    def close(self) -> list[str]:
        """Finish what is open; return lines that say where results lie."""
        self.stack.close()
        lines = [f"images: {self.out / 'drawn'}"]
        if self.predictor.task != "detection":
            return [*lines, f"label maps of {self.frames} images: {self.out / 'labels'}"]
        path = self.out / "detections.json"
        categories = [{"id": i, "name": name} for i, name in enumerate(self.predictor.classes, 1)]
        content = {
            "images": self.images, "categories": categories, "annotations": self.annotations
        }  # fmt: skip
        write_json(path, content, None)
        n = len(self.annotations)
        return [*lines, f"{n} detections in {self.frames} images: {path}"]


def run(
    predictor: Predictor,
    sources: Sequence[Source],
    out: Path,
    batch_size: int = 1,
    threshold: float = 0.3,
    classes: Sequence[str] | None = None,
    max_frames: int | None = None,
    console: Console | None = None,
) -> tuple[list[str], list[str]]:
    """Predict for all images and frames and write what was found below `out`.

    drawn/ has annotated copies, enlarged where they are small, videos as .mp4; a detector writes
    detections.json, a segmentor labels/. An image that can't be read does not stop the others;
    Ctrl-C ends the reading, and what was predicted until then is written.

    Args:
        predictor: a detector or segmentor.
        batch_size: images that the model gets at once, if they have the same size.
        threshold: least score of a detection, 0 to 1.
        classes: names of those to show (default: all).
        max_frames: of each video.
        console: for a progress bar.

    Returns:
        (lines that say where results lie, a sentence for each source that could not be read).

    Raises:
        ConfigError: a classifier, an unknown class, or `out` can't be written.
    """
    if predictor.task == "classification":
        raise ConfigError(
            f"{predictor.cfg.filename} is a classifier, without boxes or masks to draw; "
            "similarity_map shows where it looks"
        )
    labels = predictor.labels_of(classes)
    counts = [count_frames(source, max_frames) for source in sources]
    problems: list[str] = []
    columns = ("images", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, disable=console is None)
    with writing(f"--out {out}"), ExitStack() as stack, progress:
        make_folder(out)
        results = Results(predictor, out, stack)
        total = None if None in counts else sum(filter(None, counts))
        bar = progress.add_task("images", total=total)
        stream = _read_all(sources, max_frames, problems)
        try:
            while batch := list(islice(stream, batch_size)):
                samples = predictor([frame.image for frame in batch])
                for frame, sample in zip(batch, samples, strict=True):
                    results.add(frame, predictor.select(sample, threshold, labels))
                    progress.advance(bar)
        except KeyboardInterrupt:
            problems.append(INTERRUPTED)
        return results.close(), problems


def _read_all(
    sources: Sequence[Source], max_frames: int | None, problems: list[str]
) -> Iterator[Frame]:
    for source in sources:
        try:
            yield from read_frames(source, max_frames)
        except ConfigError as error:
            problems.append(str(error))


def report(problems: Sequence[str]) -> None:
    """Print what could not be read; the last sentence as a ConfigError, which ends a tool.

    Ctrl-C is raised again.
    """
    for problem in problems[:-1]:
        print(f"error: {problem}", file=sys.stderr)
    if INTERRUPTED in problems:
        raise KeyboardInterrupt(INTERRUPTED)
    if problems:
        raise ConfigError(problems[-1])
