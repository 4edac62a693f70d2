"""Results on disk: complete or not there, and with a SHA-256 where their format has no checksum."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What is not complete yet; the ending says to libraries what to write.
PARTIAL = ".{stem}.partial{suffix}"

# Under this key a file has the SHA-256 that it has with this value in its place.
SHA256_KEY = "fcvit_mm.sha256"
SHA256_PLACEHOLDER = "0" * 64


def embed_sha256(content: bytes) -> bytes:
    """Return a file's content with its SHA-256 in place of `SHA256_PLACEHOLDER`."""
    return content.replace(
        SHA256_PLACEHOLDER.encode(), hashlib.sha256(content).hexdigest().encode(), 1
    )


def matches_sha256(content: bytes, digest: str) -> bool:
    """Return whether a file is as it was when `embed_sha256` wrote this SHA-256 into it."""
    unmarked = content.replace(digest.encode(), SHA256_PLACEHOLDER.encode(), 1)
    return hashlib.sha256(unmarked).hexdigest() == digest


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give another path in the same folder, which is made, to write to; at the end it is renamed.

    After an error it is gone, and what `path` held before is still there, after a power cut too.
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
    """Make a folder to write to; an OSError if it can't be made, or nothing be written there."""
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
        pass


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write a file of JSON completely or not at all."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, indent=indent) + "\n")
