"""Results on disk: complete or not there, and sealed where their format has no checksum."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What is not complete yet; the ending says to libraries what to write.
PARTIAL = ".{stem}.partial{suffix}"

# Under this key a file has the SHA-256 that it has with this value in its place.
SEAL = "fcvit_mm.sha256"
UNSEALED = "0" * 64


def seal(content: bytes) -> bytes:
    """Write a file's SHA-256 where it has `UNSEALED`."""
    return content.replace(UNSEALED.encode(), hashlib.sha256(content).hexdigest().encode(), 1)


def is_sealed(content: bytes, digest: str) -> bool:
    """Whether a file is as it was when `seal` noted this SHA-256 in it."""
    unsealed = content.replace(digest.encode(), UNSEALED.encode(), 1)
    return hashlib.sha256(unsealed).hexdigest() == digest


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Another path to write to, in the same folder, that gets the name `path` at the end.

    After an error it is gone, and what `path` held before is still there, after a power cut too.
    Folders that are missing are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(PARTIAL.format(stem=path.stem, suffix=path.suffix))
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder to write to.

    Raises:
        OSError: it can't be made, or nothing can be written there.
    """
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
        pass
