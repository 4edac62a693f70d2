"""Find and read what a model predicts for: images, videos, folders, lists, globs, webcams."""

import glob
import os
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

    A file that is named is taken whatever its ending, but .txt: that is a list with one path per
    line. Of a folder, and of those below it, what ends as an image or a video does is taken. What
    lies below `out` is an earlier result and never read.

    Raises:
        ConfigError: one does not exist, or has no images and no videos.
    """
    sources: list[Source] = []
    taken: set[Path] = set()

    def add(path: str | int, name: Path) -> None:
        sources.append(Source(path, _distinct(name, taken), moving=_is_video(name)))

    for text in inputs:
        path = Path(text)
        if path.is_dir():
            sources += _some(_walk(path, Path(), out, taken), text)
        elif path.exists() and _is_result(path, out):
            raise ConfigError(f"{text} lies in --out {out}, which is written to; name another one")
        elif _is_list(path):
            sources += _some(_read_list(path), text)
        elif path.exists():
            add(text, Path(path.name))
        elif text.isdigit():
            add(int(text), Path(f"webcam{text}.mp4"))
        elif matches := [Path(p) for p in sorted(glob.glob(text, recursive=True))]:
            for file in matches:
                if file.is_file() and not _is_result(file, out):
                    add(str(file), Path(file.name))
        else:
            raise ConfigError(
                f"{text}: there is no such file or folder, and no file that it matches"
            )
    return sources


def iter_images(inputs: Sequence[str], out: Path) -> Iterator[Source]:
    """Yield the images of one folder or list, of which at most one folder's names are in memory.

    In the order and by the names of `find_sources`.

    Raises:
        ConfigError: something else is given, or a video is among them.
    """
    path = Path(inputs[0])
    if len(inputs) > 1 or not (path.is_dir() or _is_list(path)):
        raise ConfigError(
            f"{' '.join(inputs)}: with --resume, and under torchrun, the input is one folder, or "
            "one .txt file with the path of an image per line"
        )
    found = _walk(path, Path(), out) if path.is_dir() else _read_list(path)
    for source in _some(found, inputs[0]):
        if source.moving:
            raise ConfigError(
                f"{source.path} is a video; with --resume, and under torchrun, images alone are "
                "predicted for: move it, or predict for it in a run of its own"
            )
        yield source


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS


def _is_list(path: Path) -> bool:
    return path.suffix.lower() == ".txt" and path.is_file()


def _is_result(path: Path, out: Path) -> bool:
    return out.resolve() in path.resolve().parents


def _distinct(name: Path, taken: set[Path]) -> Path:
    """Return a name like `name` for results, and add it to those that are taken.

    1.jpg of two folders, or 1.jpg and 1.png, have different results.
    """
    distinct, n = name, 1
    while distinct.with_suffix("") in taken:
        n += 1
        distinct = name.with_stem(f"{name.stem}_{n}")
    taken.add(distinct.with_suffix(""))
    return distinct


def _walk(folder: Path, name: Path, out: Path, shared: set[Path] | None = None) -> Iterator[Source]:
    """Yield what lies below a folder.

    Args:
        name: of the folder's results.
        shared: names that are taken, by other inputs too; None if this is the only one. Then those
            of one folder are enough, since names in different folders differ.
    """
    if _is_result(folder / "any", out):
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise ConfigError(f"{folder} can't be read: {error.strerror}") from error
    taken = set() if shared is None else shared
    for entry in entries:
        path, name_of_result = folder / entry.name, name / entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(path, name_of_result, out, shared)
        elif path.suffix.lower() not in IMAGES + VIDEOS:
            continue
        elif not (entry.is_symlink() and _is_result(path, out)):
            yield Source(str(path), _distinct(name_of_result, taken), _is_video(path))


def _read_list(path: Path) -> Iterator[Source]:
    """Yield what a list names, by the whole path, which no other file has."""
    with path.open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            if text := line.rstrip("\r\n"):
                absolute = Path(os.path.abspath(text))
                name = absolute.relative_to(absolute.anchor)
                yield Source(text, name.with_name(f"{name.name}.png"), _is_video(name))


def _some(sources: Iterator[Source], text: str) -> Iterator[Source]:
    """Yield the sources, of which there must be one."""
    first = next(sources, None)
    if first is None:
        what = "folder" if Path(text).is_dir() else "list"
        raise ConfigError(f"{text}: the {what} has no images ({' '.join(IMAGES)}) "
                          f"and no videos ({' '.join(VIDEOS)})")  # fmt: skip
    yield first
    yield from sources


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
