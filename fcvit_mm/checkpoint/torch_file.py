"""Read a PyTorch file: its checksums, the pickle in it, and exactly the values that it holds.

Source of the format: https://docs.pytorch.org/docs/stable/notes/serialization.html.
"""

import io
import mmap
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import UntypedStorage
from torch.serialization import _get_restore_location

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
    place = _get_restore_location(map_location)
    with open(path, "rb") as file:
        # as PyTorch tells the two forms apart; a ZIP archive may also begin with something else
        is_archive = file.read(4) == b"PK\x03\x04"
    return (_read_archive if is_archive else _read_pickles)(path, place)


def _read_archive(path: Path, place: Any) -> Any:
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: record for record in archive.infolist()}
        size = path.stat().st_size
        if sum(record.file_size for record in archive.infolist()) > size:
            raise RefusedError("more memory than it has bytes: its records are compressed")
        if not any(record.CRC for record in records.values()):
            # torch.save was told to compute none
            for record in records.values():
                record.CRC = None  # type: ignore[assignment]
        (pickled,) = (name for name in records if name.partition("/")[2] == "data.pkl")
        folder = pickled.partition("/")[0]
        order = f"{folder}/byteorder"
        if order in records and archive.read(order).decode() != sys.byteorder:
            raise ValueError("written on a machine of another byte order")
        loaded: dict[str, UntypedStorage] = {}

        def read_storage(key: str, number: int, location: str, _: int) -> UntypedStorage:
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

        return Unpickler(io.BytesIO(archive.read(pickled)), size, read_storage).load()


def _read_pickles(path: Path, place: Any) -> Any:
    """Read a magic number, a version, the machine, the content, the keys of the storages; values.

    Storages are made when the content asks for them and filled afterwards, all or none.
    """
    size = path.stat().st_size
    with open(path, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file:
        asked: dict[str, tuple[UntypedStorage, UntypedStorage, int]] = {}

        def read_storage(key: str, number: int, location: str, itemsize: int) -> UntypedStorage:
            if key not in asked:
                if number + sum(storage.nbytes() for storage, _, _ in asked.values()) > size:
                    raise ValueError("its storages have more values than the file")
                storage = UntypedStorage(number)
                asked[key] = storage, place(storage, location), itemsize
            storage, placed, _ = asked[key]
            if storage.nbytes() != number:
                raise ValueError(f"storage {key} has two sizes")
            return placed

        unpickler = Unpickler(file, size, read_storage)
        if unpickler.load() != MAGIC:
            raise ValueError("no PyTorch file")
        unpickler.load()
        if unpickler.load()["little_endian"] is not (sys.byteorder == "little"):
            raise ValueError("written on a machine of another byte order")
        content, keys = unpickler.load(), unpickler.load()
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
