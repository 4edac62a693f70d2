"""Unpickle what checkpoints hold, and nothing else: an interpreter of its own, with a budget.

It knows the operations of protocol 2 that PyTorch writes, and calls none but the methods below,
which take plain values and check them. Only strings and integers are keys, so nothing else is ever
hashed; tensors and arrays are made of bytes that the file has. Python's own unpickler, and
PyTorch's restricted one, call constructors that trust their arguments.
"""

import math
import pickletools
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from argparse import Namespace
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

from ..utils.errors import RefusedError, UnknownGlobalError

# How many operations and values taken a second time a file may have: seconds, and 5 times what
# the largest checkpoints have.
VALUES = 1_000_000
# How much larger than its file tensors and arrays may be together; some share their values.
SHARED = 4
# Bytes that any file may take, whatever its size, and that an object takes at least.
SMALL, OBJECT = 64 * 2**20, 1024
NAME_LENGTH = 1000
DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
}  # fmt: skip
NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
NUMPY_CODES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}


class StorageType(NamedTuple):
    """A storage's type, as a pickle names it."""

    dtype: torch.dtype


class Storage(NamedTuple):
    """A storage that was read from the file."""

    data: torch.UntypedStorage
    dtype: torch.dtype


class Unpickler:
    """Read one or several pickles of a file within one budget.

    Args:
        size: of the file, in bytes.
        read_storage: called with key, dtype, number of bytes and location; returns the storage.
    """

    def __init__(
        self,
        size: int,
        read_storage: Callable[[str, torch.dtype, int, str], torch.UntypedStorage] | None = None,
    ) -> None:
        self.read_storage = read_storage
        self.values, self.bytes = VALUES, SHARED * size + SMALL
        self.functions: dict[str, Callable] = {
            "collections.OrderedDict": self._ordered_dict,
            "collections.Counter": self._counter,
            "builtins.set": self._set,
            "builtins.bytes": lambda: b"",
            "builtins.getattr": self._history_statistic,
            "_codecs.encode": self._encode,
            "torch.Size": lambda sizes: torch.Size(_integers(sizes)),
            "torch.device": torch.device,
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": self._parameter,
            "torch._utils._rebuild_parameter_with_state": self._parameter,
            "numpy.dtype": self._numpy_dtype,
            # NumPy 1 and 2 write different module names
            **dict.fromkeys([f"{core}._reconstruct" for core in NUMPY], self._empty_array),
            **dict.fromkeys([f"{core}.scalar" for core in NUMPY], self._numpy_scalar),
        }
        self.globals: dict[str, Any] = {
            **self.functions,
            "argparse.Namespace": Namespace,
            "mmengine.logging.history_buffer.HistoryBuffer": HistoryBuffer,
            "numpy.ndarray": np.ndarray,
            "torch.storage.UntypedStorage": StorageType(torch.uint8),
            **{f"torch.{name}Storage": StorageType(dtype) for name, dtype in DTYPES.items()},
            **{str(dtype): dtype for dtype in DTYPES.values()},
        }
        # what the program around us allows may be called with anything; ours go before it
        allowed = map(_named, torch.serialization.get_safe_globals())
        theirs = {name: known for name, known in allowed if name not in self.globals}
        self.allowed = list(theirs.values())
        self.globals |= theirs

    def load(self, file: Any) -> Any:
        """Read a pickle; the file is then at its end.

        Raises:
            RefusedError: it asks for something that weights don't need, or exceeds the budget.
            Exception: it is damaged.
        """
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.fetched: set[int] = set()
        for operation, argument, _ in pickletools.genops(file):
            self._spend(values=1)
            if operation.name == "STOP":
                return self.stack.pop()
            if operation.name not in OPERATIONS:
                raise RefusedError(f"a pickle with the operation {operation.name}")
            OPERATIONS[operation.name](self, argument)
        raise ValueError("a pickle without an end")

    def _spend(self, values: int = 0, size: int = 0) -> None:
        """Take from the budget, before anything is made."""
        self.values -= values
        self.bytes -= size
        if self.values < 0:
            raise RefusedError(f"more than {VALUES} values, or time without end")
        if self.bytes < 0:
            raise RefusedError(f"tensors and arrays of more than {SHARED} times its size")

    # ---------------------------------------------------------------------------- operations

    def _push(self, value: Any) -> None:
        # lone surrogates can't be printed
        is_text = isinstance(value, str) and not value.isascii()
        self.stack.append(value.encode("utf-8", "replace").decode() if is_text else value)

    def _pop(self, n: int) -> list[Any]:
        if len(self.stack) < n:
            raise ValueError("a pickle that takes more than it has")
        values = self.stack[-n:]
        del self.stack[-n:]
        return values

    def _pop_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _changeable(self) -> Any:
        """Return the value that is added to; one that is already in use would grow unseen."""
        value = self.stack[-1]
        if id(value) in self.fetched:
            raise RefusedError("a container that holds itself")
        return value

    def _extend(self, values: list[Any]) -> None:
        container = self._changeable()
        if type(container) is not list:
            raise ValueError("a pickle that appends to what is no list")
        container += values

    def _update(self, values: list[Any]) -> None:
        container = self._changeable()
        if type(container) not in (dict, OrderedDict):
            raise ValueError("a pickle that sets items of what is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            container[_key(key)] = value

    def _put(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def _fetch(self, number: int) -> None:
        """Push a value again, for as much as it holds: references may double it at every step."""
        value = self.memo[number]
        self.fetched.add(id(value))
        left = [value]
        while left:
            node = left.pop()
            if isinstance(node, Namespace):
                node = vars(node)
            if isinstance(node, dict | list | tuple | set):
                self._spend(values=1 + len(node))
                left += node.values() if isinstance(node, dict) else node
        self.stack.append(value)

    def _global(self, argument: str) -> None:
        module, name = argument.split(" ", 1)
        # as Python 3 has it
        if (module, name) in NAME_MAPPING:
            module, name = NAME_MAPPING[module, name]
        full = f"{IMPORT_MAPPING.get(module, module)}.{name}"
        if full not in self.globals:
            raise UnknownGlobalError(full)
        self.stack.append(self.globals[full])

    def _reduce(self, _: None) -> None:
        function, arguments = self._pop(2)
        if not self._is_one_of(function, [*self.functions.values(), *self.allowed]):
            raise RefusedError(f"a call of {type(function).__name__}")
        self._spend(size=OBJECT)
        self.stack.append(function(*arguments))

    def _new(self, _: None) -> None:
        known, arguments = self._pop(2)
        self._spend(size=OBJECT)
        if self._is_one_of(known, [Namespace, HistoryBuffer]):
            self.stack.append(known())
        elif self._is_one_of(known, self.allowed):
            self.stack.append(known.__new__(known, *arguments))
        else:
            raise RefusedError(f"an object of {type(known).__name__}")

    @staticmethod
    def _is_one_of(value: Any, allowed: list[Any]) -> bool:
        # methods are new objects each time, and other values may compare in any way
        return callable(value) and any(value == one for one in allowed)

    def _build(self, _: None) -> None:
        """Give a value its state: of what we know only what it needs, not the rest."""
        (state,) = self._pop(1)
        if isinstance(self.stack[-1], np.dtype):
            # one object for all of a type, which gets no state: others may have fetched it
            if state[1] not in ("<", "|", "="):
                raise ValueError("arrays of another byte order")
            return
        value = self._changeable()
        if type(value) is OrderedDict:
            if metadata := _module_versions(state):
                value._metadata = metadata  # type: ignore[attr-defined]
        elif type(value) is Namespace:
            vars(value).update((k, v) for k, v in state.items() if not str(k).startswith("_"))
        elif type(value) is HistoryBuffer:
            _fill_history(value, state)
        elif type(value) is np.ndarray:
            self._fill_array(value, *state)
        elif not self._is_one_of(type(value), self.allowed):
            raise RefusedError(f"a state of {type(value).__name__}")
        elif hasattr(value, "__setstate__"):
            value.__setstate__(state)
        else:
            vars(value).update(state)

    def _persistent(self, _: None) -> None:
        ((kind, storage_type, key, location, number, *view),) = self._pop(1)
        if kind != "storage" or type(storage_type) is not StorageType or any(view):
            raise RefusedError("something that is no storage where one belongs")
        # the key in the file is text, whatever it was
        if type(key) not in (str, int) or type(number) is not int or number < 0:
            raise ValueError("a storage without key or size")
        if not re.fullmatch(r"(?!meta)[a-z]+(:\d+)?", location):
            raise ValueError("a storage without a place")
        if self.read_storage is None:
            raise ValueError("a storage where none belongs")
        dtype = storage_type.dtype
        data = self.read_storage(str(key), dtype, number * dtype.itemsize, location)
        self.stack.append(Storage(data, dtype))

    # --------------------------------------------------------------------------------- calls

    def _ordered_dict(self, items: Any = ()) -> OrderedDict:
        pairs = items.items() if type(items) is dict else items
        return OrderedDict((_key(key), value) for key, value in pairs)

    def _counter(self, items: Any = ()) -> Counter:
        return Counter(self._ordered_dict(items))

    def _set(self, items: Any = ()) -> set:
        return {_key(item) for item in items}

    def _history_statistic(self, owner: Any, name: str) -> None:
        """Stand in for the `getattr` by which old HistoryBuffers name their four statistics."""
        if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
            raise UnknownGlobalError(f"getattr of {name!r}")

    def _encode(self, text: str, encoding: str) -> bytes:
        """Return bytes, which protocol 2 writes as text."""
        if type(text) is not str or encoding not in ("latin1", "latin-1"):
            raise RefusedError(f"a text as {str(encoding)[:20]}")
        self._spend(size=len(text))
        return text.encode("latin-1")

    def _tensor(
        self, storage: Storage, offset: int, size: Any, stride: Any, grad: bool = False, *_: Any
    ) -> Tensor:
        if type(storage) is not Storage:
            raise RefusedError("a tensor of something that is no storage")
        size, stride, (offset,) = _integers(size), _integers(stride), _integers((offset,))
        self._spend(size=math.prod(size) * storage.dtype.itemsize)
        tensor = torch.empty(0, dtype=storage.dtype, device=storage.data.device)
        # refuses what lies beyond the storage
        tensor.set_(storage.data, offset, size, stride)
        return tensor.requires_grad_(grad is True)

    def _parameter(self, data: Tensor, grad: bool, *_: Any) -> torch.nn.Parameter:
        return torch.nn.Parameter(data, requires_grad=grad is True)

    def _numpy_dtype(self, code: str, *_: Any) -> np.dtype:
        if code not in NUMPY_CODES:
            raise RefusedError(f"an array of {str(code)[:20]}, which are no numbers")
        return np.dtype(code)

    def _empty_array(self, kind: Any, *_: Any) -> np.ndarray:
        if kind is not np.ndarray:
            raise RefusedError("an array of a kind of its own")
        return np.empty(0)

    def _fill_array(
        self, array: np.ndarray, _: int, shape: Any, dtype: Any, order: Any, data: Any
    ) -> None:
        """Give an array exactly the numbers that its bytes are."""
        if not isinstance(dtype, np.dtype) or type(data) is not bytes:
            raise RefusedError("an array without type or values")
        shape = _integers(shape)
        if math.prod(shape) * dtype.itemsize != len(data):
            raise RefusedError("an array of another size than its values have")
        self._spend(size=len(data))
        array.__setstate__((1, shape, dtype, order is True, data))  # type: ignore[arg-type]

    def _numpy_scalar(self, dtype: np.dtype, data: bytes) -> Any:
        if not isinstance(dtype, np.dtype) or type(data) is not bytes:
            raise ValueError("a NumPy number without type or value")
        (value,) = np.frombuffer(data, dtype)
        return value


OPERATIONS: dict[str, Callable[[Unpickler, Any], None]] = {
    "PROTO": lambda self, _: None,
    "NONE": lambda self, _: self._push(None),
    "NEWTRUE": lambda self, _: self._push(True),
    "NEWFALSE": lambda self, _: self._push(False),
    "EMPTY_LIST": lambda self, _: self._push([]),
    "EMPTY_DICT": lambda self, _: self._push({}),
    "EMPTY_TUPLE": lambda self, _: self._push(()),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"),
        Unpickler._push,
    ),
    "MARK": lambda self, _: self.marks.append(len(self.stack)),
    "TUPLE": lambda self, _: self._push(tuple(self._pop_mark())),
    "TUPLE1": lambda self, _: self._push(tuple(self._pop(1))),
    "TUPLE2": lambda self, _: self._push(tuple(self._pop(2))),
    "TUPLE3": lambda self, _: self._push(tuple(self._pop(3))),
    "APPEND": lambda self, _: self._extend(self._pop(1)),
    "APPENDS": lambda self, _: self._extend(self._pop_mark()),
    "SETITEM": lambda self, _: self._update(self._pop(2)),
    "SETITEMS": lambda self, _: self._update(self._pop_mark()),
    "BINPUT": Unpickler._put,
    "LONG_BINPUT": Unpickler._put,
    "BINGET": Unpickler._fetch,
    "LONG_BINGET": Unpickler._fetch,
    "GLOBAL": Unpickler._global,
    "REDUCE": Unpickler._reduce,
    "NEWOBJ": Unpickler._new,
    "BUILD": Unpickler._build,
    "BINPERSID": Unpickler._persistent,
}


def _key(key: Any) -> str | int:
    """Return a key if it is a short printable text or an integer that is its own hash."""
    if type(key) is str:
        if len(key) > NAME_LENGTH or not key.isprintable():
            raise RefusedError("a name that is too long or can't be printed")
    elif type(key) is not int or abs(key) >= 2**60:
        raise RefusedError("a key that is neither a text nor a number")
    return key


def _integers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or any(type(v) is not int or v < 0 for v in values):
        raise ValueError("sizes that are no numbers")
    return tuple(values)


def _named(known: Any) -> tuple[str, Any]:
    """Return a safe global of PyTorch with the name by which a pickle asks for it."""
    if isinstance(known, tuple):
        return known[1], known[0]
    return f"{known.__module__}.{known.__qualname__}", known


def _module_versions(state: Any) -> OrderedDict:
    """Return the versions of modules, by which they translate their weights."""
    versions = state.get("_metadata") if isinstance(state, dict) else None
    return OrderedDict(
        (name, {k: v for k, v in one.items() if type(v) in (int, bool)})
        for name, one in (versions.items() if isinstance(versions, dict) else ())
        if type(name) is str and isinstance(one, dict)
    )


def _fill_history(history: HistoryBuffer, state: dict) -> None:
    values, counts, most = (state[k] for k in ("_log_history", "_count_history", "max_length"))
    are_arrays = type(values) is np.ndarray and type(counts) is np.ndarray
    if not are_arrays or values.shape != counts.shape or values.ndim != 1 or type(most) is not int:
        raise ValueError("a history of values that is none")
    history._log_history, history._count_history, history.max_length = values, counts, most
