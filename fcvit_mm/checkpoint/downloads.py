"""Download checkpoints: the authors' by name, from the Hugging Face Hub, web servers and storages.

Files come whole or not at all into the usual cache: the Hub's own, or else torch.hub's. What came
before a connection broke is kept and added to.
"""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256 as digest_of
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
from filelock import FileLock
from mmengine.fileio import get_file_backend
from mmengine.logging import print_log
from rich.console import Console
from rich.progress import DownloadColumn, Progress

from ..utils.cli import CHECKPOINTS, require
from ..utils.errors import CheckpointError, ConfigError, first_line
from ..utils.files import atomic_write, sha256, write_json

# The authors' shared drive: one folder per model, without links to the files.
DRIVE = "https://drive.google.com/drive/folders/"
RELEASED = {
    "fcvit_tiny_in1k": DRIVE + "1YSa8tkXkUQT94mgo-L7q4pv5KiHRTAaR",
    "fcvit_s12_in1k": DRIVE + "1QuyalIGhJeD2pxcVxR0_gJNrk2mZ8WEb",
    "fcvit_s24_in1k": DRIVE + "1II2v1rhNe9sgLJtoSR-cgSh2mpPQMt4t",
    "fcvit_s48_in1k": DRIVE + "16joP1cQwbx4oICL-WbPC1SqGNoc4-NZm",
    "mask_rcnn_fcvit_s12_coco": DRIVE + "1EAz0qkbGGNqy7SgYr7E3pPCMo8YYnTVK",
    "mask_rcnn_fcvit_s24_coco": DRIVE + "1XdZyVcC9oZqNFnUhQWRXNLwoupahMLAp",
    "semantic_fpn_fcvit_s12_ade20k": DRIVE + "17j_ZsGcoavAPC4OdPGXLo8ZEk0R8BZWK",
    "semantic_fpn_fcvit_s24_ade20k": DRIVE + "1mzFxxMxe3XBQEibgrryuBVV7nQXDELKB",
}
HUB = re.compile(r"hf://(?P<repo_id>[^/@]+/[^/@]+)/(?P<filename>[^@]+)(?:@(?P<revision>.+))?")
# Size and SHA-256 of each download at its first use.
LOCK = "fcvit_weights.lock"
# Seconds without a byte until a connection counts as broken, and between tries; tries in a row that
# bring nothing.
TIMEOUT, PAUSE, TRIES = 30.0, 1.0, 3
CHUNK = 2**20


def is_released(filename: str) -> bool:
    """Tell whether a checkpoint is one of the authors': its name, or NAME/FILE of its folder."""
    return filename.partition("/")[0] in RELEASED


def is_storage(filename: str) -> bool:
    """Tell whether a URL is of another backend of MMEngine's, where files may change."""
    return not is_released(filename) and not filename.startswith(("http://", "https://", "hf://"))


def find(filename: str) -> Path | None:
    """Return the file of an earlier download, without a network; None if there is none."""
    if filename.startswith("hf://"):
        client, arguments = _hub(filename)
        # None, or a mark that the repository has no such file
        found = client.try_to_load_from_cache(**arguments)
        return Path(found) if isinstance(found, str) else None
    path = _place(filename)
    if not is_released(filename):
        return path if path.is_file() else None
    wanted = filename.partition("/")[2]
    # a name with a leading dot is that of a download that has not ended
    files = [one for one in path.glob("[!.]*") if wanted in ("", one.name)]
    return files[0] if len(files) == 1 else None


def download(filename: str, accept: Callable[[Path], None]) -> None:
    """Bring a file into the cache, where `find` finds it.

    Args:
        filename: a name of `RELEASED`, `hf://ORG/REPO/FILE@REVISION`, http(s), or a URL of another
            of MMEngine's backends.
        accept: called with the downloaded file before it gets its name in torch.hub's cache; one
            for which this raises is deleted.

    Raises:
        CheckpointError: it can't be downloaded; or what `accept` raises.
        ConfigError: a package is not installed.
    """
    try:
        if filename.startswith("hf://"):
            client, arguments = _hub(filename)
            client.hf_hub_download(**arguments)
        elif is_released(filename):
            _from_drive(filename, accept)
        elif is_storage(filename):
            with atomic_write(_place(filename)) as partial:
                partial.write_bytes(get_file_backend(filename).get(filename))
                accept(partial)
        else:
            _complete(_place(filename), "", lambda partial: _from_web(filename, partial), accept)
    except (CheckpointError, ConfigError):
        raise
    except Exception as error:  # each storage's client has its own
        # the Hub's client says why in the cause
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        why = " ".join(str(cause).split())
        name = filename.partition("/")[0]
        browser = f"; download it in a browser from {RELEASED.get(name)} and give its path"
        remedy = browser if name in RELEASED else ""
        raise CheckpointError(
            f"{filename} can't be downloaded: {type(cause).__name__} {why[:400]}{remedy}"
        ) from error


def _hub(filename: str) -> tuple[Any, dict[str, Any]]:
    """Return the Hub's client, and what it calls a file."""
    require("huggingface_hub", "hub")
    import huggingface_hub

    found = HUB.fullmatch(filename)
    if not found:
        raise CheckpointError(
            f"{filename} must be hf://ORG/REPO/FILE or hf://ORG/REPO/FILE@REVISION"
        )
    return huggingface_hub, found.groupdict()


def _place(filename: str) -> Path:
    """Return where a download stays in torch.hub's cache: a file, of released models a folder."""
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    if is_released(filename):
        return cache / filename.partition("/")[0]
    # two URLs may end in the same name
    digest = digest_of(filename.encode()).hexdigest()[:8]
    return cache / f"{digest}-{Path(urlparse(filename).path).name}"


def _complete(
    place: Path, mark: str, attempt: Callable[[Path], None], accept: Callable[[Path], None]
) -> None:
    """Call `attempt` with a path next to `place`; check the file that is then there and rename it.

    One process after the other, since two would add to the same file.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    # with the same ending, by which it is read
    partial = place.with_name(f".partial-{mark}{place.name}")
    with FileLock(f"{partial}.lock"):
        if place.exists():
            return
        attempt(partial)
        try:
            accept(partial)
        except CheckpointError:
            partial.unlink()
            raise
        os.replace(partial, place)


def _from_web(url: str, partial: Path) -> None:
    """Download from a web server, trying again as long as that brings something."""
    tries = 0
    while tries < TRIES:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            return _add_to(partial, url)
        except (OSError, HTTPException) as error:
            tries = tries + 1 if not partial.exists() or partial.stat().st_size <= before else 0
            if tries == TRIES or getattr(error, "code", 500) < 500:
                raise
            time.sleep(PAUSE)


def _add_to(partial: Path, url: str) -> None:
    """Download a file, adding to what is there if the server still has the same one."""
    tag_file = partial.with_name(f"{partial.name}.tag")
    headers = {"User-Agent": "fcvit_mm"}
    # the last byte once more: where all came, none would be left to ask for
    done = max(0, partial.stat().st_size - 1) if partial.exists() and tag_file.exists() else 0
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Range": tag_file.read_text()}
    with urlopen(Request(url, headers=headers), timeout=TIMEOUT) as answer:
        if answer.status != 206:
            done = 0
            tag_file.unlink(missing_ok=True)
            if tag := answer.headers["ETag"] or answer.headers["Last-Modified"]:
                tag_file.write_text(tag)
        length = answer.headers["Content-Length"]
        total = done + int(length) if length else None
        with partial.open("r+b" if done else "wb") as file, _bar(url) as show:
            file.seek(done)
            file.truncate()
            # what has come, not as much as was asked for: nothing is lost with the connection
            while chunk := answer.read1(CHUNK):
                file.write(chunk)
                done += len(chunk)
                show(done, total)
    if total not in (None, done):
        raise ConnectionError(f"the connection broke after {done} of {total} bytes")
    tag_file.unlink(missing_ok=True)


def _from_drive(filename: str, accept: Callable[[Path], None]) -> None:
    """Download the one checkpoint of a released model's folder on Google Drive."""
    require("gdown", "hub")
    import gdown

    name, _, wanted = filename.partition("/")
    listed: Any = gdown.download_folder(url=RELEASED[name], quiet=True, skip_download=True)
    files = {Path(one.path).name: one.id for one in listed if one.path.endswith(CHECKPOINTS)}
    chosen = [wanted] if wanted else [*files]
    if len(chosen) != 1 or chosen[0] not in files:
        raise CheckpointError(
            f"{filename}: {RELEASED[name]} has {', '.join(sorted(files)) or 'no checkpoint'}; name "
            f"one as {name}/FILE"
        )

    def attempt(partial: Path) -> None:
        with _bar(filename) as show:
            gdown.download(
                id=files[chosen[0]],
                output=str(partial),
                quiet=True,
                resume=True,
                progress=show,
                timeout=TIMEOUT,
                retries=TRIES,
            )

    _complete(_place(filename) / chosen[0], files[chosen[0]], attempt, accept)


@contextmanager
def _bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show a progress bar on a terminal; it is moved by the bytes that came, of how many."""
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), DownloadColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task(name, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def compare_with_lock(filename: str, path: Path) -> None:
    """Compare a download with size and SHA-256 at its first use, or record them if this is it.

    They are in `LOCK` in the current directory, if there is one, and in torch.hub's.

    Raises:
        CheckpointError: the file is another one than at its first use.
    """
    found = {"size": path.stat().st_size, "sha256": sha256(path)}
    here = Path(LOCK)
    for lock in (*[here] * here.is_file(), Path(torch.hub.get_dir()) / LOCK):
        known = _read_lock(lock)
        if filename not in known:
            try:
                write_json(lock, dict(sorted({**known, filename: found}.items())))
            except OSError as error:
                print_log(f"{lock} can't be written: {error}", "current", logging.WARNING)
        elif known[filename] != found:
            raise CheckpointError(
                f"{filename}: {path} is another file than at its first use, which {lock} has "
                f"recorded: {known[filename]}, now {found}. Delete it to download it again; if the "
                f"new one is right, delete the entry in {lock}"
            )


def _read_lock(lock: Path) -> dict[str, Any]:
    try:
        known = json.loads(lock.read_text()) if lock.exists() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{lock} can't be read: {first_line(error)}; mend or delete it"
        ) from error
    if not isinstance(known, dict):
        raise CheckpointError(f"{lock} is no map of names; mend or delete it")
    return known
