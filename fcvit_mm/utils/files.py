"""Results on disk: complete or not there, and with a SHA-256 where their format has no checksum."""

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

# What is not complete yet; the ending says to libraries what to write.
PARTIAL = ".{stem}.partial-{unique}{suffix}"

# Under this key a file has the SHA-256 that it has with this value in its place.
SHA256_KEY = "fcvit_mm.sha256"
SHA256_PLACEHOLDER = "0" * 64


def embed_sha256(content: bytes, more: bytes = b"") -> bytes:
    """Return a file's content with its SHA-256 in place of `SHA256_PLACEHOLDER`.

    more: the content of a second file that belongs to it, of which the SHA-256 is, too.
    """
    digest = hashlib.sha256(content + more).hexdigest()
    return content.replace(SHA256_PLACEHOLDER.encode(), digest.encode(), 1)


def matches_sha256(content: bytes, digest: str) -> bool:
    """Return whether a file is as it was when `embed_sha256` wrote this SHA-256 into it."""
    unmarked = content.replace(digest.encode(), SHA256_PLACEHOLDER.encode(), 1)
    return hashlib.sha256(unmarked).hexdigest() == digest


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give another path in the same folder, which is made, to write to; at the end it is renamed.

    After an error it is gone, and what `path` held before is still there, after a power cut too. A
    symbolic link is followed; mode and owner stay. What a rename would destroy, such as a device, a
    pipe or a file with several names, is written to itself.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    target = Path(os.path.realpath(path))
    # short enough for file systems with 255 bytes per name, in any script
    names = {"stem": target.stem[:40], "unique": uuid4().hex[:8], "suffix": target.suffix[:16]}
    partial = target.with_name(PARTIAL.format(**names))
    try:
        if not _may_replace(path, partial):
            yield path
            return
        yield partial
        with partial.open("ab") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _may_replace(path: Path, partial: Path) -> bool:
    """Tell whether a file may take the place of another, whose mode and owner it is given."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return True
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or not os.access(path, os.W_OK):
        return False
    try:
        partial.touch()
        if hasattr(os, "chown"):  # not on Windows
            os.chown(partial, found.st_uid, found.st_gid)
        partial.chmod(stat.S_IMODE(found.st_mode))
    except PermissionError:  # of the folder, or a file of somebody else's
        return False
    return True


def make_folder(path: Path) -> None:
    """Make a folder to write to; an OSError if it can't be made, or nothing be written there."""
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
        pass


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write a file of JSON completely or not at all."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, indent=indent) + "\n")
