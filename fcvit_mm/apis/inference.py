"""Images, folders and videos through a model: annotated copies, and a result for programs.

Detections are written in COCO's format (https://cocodataset.org/#format-data), each with a score;
a segmentation as label maps, PNG files whose values are the numbers of classes.
"""

import glob
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..utils.cli import writing
from ..utils.errors import ConfigError
from ..utils.files import atomic_write, make_folder
from ..visualization.images import IMAGES, read_image, write_image
from .predictor import Predictor

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


@dataclass(frozen=True)
class Source:
    """An image, a video or a webcam.

    path: of the file; the number of a webcam. name: where results lie below the output folder,
    with an ending.
    """

    path: str | int
    name: Path
    moving: bool


@dataclass
class Frame:
    """An image, or one of a video, with its number from 0 on and how many a second has."""

    source: Source
    image: np.ndarray
    number: int | None = None
    rate: float = 0.0


def find_sources(inputs: Sequence[str], out: Path) -> list[Source]:
    """Resolve files, folders, globs and numbers of webcams, in this order and each by name.

    A file that is named is taken whatever its ending; of a folder, and of those below it, what ends
    as an image or a video does. What lies below `out` is an earlier result and never read.

    Raises:
        ConfigError: one does not exist, or has no images and no videos.
    """
    sources = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            found = [
                p
                for p in sorted(path.rglob("*"))
                if p.suffix.lower() in IMAGES + VIDEOS and not _is_below(p, out)
            ]
            if not found:
                raise ConfigError(f"{text}: the folder has no images ({' '.join(IMAGES)}) "
                                  f"and no videos ({' '.join(VIDEOS)})")  # fmt: skip
            sources += [_file(p, p.relative_to(path)) for p in found]
        elif path.exists() and _is_below(path, out):
            raise ConfigError(f"{text} lies in --out {out}, which is written to; name another one")
        elif path.exists():
            sources.append(_file(path, Path(path.name)))
        elif text.isdigit():
            sources.append(Source(int(text), Path(f"webcam{text}.mp4"), moving=True))
        elif found := [Path(p) for p in sorted(glob.glob(text, recursive=True))]:
            sources += [
                _file(p, Path(p.name)) for p in found if p.is_file() and not _is_below(p, out)
            ]
        else:
            raise ConfigError(
                f"{text}: there is no such file or folder, and no file that it matches"
            )
    return _with_distinct_names(sources)


def _is_below(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def _file(path: Path, name: Path) -> Source:
    return Source(str(path), name, moving=path.suffix.lower() in VIDEOS)


def _with_distinct_names(sources: list[Source]) -> list[Source]:
    """1.jpg of two folders, or 1.jpg and 1.png, must not write the same result."""
    taken: set[Path] = set()
    distinct = []
    for source in sources:
        name, n = source.name, 1
        while name.with_suffix("") in taken:
            n += 1
            name = source.name.with_stem(f"{source.name.stem}_{n}")
        taken.add(name.with_suffix(""))
        distinct.append(Source(source.path, name, source.moving))
    return distinct


def _open_video(source: Source) -> cv2.VideoCapture:
    video = cv2.VideoCapture(source.path)
    if not video.isOpened():
        what = f"webcam {source.path}" if isinstance(source.path, int) else source.path
        raise ConfigError(f"{what} can't be opened as a video")
    return video


def count_frames(source: Source) -> int | None:
    """How many images a source has, as far as is known."""
    if not source.moving:
        return 1
    if isinstance(source.path, int):
        return None
    try:
        video = _open_video(source)
    except ConfigError:
        return 0
    number = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    video.release()
    return number if number > 0 else None


def read_frames(source: Source, most: int | None = None) -> Iterator[Frame]:
    """The image, or the first `most` frames of a video.

    Raises:
        ConfigError: it can't be read, or a video not to its end, after the frames before.
    """
    if not source.moving:
        yield Frame(source, read_image(str(source.path)))
        return
    video = _open_video(source)
    total, rate = int(video.get(cv2.CAP_PROP_FRAME_COUNT)), video.get(cv2.CAP_PROP_FPS)
    number = 0
    try:
        while most is None or number < most:
            there, image = video.read()
            if not there:
                break
            yield Frame(source, image, number, rate)
            number += 1
    finally:
        video.release()
    if number == 0 or (most is None and number < total):
        raise ConfigError(f"{source.path} could be read as far as frame {number} of {total}")


@contextmanager
def video_file(path: Path, rate: float, size: tuple[int, int]) -> Iterator[cv2.VideoWriter]:
    """A video of images (width, height), `rate` a second, that is there once it is closed.

    Raises:
        OSError: OpenCV can't write it.
    """
    with atomic_write(path) as partial:
        writer = cv2.VideoWriter(
            str(partial),
            cv2.VideoWriter.fourcc(*"mp4v"),
            # webcams, and some files, don't know theirs
            rate if 1 <= rate <= 240 else 25.0,
            size,
        )
        try:
            if not writer.isOpened():
                raise OSError(f"OpenCV can't write {path}")
            yield writer
        finally:
            writer.release()


@dataclass
class Detections:
    """What was found, in COCO's format: images, categories, annotations with scores."""

    classes: Sequence[str]
    images: list[dict] = field(default_factory=list)
    annotations: list[dict] = field(default_factory=list)

    def add(self, frame: Frame, sample: Any) -> None:
        height, width = frame.image.shape[:2]
        image = {"id": len(self.images) + 1, "file_name": str(frame.source.path),
                 "width": width, "height": height}  # fmt: skip
        if frame.number is not None:
            image["frame"] = frame.number
        self.images.append(image)
        found = sample.pred_instances
        for i in range(len(found)):
            left, top, right, bottom = found.bboxes[i].double().tolist()
            annotation = {
                "id": len(self.annotations) + 1,
                "image_id": image["id"],
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

    def content(self) -> dict[str, list[dict]]:
        categories = [{"id": i, "name": name} for i, name in enumerate(self.classes, 1)]
        return {
            "images": self.images, "categories": categories, "annotations": self.annotations
        }  # fmt: skip


class Results:
    """Everything that is written below one folder, see `run`.

    Args:
        predictor: whose predictions they are.
        out: the folder.
        stack: what is open, one video at a time.
    """

    def __init__(self, predictor: Predictor, out: Path, stack: ExitStack) -> None:
        self.predictor, self.out, self.stack = predictor, out, stack
        self.detections = Detections(predictor.classes)
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
            self.detections.add(frame, sample)
            return
        labels = sample.pred_sem_seg.data[0].numpy()
        # 255 is no class, so a byte holds 255 of them
        kind = np.uint8 if len(self.predictor.classes) < 256 else np.uint16
        name = source.name.with_suffix("" if source.moving else ".png")
        if source.moving:
            name /= f"{frame.number:06}.png"
        write_image(self.out / "labels" / name, labels.astype(kind))

    def close(self) -> list[str]:
        """Finish what is open; returns lines that say where results lie."""
        self.stack.close()
        lines = [f"images: {self.out / 'drawn'}"]
        if self.predictor.task == "detection":
            path = self.out / "detections.json"
            with atomic_write(path) as partial:
                partial.write_text(json.dumps(self.detections.content()))
            n = len(self.detections.annotations)
            lines.append(f"{n} detections in {self.frames} images: {path}")
        else:
            lines.append(f"label maps of {self.frames} images: {self.out / 'labels'}")
        return lines


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
        sources: see `find_sources`.
        out: folder, made if it is missing.
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
    counts = [count_frames(source) for source in sources]
    if max_frames is not None:
        counts = [n if n is None else min(n, max_frames) for n in counts]
    total = None if None in counts else sum(n for n in counts if n is not None)
    problems = []

    def frames() -> Iterator[Frame]:
        for source in sources:
            try:
                yield from read_frames(source, max_frames)
            except ConfigError as error:
                problems.append(str(error))

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    progress = Progress(*columns, TimeRemainingColumn(), console=console, disable=console is None)
    with writing(f"--out {out}"), ExitStack() as stack, progress:
        make_folder(out)
        results = Results(predictor, out, stack)
        bar = progress.add_task("images", total=total)
        stream = frames()
        try:
            while batch := list(islice(stream, batch_size)):
                samples = predictor([frame.image for frame in batch])
                for frame, sample in zip(batch, samples, strict=True):
                    results.add(frame, predictor.select(sample, threshold, labels))
                    progress.advance(bar)
        except KeyboardInterrupt:
            problems.append("interrupted: what was predicted before is written")
        return results.close(), problems


def report(problems: Sequence[str]) -> None:
    """Print what could not be read, and end a tool with status 2 if there was any.

    Raises:
        ConfigError: the last of the sentences.
    """
    for problem in problems[:-1]:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        raise ConfigError(problems[-1])
