"""Writes files like `torch.save` without PyTorch, in parts that tests can corrupt."""

import struct
import time
import tracemalloc
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from diffae_jax.runtime.errors import UserError
from diffae_jax.torch_files.archive import read_checkpoint

STORAGE_TYPES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


class Foreign(NamedTuple):
    """A class or function of a module, as a value or key of a tree."""

    module: str
    name: str


class Raw(NamedTuple):
    """Pickle instructions that leave one value on the stack."""

    instructions: bytes


class Call(NamedTuple):
    """The result of `callee(*arguments)`."""

    callee: Foreign
    arguments: tuple


REBUILD = Foreign("torch._utils", "_rebuild_tensor_v2")


def write_checkpoint(path: Path, tree: Any) -> None:
    """Writes a tree with its arrays as tensors. Views of one array share a storage."""
    instructions, storages = pickled(tree)
    write_zip(path, checkpoint_entries(b"\x80\x02" + instructions + b".", storages))


def write_legacy(path: Path, tree: Any) -> None:
    """Writes a tree in the format before PyTorch 1.6."""
    path.write_bytes(b"".join(legacy_parts(tree)))


def legacy_parts(tree: Any, **changes: bytes) -> list[bytes]:
    """Returns the five pickles of a legacy file, then the size and the bytes of each storage.

    `changes` replaces parts by name.
    """
    roots: dict[int, np.ndarray] = {}
    objects = _instructions(tree, roots)
    parts = {
        "magic": _pickle(0x1950A86A20F9469CFC6C),
        "version": _pickle(1001),
        "machine": _pickle({"protocol_version": 1001, "little_endian": True, "type_sizes": {"long": 4}}),
        "objects": b"\x80\x02" + legacy(objects) + b".",
        "keys": _pickle([str(key) for key in range(len(roots))]),
    }
    for key, root in enumerate(roots.values()):
        parts[f"elements_{key}"] = struct.pack("<q", root.size)
        parts[f"storage_{key}"] = root.ravel(order="K").tobytes()
    return list((parts | changes).values())


def legacy(instructions: bytes) -> bytes:
    """Adds the legacy field to each description of a storage: None, it is not a view."""
    return instructions.replace(b"tQ", b"NtQ")


def _pickle(value: Any) -> bytes:
    return b"\x80\x02" + _instructions(value, {}) + b"."


def checkpoint_entries(pickle: bytes, storages: list[np.ndarray] | tuple = ()) -> list["Entry"]:
    """Returns the entries of a checkpoint, in the order of torch.save."""
    contents = {"data.pkl": pickle, "byteorder": b"little"}
    contents |= {f"data/{key}": storage for key, storage in enumerate(storages)}
    return [Entry(f"archive/{name}", content) for name, content in (contents | {"version": b"3\n"}).items()]


def pickled(tree: Any) -> tuple[bytes, list[np.ndarray]]:
    """Returns the instructions that push a tree, and the bytes of its storages."""
    roots: dict[int, np.ndarray] = {}  # in the order of their keys; references keep ids unique
    instructions = _instructions(tree, roots)
    return instructions, [root.ravel(order="K").view(np.uint8) for root in roots.values()]


def storage(type_name: str, key: str, elements: Any) -> Raw:
    """Returns a reference to a storage."""
    described = _instructions(("storage", Foreign("torch", type_name), key, "cpu", elements), {})
    return Raw(described + b"Q")


def _instructions(value: Any, roots: dict[int, np.ndarray]) -> bytes:
    def several(values: Iterable) -> bytes:
        return b"".join(_instructions(value, roots) for value in values)

    match value:
        case Raw(instructions):
            return instructions
        case Foreign(module, name):
            return b"c" + f"{module}\n{name}\n".encode()
        case Call(callee, arguments):
            return several([callee, arguments]) + b"R"
        case None | True | False:
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            length = value.bit_length() // 8 + 1
            return b"\x8a" + bytes([length]) + value.to_bytes(length, "little", signed=True)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + several(value) + b"t"
        case list():
            return b"](" + several(value) + b"e"
        case dict():
            empty = b"ccollections\nOrderedDict\n)R" if isinstance(value, OrderedDict) else b"}"
            return empty + b"(" + several(part for item in value.items() for part in item) + b"u"
        case np.ndarray():
            return several([_tensor(value, roots)])
    raise TypeError(type(value))


def _tensor(array: np.ndarray, roots: dict[int, np.ndarray]) -> Call:
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    roots.setdefault(id(root), root)
    key = str(list(roots).index(id(root)))
    offset = (array.__array_interface__["data"][0] - root.__array_interface__["data"][0]) // array.itemsize
    strides = tuple(stride // array.itemsize for stride in array.strides)
    reference = storage(STORAGE_TYPES[array.dtype.name], key, root.size)
    return Call(REBUILD, (reference, offset, array.shape, strides, False, OrderedDict()))


class Entry(NamedTuple):
    """An entry of a zip archive, with values that may be wrong on purpose."""

    name: str
    content: Any  # bytes or an array of them
    method: int = 0
    flags: int = 0x808
    size: int | None = None  # the declared size; None: the true size
    expanded: int | None = None  # the declared size after decompression; None: `size`
    local_name: str | None = None
    offset: int | None = None


def write_zip(path: Path, entries: list[Entry]) -> None:
    """Writes a zip archive by hand, because zipfile cannot write invalid ones.

    Contents are aligned to 64 bytes, as in torch.save.
    """
    directory = b""
    with path.open("wb") as file:
        for entry in entries:
            content = memoryview(entry.content)
            name = entry.name.encode()
            offset = file.tell()
            size = len(content) if entry.size is None else entry.size
            expanded = size if entry.expanded is None else entry.expanded
            crc = zlib.crc32(content)
            common = struct.pack("<5H3L", 20, entry.flags, entry.method, 0, 0, crc, size, expanded)
            local_name = name if entry.local_name is None else entry.local_name.encode()
            padding = -(offset + 30 + len(local_name) + 4) % 64
            file.write(b"PK\3\4" + common + struct.pack("<2H", len(local_name), 4 + padding) + local_name)
            file.write(b"FB" + struct.pack("<H", padding) + bytes(padding))
            file.write(content)
            declared_offset = offset if entry.offset is None else entry.offset
            directory += b"PK\1\2" + struct.pack("<H", 20) + common
            directory += struct.pack("<5H2L", len(name), 0, 0, 0, 0, 0, declared_offset) + name
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, len(entries), len(entries), len(directory), file.tell(), 0)
        file.write(directory + end)


def refused_at_once(path, pattern):
    """Asserts that a file is refused in one sentence, with little time and memory.

    Returns the sentence.
    """
    tracemalloc.start()
    start = time.process_time()  # processor time, independent of other processes
    try:
        with pytest.raises(UserError, match=pattern) as error:
            read_checkpoint(path)
        elapsed = time.process_time() - start
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    sentence = str(error.value)
    assert sentence.startswith(str(path))
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "the file was executed"
    assert peak < 10e6
    assert elapsed < 1
    return sentence
