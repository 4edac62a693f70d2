"""Find and read what a model predicts for: images, videos, folders, globs, webcams."""

import glob
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..utils.errors import ConfigError
from ..utils.files import atomic_write
from ..visualization.images import IMAGES, convert_image

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


@dataclass(frozen=True)
class Source:
    """An image, a video or a webcam; `name`: of its results below the output folder."""

    path: str | int
    name: Path
    moving: bool


@dataclass
class Frame:
    """An image, or one of a video with its number from 0 on and the video's frames per second.

    image: (H, W, 3), RGB, 0 to 255.
    """

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

    def is_result(path: Path) -> bool:
        return out.resolve() in path.resolve().parents

    sources: list[Source] = []
    taken: set[Path] = set()

    def add(path: str | int, name: Path) -> None:
        # 1.jpg of two folders, or 1.jpg and 1.png, have different results
        distinct, n = name, 1
        while distinct.with_suffix("") in taken:
            n += 1
            distinct = name.with_stem(f"{name.stem}_{n}")
        taken.add(distinct.with_suffix(""))
        sources.append(Source(path, distinct, moving=name.suffix.lower() in VIDEOS))

    for text in inputs:
        path = Path(text)
        if path.is_dir():
            inside = (p for p in sorted(path.rglob("*")) if p.suffix.lower() in IMAGES + VIDEOS)
            files = [p for p in inside if not is_result(p)]
            if not files:
                raise ConfigError(f"{text}: the folder has no images ({' '.join(IMAGES)}) "
                                  f"and no videos ({' '.join(VIDEOS)})")  # fmt: skip
            for file in files:
                add(str(file), file.relative_to(path))
        elif path.exists() and is_result(path):
            raise ConfigError(f"{text} lies in --out {out}, which is written to; name another one")
        elif path.exists():
            add(text, Path(path.name))
        elif text.isdigit():
            add(int(text), Path(f"webcam{text}.mp4"))
        elif matches := [Path(p) for p in sorted(glob.glob(text, recursive=True))]:
            for file in matches:
                if file.is_file() and not is_result(file):
                    add(str(file), Path(file.name))
        else:
            raise ConfigError(
                f"{text}: there is no such file or folder, and no file that it matches"
            )
    return sources


def count_frames(source: Source, most: int | None = None) -> int | None:
    """Return the number of images of a source, of a video at most `most`; None if unknown."""
    if not source.moving:
        return 1
    # a webcam can't be opened twice
    if isinstance(source.path, int):
        return most
    number = int(cv2.VideoCapture(source.path).get(cv2.CAP_PROP_FRAME_COUNT))
    return min(number, most or number) if number > 0 else most


def read_frames(source: Source, most: int | None = None) -> Iterator[Frame]:
    """Read the image, or the first `most` frames of a video.

    Raises:
        ConfigError: it can't be read, or a video not to its end, after the frames before.
    """
    if not source.moving:
        yield Frame(source, convert_image(str(source.path)))
        return
    number, video = 0, cv2.VideoCapture(source.path)
    try:
        if not video.isOpened():
            what = f"webcam {source.path}" if isinstance(source.path, int) else source.path
            raise ConfigError(f"{what} can't be opened as a video")
        total, rate = int(video.get(cv2.CAP_PROP_FRAME_COUNT)), video.get(cv2.CAP_PROP_FPS)
        while most is None or number < most:
            there, image = video.read()
            if not there:
                break
            yield Frame(source, image[..., ::-1], number, rate)
            number += 1
    finally:
        video.release()
    if number == 0 or (most is None and number < total):
        raise ConfigError(f"{source.path} could be read as far as frame {number} of {total}")


@contextmanager
def video_file(path: Path, rate: float, size: tuple[int, int]) -> Iterator[cv2.VideoWriter]:
    """Write a video of images (width, height), completely or not at all; else an OSError."""
    # webcams, and some files, don't know their rate
    rate = rate if 1 <= rate <= 240 else 25.0
    with atomic_write(path) as partial:
        writer = cv2.VideoWriter(str(partial), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
        try:
            if not writer.isOpened():
                raise OSError(f"OpenCV can't write {path}")
            yield writer
        finally:
            writer.release()
