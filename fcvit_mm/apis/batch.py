"""Predict for any number of images in one or several processes, and go on after a kill.

The first process lists the images, once. Image i belongs to shard i % n, where n is the number of
processes at the start. A shard is a file with one line of JSON per image, in this order, so its
number of lines says where to go on. When all shards are complete, the first process merges them
into the file that `inference.run` writes. At no time is more in memory than a batch of images and
the names in one folder.

The processes meet in the output folder alone: a group of PyTorch's could not be joined again by a
machine that has been lost, and would have all others begin anew.
"""

import errno
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from ..utils.cli import writing
from ..utils.errors import ConfigError, ShardError
from ..utils.files import atomic_write, make_folder, write_json
from .inference import COLUMNS, Results
from .predictor import Predictor
from .result import Result, coco_content, labels_of
from .sources import Frame, Source, iter_images, read_frames

if sys.platform != "win32":
    import fcntl

# In the folder of results: the shards, the list of images, and what the run was begun with.
FOLDER = "shards"
LIST = "images.jsonl"
RUN = "run.json"
# In the folder of results: a sentence per image that there is no prediction for.
UNREADABLE = "unreadable.txt"
# What a file system says that has no locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# Seconds between two looks for what another process has to write.
WAIT = 0.5

Predict = Callable[[Sequence[np.ndarray]], list[Result]]


@dataclass(frozen=True)
class Shards:
    """Shards on disk: their folder, how many they are, and of how many images."""

    folder: Path
    number: int
    images: int

    def path(self, shard: int) -> Path:
        """Return the file of a shard."""
        return self.folder / f"{shard:05}.jsonl"

    def mark(self, shard: int) -> Path:
        """Return the file that says that a shard is complete."""
        return self.path(shard).with_suffix(".complete")

    def count(self, shard: int) -> int:
        """Return the number of images of a shard."""
        return len(range(shard, self.images, self.number))

    def sources(self, shard: int, done: int) -> Iterator[Source]:
        """Yield the images of a shard but for the first `done`."""
        with (self.folder / LIST).open() as lines:
            for line in islice(lines, shard + done * self.number, None, self.number):
                path, name = json.loads(line)
                yield Source(path, Path(name), moving=False)

    @contextmanager
    def append(self, shard: int) -> Iterator[tuple[IO[bytes], int]]:
        """Open a shard; yield it with the number of images that it has already.

        Raises:
            ShardError: another process writes it, or it can't be written.
        """
        path = self.path(shard)
        try:
            with path.open("a+b") as file:
                _lock(file)
                file.seek(0)
                done = end = 0
                for line in file:
                    if line.endswith(b"\n"):  # a kill may have left half of one
                        done, end = done + 1, end + len(line)
                file.truncate(end)
                yield file, done
            self.mark(shard).touch()
        except BlockingIOError as error:
            raise ShardError(
                f"another process is still writing {path}; end it, then start this one again"
            ) from error
        except OSError as error:
            what = error.filename or path
            raise ShardError(f"{what} can't be written: {error.strerror or error}") from error

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield what was noted of each image, in the order of the list."""
        with ExitStack() as stack:
            files = [stack.enter_context(self.path(i).open()) for i in range(self.number)]
            for i in range(self.images):
                line = files[i % self.number].readline()
                if not line.endswith("\n"):
                    path = self.path(i % self.number)
                    raise ConfigError(f"{path} is not complete; start the same command again")
                yield json.loads(line)


def run(
    predictor: Predictor,
    inputs: Sequence[str],
    out: Path,
    settings: dict[str, Any],
    rank: int = 0,
    processes: int = 1,
    batch_size: int = 1,
    threshold: float = 0.3,
    classes: Sequence[str] | None = None,
    color_by: str = "class",
    scale: float = 1.0,
    console: Console | None = None,
    slice: int | None = None,
    overlap: float = 0.2,
    draw: bool = True,
) -> list[str]:
    """Predict for this process's part of a folder or list of images; the first one merges all.

    What an earlier run with the same settings has left in `out` is gone on with, whatever the
    number of its processes. The files are those of `inference.run`, and out/shards/. An image that
    can't be predicted for is named in unreadable.txt and does not stop the others.

    Args:
        inputs: see `sources.iter_images`.
        settings: what the predictions depend on.
        rank, processes: of this process, from 0 on, and how many there are. The first ends last.
        batch_size and all others: see `inference.run`.

    Returns:
        Lines that say where results lie, in the first process.

    Raises:
        ConfigError: an unknown class, an `out` that can't be used, or no image that can be read.
        ShardError: this process can't write its part.
    """
    threshold = threshold if predictor.task == "detection" else 0.0
    labels_of(predictor.classes, classes)
    results = Results(predictor, out, ExitStack(), color_by, scale, draw)

    def predict(images: Sequence[np.ndarray]) -> list[Result]:
        found = predictor(
            images, batch_size=batch_size, slice=slice, overlap=overlap, threshold=threshold
        )
        return [result.select(threshold, classes) for result in found]

    try:
        is_new = rank != 0 or _begin(inputs, out, settings, processes)
        shards = _find(out, settings)
        if not is_new:
            print(f"going on with {shards.folder}; delete it to begin anew", file=sys.stderr)
        own = range(rank, shards.number, processes)
        with Progress(*COLUMNS, console=console, disable=console is None) as progress:
            bar = progress.add_task("images", total=sum(map(shards.count, own)))
            for shard in own:
                for done in _fill(shards, shard, predict, results, batch_size):
                    progress.advance(bar, done)
        return _merge(shards, results) if rank == 0 else []
    except KeyboardInterrupt as stop:
        raise type(stop)("stopped; the same command goes on from here") from stop


def _begin(inputs: Sequence[str], out: Path, settings: dict[str, Any], processes: int) -> bool:
    """List the images and note the settings, unless that has been done; return whether not."""
    folder = out / FOLDER
    with writing(f"--out {out}"):
        make_folder(folder)
        if (folder / RUN).exists():
            return False
        images = 0
        with atomic_write(folder / LIST) as path, path.open("w") as file:
            for source in iter_images(inputs, out):
                file.write(json.dumps([source.path, str(source.name)]) + "\n")
                images += 1
        begun = {"shards": processes, "images": images, "settings": settings}
        write_json(folder / RUN, begun)
    return True


def _find(out: Path, settings: dict[str, Any]) -> Shards:
    """Return the shards of the run that has begun; a ConfigError if it has other settings."""
    folder = out / FOLDER
    _wait([folder / RUN], "the first process to list the images")
    begun = json.loads((folder / RUN).read_text())
    for key, value in json.loads(json.dumps(settings)).items():
        before = begun["settings"].get(key)
        if before != value:
            raise ConfigError(
                f"the run in {folder} was begun with {key}={before!r}, not {value!r}; take the "
                "same arguments, name another --out, or delete that folder"
            )
    return Shards(folder, begun["shards"], begun["images"])


def _wait(paths: Iterable[Path], what: str) -> None:
    """Wait for files of other processes, and say so."""
    said = False
    for path in paths:
        while not path.exists():
            if not said:
                print(f"waiting for {what}: {path}", file=sys.stderr, flush=True)
                said = True
            time.sleep(WAIT)


def _fill(
    shards: Shards, shard: int, predict: Predict, results: Results, batch_size: int
) -> Iterator[int]:
    """Predict for what a shard lacks; yield the numbers of images that are done."""
    with shards.append(shard) as (file, done):
        yield done
        sources = shards.sources(shard, done)
        while batch := list(islice(sources, batch_size)):
            records = _predict(predict, batch, results)
            file.write("".join(json.dumps(record) + "\n" for record in records).encode())
            file.flush()
            yield len(batch)


def _lock(file: IO[bytes]) -> None:
    """Keep other processes from writing a file, until it is closed; not on Windows."""
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def _predict(predict: Predict, batch: Sequence[Source], results: Results) -> list[dict[str, Any]]:
    """Predict for images and write what is to be seen; return what is to be noted of each."""
    records: list[dict[str, Any]] = [{} for _ in batch]
    frames: dict[int, Frame] = {}
    for i, source in enumerate(batch):
        try:
            (frames[i],) = read_frames(source)
        except ConfigError as error:
            records[i]["unreadable"] = str(error)
    try:
        found = predict([frame.image for frame in frames.values()])
    except ConfigError as error:
        if len(batch) > 1:
            # to find out which it is
            return [record for one in batch for record in _predict(predict, [one], results)]
        return [{"unreadable": f"{batch[0].path}: {error}"}]
    for (i, frame), result in zip(frames.items(), found, strict=True):
        results.write(frame, result)
        # the numbers come with the merge
        image, annotations = results.note(frame, result, 0, 0)
        records[i] = {"image": image, "annotations": annotations}
    return records


def _merge(shards: Shards, results: Results) -> list[str]:
    """Write what `inference.run` writes for all images at once; return what to say."""
    _wait(map(shards.mark, range(shards.number)), "other processes to complete their shards")
    images, detections = sum(1 for _ in _predicted(shards)), 0
    failures = (record["unreadable"] for record in shards.records() if "unreadable" in record)
    if not images:
        raise ConfigError(f"no image can be predicted for: {next(failures)}")
    with writing(f"--out {results.out}"):
        if results.task != "segmentation":
            with atomic_write(results.path) as path, path.open("w") as merged:
                merged.write('{"images": [')
                _write_items(merged, _images(shards))
                if results.task == "detection":
                    categories = coco_content(results.classes, [], [])["categories"]
                    merged.write(f'], "categories": {json.dumps(categories)}, "annotations": [')
                    detections = _write_items(merged, _annotations(shards))
                merged.write("]}\n")
        lines = results.say(images, detections)
        if images < shards.images:
            unreadable = results.out / UNREADABLE
            content = (f"{failure}\n".encode("utf-8", "surrogateescape") for failure in failures)
            with atomic_write(unreadable) as path, path.open("wb") as file:
                file.writelines(content)
            lines.append(f"no prediction for {shards.images - images} images: {unreadable}")
    return lines


def _predicted(shards: Shards) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield what was noted of the images that there is a prediction for, numbered from 1 on."""
    return enumerate((record for record in shards.records() if "image" in record), 1)


def _images(shards: Shards) -> Iterator[dict[str, Any]]:
    for number, record in _predicted(shards):
        yield {**record["image"], "id": number}


def _annotations(shards: Shards) -> Iterator[dict[str, Any]]:
    numbers = count(1)
    for image, record in _predicted(shards):
        for annotation in record["annotations"]:
            yield {**annotation, "id": next(numbers), "image_id": image}


def _write_items(file: IO[str], items: Iterable[dict[str, Any]]) -> int:
    """Write the items of a list in JSON, each by itself; return their number."""
    number = 0
    for number, item in enumerate(items, 1):
        file.write((", " if number > 1 else "") + json.dumps(item))
    return number
