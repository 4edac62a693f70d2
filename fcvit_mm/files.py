"""Results on disk: complete or not there."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Another path to write to, in the same folder, that gets the name `path` at the end.

    After an error it is gone, and what `path` held before is still there. Folders that are missing
    are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # the ending says to libraries what to write
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield partial
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
