"""Read a PyTorch file: its checksums, the pickle in it, and exactly the values that it holds.

Source of the format: https://docs.pytorch.org/docs/stable/notes/serialization.html.
"""

import io
import mmap
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..utils.errors import RefusedError
from .unpickler import Unpickler

CHUNK = 2**24
MAGIC = 0x1950A86A20F9469CFC6C


def read(path: Path, map_location: Any = None) -> Any:
    """Read a ZIP archive, as PyTorch 1.6 and later write, or several pickles in a row.

    Raises:
        RefusedError: see `Unpickler.load`; or its records stand for more bytes than it has.
        Exception: it is damaged; ZIP archives and pickles raise errors of many classes.
    """
    with open(path, "rb") as file:
        # as PyTorch tells the two forms apart; a ZIP archive may also begin with something else
        is_archive = file.read(4) == b"PK\x03\x04"
    return (_read_archive if is_archive else _read_pickles)(path, _placer(map_location))


Placer = Callable[[torch.UntypedStorage, str], torch.UntypedStorage]


def _placer(map_location: Any) -> Placer:
    """Return what puts a storage where `map_location`, as in `torch.load`, wants it."""
    restore = torch.serialization.default_restore_location
    if map_location is None:
        return restore
    if isinstance(map_location, dict):
        return lambda storage, place: restore(storage, map_location.get(place, place))
    if callable(map_location):
        return lambda storage, place: map_location(storage, place) or restore(storage, place)
    return lambda storage, _: restore(storage, str(map_location))


def _read_archive(path: Path, place: Placer) -> Any:
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: record for record in archive.infolist()}
        size = path.stat().st_size
        if sum(record.file_size for record in archive.infolist()) > size:
            raise RefusedError("more memory than it has bytes: its records are compressed")
        if not any(record.CRC for record in records.values()):
            # torch.save was told to compute none
            for record in records.values():
                record.CRC = None  # type: ignore[assignment]
        (folder,) = {
            name.partition("/")[0] for name in records if name.partition("/")[2] == "data.pkl"
        }
        order = f"{folder}/byteorder"
        if order in records and archive.read(order).decode() != sys.byteorder:
            raise ValueError("written on a machine of another byte order")
        loaded: dict[str, torch.UntypedStorage] = {}

        def read_storage(
            key: str, dtype: torch.dtype, number: int, location: str
        ) -> torch.UntypedStorage:
            record = records[f"{folder}/data/{key}"]
            if record.file_size != number:
                raise ValueError(f"storage {key} has another size than the file says")
            if key not in loaded:
                values = torch.empty(number, dtype=torch.uint8)
                left = values.numpy().data
                stream: Any
                with archive.open(record) as stream:
                    while count := stream.readinto(left[:CHUNK]):
                        left = left[count:]
                if len(left):
                    raise ValueError(f"storage {key} ends early")
                loaded[key] = place(values.untyped_storage(), location)
            return loaded[key]

        pickled = io.BytesIO(archive.read(f"{folder}/data.pkl"))
        return Unpickler(size, read_storage).load(pickled)


def _read_pickles(path: Path, place: Placer) -> Any:
    """Read a magic number, a version, the machine, the content, the keys of the storages; values.

    Storages are made when the content asks for them and filled afterwards, all or none.
    """
    size = path.stat().st_size
    with open(path, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file:
        asked: dict[str, tuple[torch.UntypedStorage, torch.UntypedStorage, int]] = {}
        total = 0

        def read_storage(
            key: str, dtype: torch.dtype, number: int, location: str
        ) -> torch.UntypedStorage:
            nonlocal total
            if key not in asked:
                total += number
                if total > size:
                    raise ValueError("its storages have more values than the file")
                storage = torch.UntypedStorage(number)
                asked[key] = storage, place(storage, location), dtype.itemsize
            storage, placed, _ = asked[key]
            if storage.nbytes() != number:
                raise ValueError(f"storage {key} has two sizes")
            return placed

        unpickler = Unpickler(size, read_storage)
        if unpickler.load(file) != MAGIC:
            raise ValueError("no PyTorch file")
        unpickler.load(file)
        machine = unpickler.load(file)
        if machine["little_endian"] is not (sys.byteorder == "little"):
            raise ValueError("written on a machine of another byte order")
        content, keys = unpickler.load(file), unpickler.load(file)
        if len(keys) != len(asked) or set(map(str, keys)) != asked.keys():
            raise ValueError("its storages are others than its tensors ask for")
        for key in map(str, keys):
            storage, placed, itemsize = asked[key]
            if int.from_bytes(file.read(8), sys.byteorder) * itemsize != storage.nbytes():
                raise ValueError(f"storage {key} has another size than the file says")
            if storage.nbytes():
                values = torch.empty(0, dtype=torch.uint8).set_(storage)
                values.numpy().data[:] = file.read(storage.nbytes())
                if placed is not storage:
                    placed.copy_(storage)
        return content
