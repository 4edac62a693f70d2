"""Unpickle what checkpoints hold, and nothing else, within a budget.

Of Python's own unpickler in Python this takes the operations of protocol 2 that make plain values,
and the rest is here. It calls nothing but the methods below, which take plain values and check
them. Only strings and integers are keys, so nothing else is ever hashed; tensors and arrays are
made of bytes that the file has. Python's unpickler in C, and PyTorch's restricted one, call
constructors that trust their arguments.
"""

import math
import pickle
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from argparse import Namespace
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

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
# What makes plain values, as Python has it.
PLAIN = [
    *(pickle.PROTO, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BINFLOAT, pickle.LONG1),
    *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.SHORT_BINSTRING, pickle.MARK),
    *(pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.EMPTY_TUPLE),
    *(pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.GLOBAL, pickle.BINPERSID),
]
DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
}  # fmt: skip
NUMPY_CODES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}


class Unpickler(pickle._Unpickler):
    """Read one or several pickles of a file within one budget.

    Args:
        file: the pickles, one after the other.
        size: of the whole file, in bytes.
        read_storage: called with key, number of bytes, location and the size of a value; returns
            the storage.
    """

    def __init__(
        self,
        file: Any,
        size: int,
        read_storage: Callable[[str, int, str, int], torch.UntypedStorage],
    ) -> None:
        # as Python 2's bytes are no text
        super().__init__(file, encoding="latin1")
        self.read, self.readline = file.read, file.readline
        self.read_storage = read_storage
        self.values, self.bytes = VALUES, SHARED * size + SMALL
        functions: dict[str, Callable] = {
            "collections.OrderedDict": _ordered_dict,
            "collections.Counter": lambda items=(): Counter(_ordered_dict(items)),
            "builtins.set": lambda items=(): {_key(item) for item in items},
            "builtins.bytes": lambda: b"",
            "builtins.getattr": _history_statistic,
            "_codecs.encode": self._encode,
            "torch.Size": lambda sizes: torch.Size(_integers(sizes)),
            "torch.device": torch.device,
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": _parameter,
            "torch._utils._rebuild_parameter_with_state": _parameter,
            "numpy.dtype": _numpy_dtype,
            # NumPy 1 and 2 write different module names
            "numpy.core.multiarray._reconstruct": _empty_array,
            "numpy._core.multiarray._reconstruct": _empty_array,
            "numpy.core.multiarray.scalar": _numpy_scalar,
            "numpy._core.multiarray.scalar": _numpy_scalar,
        }
        classes = {
            "argparse.Namespace": Namespace,
            "mmengine.logging.history_buffer.HistoryBuffer": HistoryBuffer,
        }
        # what the program around us allows may be called with anything; ours go before it
        allowed = map(_named, torch.serialization.get_safe_globals())
        theirs = {name: known for name, known in allowed if name not in functions | classes}
        self.globals: dict[str, Any] = {
            **theirs,
            **functions,
            **classes,
            "numpy.ndarray": np.ndarray,
            "torch.storage.UntypedStorage": torch.uint8,
            **{f"torch.{name}Storage": dtype for name, dtype in DTYPES.items()},
            **{str(dtype): dtype for dtype in DTYPES.values()},
        }
        # by identity, since values may compare in any way
        self.called = {id(known) for known in (*functions.values(), *theirs.values())}
        self.made = {id(known) for known in (*classes.values(), *theirs.values())}
        self.built = {id(known) for known in theirs.values()}

    def load(self) -> Any:
        """Read a pickle; the file is then at its end.

        Raises:
            RefusedError: it asks for something that weights don't need, or exceeds the budget.
            Exception: it is damaged.
        """
        self.stack: list[Any] = []
        self.append = self.stack.append
        self.metastack: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.fetched: set[int] = set()
        while operation := self.read(1):
            self._spend(values=1)
            if operation == pickle.STOP:
                return self.stack.pop()
            if operation[0] not in self.dispatch:
                raise ValueError(f"the operation {operation!r}, which PyTorch never writes")
            self.dispatch[operation[0]](self)
        raise EOFError("a pickle without an end")

    def _spend(self, values: int = 0, size: int = 0) -> None:
        """Take from the budget, before anything is made."""
        self.values -= values
        self.bytes -= size
        if self.values < 0:
            raise RefusedError(f"more than {VALUES} values, or time without end")
        if self.bytes < 0:
            raise RefusedError(f"tensors and arrays of more than {SHARED} times its size")

    # ---------------------------------------------------------------------------- operations

    def _pop(self, n: int) -> list[Any]:
        values = self.stack[-n:]
        del self.stack[-n:]
        return values

    def _text(self) -> None:
        # lone surrogates can't be printed
        size = int.from_bytes(self.read(4), "little")
        self.append(self.read(size).decode("utf-8", "replace"))

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

    def _fetch(self, bytes_of_number: int) -> None:
        """Push a value again, for as much as it holds: references may double it at every step."""
        value = self.memo[int.from_bytes(self.read(bytes_of_number), "little")]
        self.fetched.add(id(value))
        left = [value]
        while left:
            node = left.pop()
            if isinstance(node, Namespace):
                node = vars(node)
            if isinstance(node, dict | list | tuple | set):
                self._spend(values=1 + len(node))
                left += node.values() if isinstance(node, dict) else node
        self.append(value)

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a global; the names are those that Python 2 or 3 has."""
        module, name = NAME_MAPPING.get((module, name), (module, name))
        full = f"{IMPORT_MAPPING.get(module, module)}.{name}"
        if full not in self.globals:
            raise UnknownGlobalError(full)
        return self.globals[full]

    def _call(self) -> None:
        function, arguments = self._pop(2)
        if id(function) not in self.called:
            raise RefusedError(f"a call of {type(function).__name__}")
        self._spend(size=OBJECT)
        self.append(function(*arguments))

    def _make(self) -> None:
        known, arguments = self._pop(2)
        if id(known) not in self.made:
            raise RefusedError(f"an object of {type(known).__name__}")
        self._spend(size=OBJECT)
        # ours are whole with their defaults, whatever the arguments
        is_theirs = id(known) in self.built
        self.append(known.__new__(known, *arguments) if is_theirs else known())

    def _build(self) -> None:
        """Give a value its state: of what we know only what it needs, not the rest."""
        state = self.stack.pop()
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
        elif id(type(value)) not in self.built:
            raise RefusedError(f"a state of {type(value).__name__}")
        elif hasattr(value, "__setstate__"):
            value.__setstate__(state)
        else:
            vars(value).update(state)

    def persistent_load(self, pid: Any) -> Tensor:
        """Return the storage that a tensor asks for, as a tensor of all its values."""
        kind, dtype, key, location, number, *view = pid
        if kind != "storage" or type(dtype) is not torch.dtype or any(view):
            raise RefusedError("something that is no storage where one belongs")
        # the key in the file is text, whatever it was
        if type(key) not in (str, int) or type(number) is not int or number < 0:
            raise ValueError("a storage without key or size")
        if not re.fullmatch(r"(?!meta)[a-z]+(:\d+)?", location):
            raise ValueError("a storage without a place")
        storage = self.read_storage(str(key), number * dtype.itemsize, location, dtype.itemsize)
        return torch.empty(0, dtype=dtype, device=storage.device).set_(storage)

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **{code[0]: pickle._Unpickler.dispatch[code[0]] for code in PLAIN},
        pickle.BINUNICODE[0]: _text,
        pickle.APPEND[0]: lambda self: self._extend(self._pop(1)),
        pickle.APPENDS[0]: lambda self: self._extend(self.pop_mark()),
        pickle.SETITEM[0]: lambda self: self._update(self._pop(2)),
        pickle.SETITEMS[0]: lambda self: self._update(self.pop_mark()),
        pickle.BINGET[0]: lambda self: self._fetch(1),
        pickle.LONG_BINGET[0]: lambda self: self._fetch(4),
        pickle.REDUCE[0]: _call,
        pickle.NEWOBJ[0]: _make,
        pickle.BUILD[0]: _build,
    }

    # ----------------------------------------------------------- calls that take from the budget

    def _encode(self, text: str, encoding: str) -> bytes:
        """Return bytes, which protocol 2 writes as text."""
        if type(text) is not str or encoding not in ("latin1", "latin-1"):
            raise RefusedError(f"a text as {str(encoding)[:20]}")
        self._spend(size=len(text))
        return text.encode("latin-1")

    def _tensor(
        self, storage: Tensor, offset: int, size: Any, stride: Any, grad: bool = False, *_: Any
    ) -> Tensor:
        if type(storage) is not Tensor:
            raise RefusedError("a tensor of something that is no storage")
        size, stride, (offset,) = _integers(size), _integers(stride), _integers((offset,))
        self._spend(size=math.prod(size) * storage.dtype.itemsize)
        # refuses what lies beyond the storage
        tensor = torch.empty_like(storage[:0]).set_(storage.untyped_storage(), offset, size, stride)
        return tensor.requires_grad_(grad is True)

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


def _ordered_dict(items: Any = ()) -> OrderedDict:
    pairs = items.items() if type(items) is dict else items
    return OrderedDict((_key(key), value) for key, value in pairs)


def _history_statistic(owner: Any, name: str) -> None:
    """Stand in for the `getattr` by which old HistoryBuffers name their four statistics."""
    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise UnknownGlobalError(f"getattr of {name!r}")


def _parameter(data: Tensor, grad: bool, *_: Any) -> torch.nn.Parameter:
    return torch.nn.Parameter(data, requires_grad=grad is True)


def _numpy_dtype(code: str, *_: Any) -> np.dtype:
    if code not in NUMPY_CODES:
        raise RefusedError(f"an array of {str(code)[:20]}, which are no numbers")
    return np.dtype(code)


def _empty_array(kind: Any, *_: Any) -> np.ndarray:
    if kind is not np.ndarray:
        raise RefusedError("an array of a kind of its own")
    return np.empty(0)


def _numpy_scalar(dtype: np.dtype, data: bytes) -> Any:
    if not isinstance(dtype, np.dtype) or type(data) is not bytes:
        raise ValueError("a NumPy number without type or value")
    (value,) = np.frombuffer(data, dtype)
    return value


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
