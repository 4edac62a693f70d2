"""Predict for images, folders and videos: annotated copies, and results for programs.

Detections are written in COCO's format (https://cocodataset.org/#format-data), each with a score;
a segmentation as label maps, PNG files whose values are the numbers of classes.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from ..utils.cli import Terminated, writing
from ..utils.errors import ConfigError
from ..utils.files import make_folder, write_json
from ..visualization.images import write_image
from .predictor import Predictor
from .result import Result, coco_content, labels_of
from .sources import Frame, Source, count_frames, read_frames, video_file
from .tracking import LEAST_SCORE, Tracker

# Classes of an image that are noted.
BEST = 5
COLUMNS = ("images", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
# what is said after Ctrl-C and after SIGTERM
STOPPED: dict[type[KeyboardInterrupt], str] = {
    KeyboardInterrupt: "interrupted: what was predicted before is written",
    Terminated: "terminated: what was predicted before is written",
}


class Results:
    """Write everything below one folder, see `run`; `stack` holds the video that is open."""

    def __init__(
        self,
        predictor: Predictor,
        out: Path,
        stack: ExitStack,
        color_by: str,
        scale: float,
        draw: bool = True,
    ) -> None:
        self.task, self.classes = predictor.task, predictor.classes
        self.out, self.stack = out, stack
        self.color_by, self.scale, self.draw = color_by, scale, draw
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.source: Source | None = None

    def add(self, frame: Frame, result: Result) -> None:
        """Write one image or frame, and note it; `result` holds what is to be shown."""
        self.write(frame, result)
        image_id = len(self.images) + 1
        image, annotations = self.note(frame, result, image_id, len(self.annotations) + 1)
        self.images.append(image)
        self.annotations += annotations

    def write(self, frame: Frame, result: Result) -> None:
        """Write the drawing and the label map of one image or frame."""
        if self.draw:
            self._write_drawn(frame, result)
        if self.task == "segmentation":
            self._write_labels(frame, result)

    def note(
        self, frame: Frame, result: Result, image_id: int, first_id: int
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return the entry of an image or frame, and its annotations, from the id `first_id` on."""
        height, width = frame.image.shape[:2]
        image: dict[str, Any] = {
            "id": image_id, "file_name": str(frame.source.path), "width": width, "height": height,
        }  # fmt: skip
        if frame.number is not None:
            image["frame"] = frame.number
        if self.task == "classification":
            image["classes"] = result.to_table()[:BEST]
        return image, result.to_coco(image_id, first_id) if self.task == "detection" else []

    def _write_drawn(self, frame: Frame, result: Result) -> None:
        """Write a drawing, of a video's frame into the video that is open."""
        source = frame.source
        drawn = result.draw(self.color_by, self.scale)[..., ::-1]
        path = self.out / "drawn" / source.name
        if not source.moving:
            write_image(path, drawn)
            return
        if source is not self.source:
            self.stack.close()
            size = (drawn.shape[1], drawn.shape[0])
            video = video_file(path.with_suffix(".mp4"), frame.rate, size)
            self.video = self.stack.enter_context(video)
            self.source = source
        self.video.write(np.ascontiguousarray(drawn))

    def _write_labels(self, frame: Frame, result: Result) -> None:
        """Write a label map."""
        # 255 is no class, so a byte holds 255 of them
        kind = np.uint8 if len(result.classes) < 256 else np.uint16
        name = frame.source.name.with_suffix("" if frame.source.moving else ".png")
        if frame.source.moving:
            name /= f"{frame.number:06}.png"
        write_image(self.out / "labels" / name, np.asarray(result.semantic).astype(kind))

    def close(self) -> list[str]:
        """Finish what is open; return lines that say where results lie."""
        self.stack.close()
        if self.task == "classification":
            write_json(self.path, {"images": self.images}, None)
        elif self.task == "detection":
            write_json(self.path, coco_content(self.classes, self.images, self.annotations), None)
        return self.say(len(self.images), len(self.annotations))

    @property
    def path(self) -> Path:
        """What holds the results of all images: a file, of a segmentor a folder."""
        names = {"detection": "detections.json", "classification": "classes.json"}
        return self.out / names.get(self.task, "labels")

    def say(self, images: int, detections: int) -> list[str]:
        """Return lines that say where results of so many images lie."""
        lines = [f"images: {self.out / 'drawn'}"] if self.draw else []
        if self.task == "detection":
            return [*lines, f"{detections} detections in {images} images: {self.path}"]
        what = "classes" if self.task == "classification" else "label maps"
        return [*lines, f"{what} of {images} images: {self.path}"]


def run(
    predictor: Predictor,
    sources: Sequence[Source],
    out: Path,
    batch_size: int = 1,
    threshold: float = 0.3,
    classes: Sequence[str] | None = None,
    max_frames: int | None = None,
    color_by: str = "class",
    scale: float = 1.0,
    console: Console | None = None,
    slice: int | None = None,
    overlap: float = 0.2,
    track: bool = False,
    draw: bool = True,
) -> tuple[list[str], list[str]]:
    """Predict for all images and frames and write what was found below `out`.

    drawn/ has annotated copies, videos as .mp4; a detector writes detections.json, a segmentor
    labels/, a classifier classes.json. An image that can't be read does not stop the others;
    Ctrl-C ends the reading, and what was predicted until then is written.

    Args:
        batch_size: images that the model gets at once, if they have the same size.
        threshold: least score of a detection, 0 to 1.
        classes: names of those to show (default: all).
        max_frames: of each video.
        draw, color_by, scale: whether to write drawn/, and how, see `Result.draw`.
        console: for a progress bar.
        slice, overlap: see `Predictor`.
        track: whether to follow objects through each video.

    Returns:
        (lines that say where results lie, a sentence for each source that could not be read).

    Raises:
        ConfigError: an unknown class, an `out` that can't be written, or no task for `track`.
    """
    if track:
        _check_tracking(predictor, sources)
    threshold = threshold if predictor.task == "detection" else 0.0
    labels_of(predictor.classes, classes)
    problems: list[str] = []
    progress = Progress(*COLUMNS, console=console, disable=console is None)
    with writing(f"--out {out}"), ExitStack() as stack, progress:
        make_folder(out)
        results = Results(predictor, out, stack, color_by, scale, draw)
        bar = progress.add_task("images", total=_count(sources, max_frames))
        least = min(LEAST_SCORE, threshold) if track else threshold
        predict = partial(
            predictor, batch_size=batch_size, slice=slice, overlap=overlap, threshold=least
        )
        found = _predict_all(predict, _read_all(sources, max_frames, problems), batch_size)
        try:
            for frame, result in _follow(found, threshold) if track else found:
                results.add(frame, result.select(threshold, classes))
                progress.advance(bar)
        except KeyboardInterrupt as stop:
            problems.append(STOPPED[type(stop)])
        return results.close(), problems


def _count(sources: Sequence[Source], max_frames: int | None) -> int | None:
    """Return the number of all images and frames; None if a source does not know its own."""
    counts = [count_frames(source, max_frames) for source in sources]
    return None if None in counts else sum(filter(None, counts))


def _check_tracking(predictor: Predictor, sources: Sequence[Source]) -> None:
    """Raise a ConfigError where there is nothing to follow."""
    if predictor.task != "detection":
        raise ConfigError(f"--track follows what a detector finds; {predictor.cfg.filename} is a "
                          f"model for {predictor.task}")  # fmt: skip
    if not any(source.moving for source in sources):
        raise ConfigError("--track follows objects through a video; none of the inputs is one")
    # now, not at the first video, where its package is missing
    Tracker()


def _predict_all(
    predict: Callable[..., Any], frames: Iterator[Frame], batch_size: int
) -> Iterator[tuple[Frame, Result]]:
    while batch := list(islice(frames, batch_size)):
        yield from zip(batch, predict([frame.image for frame in batch]), strict=True)


def _follow(
    found: Iterator[tuple[Frame, Result]], threshold: float
) -> Iterator[tuple[Frame, Result]]:
    """Number the objects of each video."""
    video = None
    for frame, result in found:
        if frame.source.moving:
            if frame.source is not video:
                video, tracker = frame.source, Tracker(threshold, frame.rate)
            result = tracker(result)
        yield frame, result


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

    Ctrl-C and SIGTERM are raised again.
    """
    for problem in problems[:-1]:
        print(f"error: {problem}", file=sys.stderr)
    for kind, said in STOPPED.items():
        if said in problems:
            raise kind(said)
    if problems:
        raise ConfigError(problems[-1])
