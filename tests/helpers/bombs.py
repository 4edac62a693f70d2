"""Files of a few bytes that ask for memory or time without end, or for objects that they forge."""

import io
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

PICKLE = b"\x80\x02"


def archive(path: Path, pickled: bytes, **storages: bytes) -> None:
    """A file such as torch.save writes, of a pickle that was written by hand."""
    with zipfile.ZipFile(path, "w") as file:
        for name, content in (("data.pkl", pickled), ("version", "3\n"), ("byteorder", "little")):
            file.writestr(f"a/{name}", content)
        for key, values in storages.items():
            file.writestr(f"a/data/{key.removeprefix('_')}", values)


def known(name: str) -> bytes:
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode()


def number(value: int) -> bytes:
    return b"\x8a\x0f" + value.to_bytes(15, "little")


def text(value: str) -> bytes:
    content = value.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def items(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def call(name: str, *arguments: bytes) -> bytes:
    return known(name) + items(*arguments) + b"R"


def holding(value: bytes, before: bytes = b"") -> bytes:
    """A pickle of a dict with one value."""
    return PICKLE + before + b"}" + text("w") + value + b"s."


def dropped(value: bytes, n: int = 0) -> bytes:
    """Make and keep a value below the content, which is what stays on top."""
    return value + b"q" + bytes([n])


def repeated(value: bytes, times: int) -> bytes:
    return b"](" + value * times + b"e"


GIGABYTES = number(3 * 2**30)
DTYPE = call("numpy.dtype", text("f8"), b"\x89", b"\x88")
RECONSTRUCT = "numpy._core.multiarray._reconstruct"
ARRAY = call(RECONSTRUCT, known("numpy.ndarray"), items(b"K\x00"), text("b"))
ADDRESS = call("_codecs.encode", text("\x10\x20\x30\x40\x50\x7f\x00\x00"), text("latin1"))
MEGABYTE = text("a" * 2**20)
ENCODE = "_codecs.encode"


def state(shape: bytes, data: bytes, dtype: bytes = DTYPE) -> bytes:
    """A NumPy array's."""
    return items(b"K\x01", items(shape), dtype, b"\x89", data) + b"b"


def storage(
    size: int, key: str = "0", kind: str = "torch.FloatStorage", place: str = "cpu"
) -> bytes:
    return items(text("storage"), known(kind), text(key), text(place), number(size)) + b"Q"


def tensor(stored: bytes, offset: int, size: int, stride: int = 1) -> bytes:
    sizes = items(number(size)), items(number(stride))
    hooks = known("collections.OrderedDict") + b")R"
    return call("torch._utils._rebuild_tensor_v2", stored, number(offset), *sizes, b"\x89", hooks)


def nested(levels: int, pair: bytes = b"h%ch%c\x86q%c") -> bytes:
    """A tuple of two tuples of two tuples ..., in memo `levels`."""
    return b")q\x00" + b"".join(pair % (i, i, i + 1) for i in range(levels))


def colliding(amount: int) -> bytes:
    """A dict whose keys have one and the same hash."""
    keys = (number(i * (2**61 - 1)) + b"N" for i in range(amount))
    return PICKLE + b"}(" + b"".join(keys) + b"u."


def compressed(path: Path) -> None:
    torch.save({"w": torch.zeros(50_000_000)}, path)
    with zipfile.ZipFile(path) as file:
        records = {record.filename: file.read(record) for record in file.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in records.items():
            file.writestr(name, content)


def overlapping(path: Path) -> None:
    """An archive of many names for one record of 10 MB."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("a/data.pkl", holding(b"N"))
        file.writestr("a/data/0", bytes(10_000_000))
        record = file.getinfo("a/data/0")
        file.filelist += [record] * 1000
    path.write_bytes(content.getvalue())


def old(path: Path, **content: object) -> bytes:
    """The form before PyTorch 1.6."""
    torch.save(content or {"w": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    return path.read_bytes()


def declared(path: Path) -> None:
    """That form's pickle says how large a storage is."""
    size = b"J" + (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(old(path).replace(b"M\xe8\x03", size))


def emptied(path: Path) -> None:
    """That form, and no values: the list of storages is empty."""
    content = old(path, w=torch.zeros(10))
    end = content.rindex(PICKLE)
    path.write_bytes(content[:end] + PICKLE + b"].")


def disguised(path: Path) -> None:
    """A pickle that ends as a ZIP archive."""
    archive(path, PICKLE + b"}.")
    path.write_bytes(PICKLE + call("__builtin__.bytearray", GIGABYTES) + b"." + path.read_bytes())


def saved(make: Callable[[], object]) -> Callable[[Path], None]:
    return lambda path: torch.save({"w": make()}, path)


def quantized(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"w": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, path)


def zipped(value: bytes, before: bytes = b"", **storages: bytes) -> Callable[[Path], None]:
    return lambda path: archive(path, holding(value, before), **storages)


def raw(pickled: bytes) -> Callable[[Path], None]:
    return lambda path: archive(path, PICKLE + pickled + b".")


LIST = b"](" + b"K\x01" * 100_000 + b"e"
DAMAGED = "damaged or not a PyTorch checkpoint"
# What a file is made by, and a part of the sentence by which it is refused.
BOMBS: dict[str, tuple[Callable[[Path], object], str]] = {
    # calls that fill the memory
    "bytearray": (zipped(call("builtins.bytearray", GIGABYTES)), "asks for builtins.bytearray"),
    "plain": (
        lambda path: path.write_bytes(PICKLE + call("__builtin__.bytearray", GIGABYTES) + b"."),
        "asks for builtins.bytearray",
    ),
    "bytes": (zipped(call("__builtin__.bytes", GIGABYTES)), DAMAGED),
    "disguised": (disguised, "asks for builtins.bytearray"),
    "tensor": (zipped(call("torch.Tensor", GIGABYTES)), "asks for torch.Tensor"),
    "complex number": (zipped(call("__builtin__.complex", text("1" * 100))), "builtins.complex"),
    # forged NumPy objects
    "ndarray": (
        zipped(call("numpy.ndarray", items(b"K\x01"), text("O"), ADDRESS)), "a call of type"
    ),
    "ndarray of gigabytes": (
        zipped(call("numpy.ndarray", items(GIGABYTES), text("f8"))), "a call of type"
    ),
    "new ndarray": (
        zipped(known("numpy.ndarray") + items(items(b"K\x01"), text("O"), ADDRESS) + b"\x81"),
        "an object of type",
    ),
    "array of gigabytes": (
        zipped(call(RECONSTRUCT, known("numpy.ndarray"), items(GIGABYTES), text("d"))), "read"
    ),
    "array of objects": (
        zipped(ARRAY + state(b"K\x01", ADDRESS, call("numpy.dtype", text("O")))), "no numbers"
    ),
    "array of a list": (zipped(ARRAY + state(b"K\x01", b"]")), "without type or values"),
    "short array": (zipped(ARRAY + state(b"K\x02", ADDRESS)), "another size than its values"),
    "void": (zipped(call("numpy.dtype", text("V1000000000"))), "which are no numbers"),
    "dtype with a state": (
        zipped(call(
            "numpy.core.multiarray.scalar",
            DTYPE + items(b"K\x03", text("|"), b"N", b"N", b"N", GIGABYTES, b"K\x01", b"K?") + b"b",
            ADDRESS,
        )),
        "read",
    ),
    "scalar of a text": (
        zipped(call("numpy.core.multiarray.scalar", DTYPE, text("a" * 8))), "without type or value"
    ),
    "objects": (saved(lambda: np.array([{}], dtype=object)), "which are no numbers"),
    # memory of the process in place of values
    **{
        f"{kind} of gigabytes": (zipped(call(f"torch.{kind}", number(2**20))), words)
        for kind, words in (
            ("storage.UntypedStorage", "a call of dtype"),
            ("storage.TypedStorage", "asks for torch.storage.TypedStorage"),
            ("FloatStorage", "a call of dtype"),
        )
    },
    "emptied": (emptied, "its storages are others"),
    "declared": (declared, DAMAGED),
    "storage too large": (
        zipped(tensor(storage(1000), 0, 1000), _0=bytes(400)), "another size than the file says"
    ),
    "storage of another type": (
        zipped(tensor(storage(100, kind="torch.DoubleStorage"), 0, 100), _0=bytes(400)),
        "another size than the file says",
    ),
    "no storage": (zipped(tensor(storage(1000), 0, 1000)), DAMAGED),
    "beyond": (zipped(tensor(storage(100), 50, 51), _0=bytes(400)), DAMAGED),
    "tensor of a text": (zipped(tensor(text("x"), 0, 1)), "that is no storage"),
    "meta storage": (
        zipped(tensor(storage(100, place="meta"), 0, 100), _0=bytes(400)), "without a place"
    ),
    # tensors larger than their file
    "strides": (saved(lambda: torch.zeros(1).expand(2**33)), "more than 4 times its size"),
    "shared": (
        saved(lambda: [*torch.zeros(10_000).expand(2000, 10_000)]), "more than 4 times its size"
    ),
    "compressed": (compressed, "its records are compressed"),
    "overlapping": (overlapping, "its records are compressed"),
    "header": (
        lambda path: path.with_suffix(".safetensors").write_bytes((2**40).to_bytes(8, "little")),
        "not a whole safetensors file",
    ),
    # kinds of tensors that nobody needs here
    "sparse": (saved(lambda: torch.eye(3).to_sparse()), "_rebuild_sparse_tensor"),
    "meta": (saved(lambda: torch.zeros(2**40, device="meta")), "_rebuild_meta_tensor"),
    "quantized": (quantized, "_rebuild_qtensor"),
    "complex": (saved(lambda: torch.zeros(3, dtype=torch.complex64)), "torch.ComplexFloatStorage"),
    # texts
    "long text": (lambda path: archive(path, PICKLE + b"}X\xff\xff\xff\xffa\x01s."), DAMAGED),
    "UTF-32": (zipped(call(ENCODE, MEGABYTE, text("utf-32"))), "a text as utf-32"),
    "idna": (zipped(call(ENCODE, MEGABYTE, text("idna"))), "a text as idna"),
    "punycode": (zipped(call(ENCODE, MEGABYTE, text("punycode"))), "a text as punycode"),
    "many bytes": (
        zipped(repeated(known(ENCODE) + b"h\x00h\x01\x86R", 1000),
               dropped(MEGABYTE) + dropped(text("latin1"), 1)),
        "more than 4 times its size",
    ),
    "many arrays": (
        zipped(repeated(ARRAY + items(b"K\x01", items(number(2**17)), b"h\x01", b"\x89", b"h\x00")
                        + b"b", 1000),
               dropped(call(ENCODE, MEGABYTE, text("latin1"))) + dropped(DTYPE, 1)),
        "more than 4 times its size",
    ),
    "long global": (raw(known("a." + "b" * 10_000_000)), "besides weights it asks for a.bbb"),
    "global in color": (raw(known("os.\x1b[31m")), "asks for os.?[31m"),
    # keys that take years to hash, or are compared with each other
    "keys": (raw(nested(60) + b"}h\x3cK\x01s"), "time without end"),
    "tuple key": (raw(b"}" + items(b"K\x01") + b"Ns"), "a key that is neither"),
    "collisions": (lambda path: archive(path, colliding(100_000)), "a key that is neither"),
    "NaN": (raw(b"}" + (b"G\x7f\xf8" + bytes(6) + b"Ns") * 50_000), "a key that is neither"),
    "set": (
        zipped(call("__builtin__.set", repeated(storage(100) + b"\x85", 3)), _0=bytes(400)),
        "a key that is neither",
    ),
    "counter": (zipped(call("collections.Counter", b"}" + b")Ns")), "a key that is neither"),
    "long key": (raw(b"}" + MEGABYTE + b"Ns"), "too long or can't be printed"),
    "escape in a key": (raw(b"}" + text("\x1b[2J") + b"Ns"), "too long or can't be printed"),
    "newline in a key": (raw(b"}" + text("w\nerror: x") + b"Ns"), "too long or can't be printed"),
    "pairs": (
        zipped(call("collections.OrderedDict", b"](" + items(items(b"K\x01"), b"N") + b"e")),
        "a key that is neither",
    ),
    # references
    "doubling": (
        zipped(b"h\x3c", b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60))),
        "time without end",
    ),
    "holding itself": (raw(b"}q\x00" + text("w") + b"h\x00s"), "holds itself"),
    "many sizes": (
        zipped(repeated(known("torch.Size") + b"h\x00\x85R", 1000), dropped(LIST)),
        "time without end",
    ),
    "many sets": (
        zipped(repeated(known("__builtin__.set") + b"h\x00\x85R", 1000), dropped(LIST)),
        "time without end",
    ),
    # many of something
    "many values": (zipped(repeated(b"N", 3_000_000)), "time without end"),
    "many objects": (
        zipped(repeated(known("argparse.Namespace") + b")\x81", 99_000)),
        "more than 4 times its size",
    ),
    "many dicts": (zipped(repeated(b"h\x00)R", 300_000), dropped(known("collections.OrderedDict"))),
                   "more than 4 times its size"),
    "marks": (zipped(b"(" * 3_000_000), "time without end"),
    "depth": (raw(b"]" * 400_000 + b"a" * 399_999), "holds a list"),
    # other protocols
    "frame": (lambda path: archive(path, b"\x80\x04\x95" + b"\xff" * 8), "the operation b'\\x95'"),
    "bytes of protocol 4": (raw(b"\x8e" + (2**40).to_bytes(8, "little")), DAMAGED),
    "long of protocol 2": (raw(b"\x8b" + (2**31 - 1).to_bytes(4, "little")), DAMAGED),
    "decimal": (raw(b"L" + b"9" * 2_000_000 + b"L\n"), DAMAGED),
    "instance": (raw(b"(ios\nsystem\n"), "the operation b'i'"),
}  # fmt: skip
