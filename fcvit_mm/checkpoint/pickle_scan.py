"""What a checkpoint's pickle would do, found out before anything of it is done.

PyTorch's restricted unpickler runs no code, but may be told to fill the memory or to hash for years
(a tuple of two tuples of two tuples ...), and compares no checksums. Source of the format:
https://docs.pytorch.org/docs/stable/notes/serialization.html.
"""

import io
import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import torch

from ..utils.errors import RefusedError, UnknownGlobalError

# What tensors and plain containers ask for: less than PyTorch allows.
TENSORS = re.compile(
    r"torch\._utils\._rebuild_(tensor|tensor_v2|parameter|parameter_with_state)"
    r"|torch\.((?!Complex|Q)\w+Storage|storage\.(Untyped|Typed)Storage|Size|device"
    r"|u?int\d+|b?float\d+|half|double|bool)"
    r"|collections\.(OrderedDict|Counter)|builtins\.set|_codecs\.encode"
)
# How many values the tuples may have together that a pickle takes a second time, and how many long
# integers it may have: a tuple is hashed anew each time, such integers can be chosen to collide.
REPEATED = 10_000_000
LONG = 10_000


def check(path: Path, allowed: Collection[str]) -> None:
    """Scan a PyTorch file: its checksums, and what its pickles ask for.

    Args:
        path: a ZIP archive, as PyTorch 1.6 and later write, or several pickles in a row.
        allowed: globals that are allowed besides those of tensors and containers.

    Raises:
        RefusedError: it asks for another global, or for time or memory without end.
        Exception: it is damaged; ZIP archives and pickles raise errors of many classes.
    """
    with open(path, "rb") as file:
        # as PyTorch tells the two forms apart; a ZIP archive may also begin with something else
        if file.read(4) != b"PK\x03\x04":
            file.seek(0)
            # a magic number, a version, the machine, the content, the keys of the storages
            for _ in range(5):
                _check_pickle(file, allowed)
            return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise RefusedError("more memory than it has bytes: its records are compressed")
        # of what is marked as a folder PyTorch would read nothing, and take what the memory held
        if any(record.is_dir() or record.external_attr & 0x10 for record in records):
            raise ValueError("a record is marked as a folder")
        # all are 0 where torch.save was told to compute none
        has_checksums = any(record.CRC for record in records)
        if has_checksums and (name := archive.testzip()):
            raise ValueError(f"the checksum of {name} does not agree")
    # by PyTorch's own reader, which in an odd archive may find another one than ZipFile does
    pickled = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")
    _check_pickle(io.BytesIO(pickled), allowed)


def _check_pickle(file: IO[bytes], allowed: Collection[str]) -> None:
    """Follow a pickle on a stack that has the number of a tuple's values, and 1 for all else."""
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[int, int] = {}
    repeated = long = 0
    argument: Any
    for operation, argument, _ in pickletools.genops(file):
        kind = operation.name
        if kind == "GLOBAL":
            name = _current_name(*argument.split(" ", 1))
            if name not in allowed and not TENSORS.fullmatch(name):
                raise UnknownGlobalError(name)
        long += kind == "LONG1"
        if kind == "MARK":
            marks.append(len(stack))
        elif kind in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif kind in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
            repeated += memo[argument]
        else:
            before = operation.stack_before
            is_marked = pickletools.markobject in before
            start = marks.pop() if is_marked else len(stack) - len(before)
            size = 1 + sum(stack[start:]) if kind.startswith("TUPLE") else 1
            # what lies below a mark is the container that is added to
            below = before.index(pickletools.markobject) if is_marked else 0
            del stack[start - below :]
            stack += [size] * len(operation.stack_after)
        if repeated > REPEATED or long > LONG:
            raise RefusedError("time without end: for tuples or integers that take years to hash")


def _current_name(module: str, name: str) -> str:
    """Return the name of a global as Python 3 has it."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"
