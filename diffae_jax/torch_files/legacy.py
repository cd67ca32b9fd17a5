"""Reads the format of `torch.save` before PyTorch 1.6, with the same checks as for zip archives.

Such a file starts with five pickles: a magic number, the version of the format, properties of the
machine, the objects, and the keys of the storages. After them, each storage follows as its number
of elements and its bytes. The size in bytes of a storage is only given by the objects, so their
pickle is interpreted twice: first to collect the storages, then to build the objects.
"""

import io
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffae_jax.runtime.errors import shown
from diffae_jax.torch_files.instructions import LONGEST_NAME, MAX_PICKLE_BYTES, Machine
from diffae_jax.torch_files.stored import GET_AGAIN, STORAGE_TYPES, Entry, Refusal, Storage

MAX_STORAGES = 20_000
MAX_PREFACE = 100  # instructions before the objects
MAX_KEY_LIST = 3 * MAX_STORAGES + MAX_PREFACE  # a key takes two instructions, or three if the text is long

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001


class Declared(NamedTuple):
    """The type and size that the objects declare for a storage."""

    type_name: str
    elements: int


class _Legacy(Machine):
    """Interprets a legacy pickle, in which a storage has one more field.

    The field names the storage of which this one is a view. It is None in a state dict.
    """

    pickle_name = "pickle"
    storage_fields = (*Machine.storage_fields, type(None))


class _Scan(_Legacy):
    """Interprets a pickle only to collect {key: type and size} of its storages."""

    def __init__(self, path: Path, identity: tuple[int, ...]):
        super().__init__(path, identity, {})
        self.declared: dict[str, Declared] = {}

    def storage(self, type_name: str, key: str, elements: int) -> Storage:
        """Records what is declared and returns a storage without a position."""
        if len(key) > LONGEST_NAME or elements < 0:
            raise Refusal(f"declares {shown(elements)} elements for storage {shown(key)}. {GET_AGAIN}")
        declared = Declared(type_name, elements)
        if self.declared.setdefault(key, declared) != declared:
            raise Refusal(f"declares the storage {shown(key)} twice, with different types or sizes. {GET_AGAIN}")
        if len(self.declared) > MAX_STORAGES:
            raise Refusal(f"has more storages than the limit of {MAX_STORAGES:,}. {GET_AGAIN}")
        return Storage(self.path, self.identity, 0, elements, type_name, None)


class _Head(io.BytesIO):
    """The bytes that may contain the pickles. Raises Refusal if a read exceeds the limit."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and self.tell() + size > MAX_PICKLE_BYTES:
            raise Refusal(f"describes its tensors in more bytes than the limit of {MAX_PICKLE_BYTES:,}. {GET_AGAIN}")
        return super().read(size)


def is_legacy(head: bytes) -> bool:
    """Returns whether a file with these first bytes has the format before PyTorch 1.6."""
    return MAGIC.to_bytes(10, "little") in head[:32]


def read_legacy(path: Path, identity: tuple[int, ...], file: io.FileIO) -> Any:
    """Returns the object in an open legacy file, with tensors as `StoredTensor`.

    Raises Refusal if the file is damaged or not plain data.
    """
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = _Head(file.read(min(length, MAX_PICKLE_BYTES)))
    magic, version, machine = (_Legacy(path, identity, {}).run(head, MAX_PREFACE) for _ in range(3))
    if (magic, version) != (MAGIC, VERSION) or type(machine) is not dict:
        raise Refusal(
            "has an unsupported version of the legacy format. Save it again with torch.save in PyTorch 1.6 or later."
        )
    if machine.get("little_endian") is not True:
        raise Refusal("was written on a big-endian machine. Save it again on a little-endian one.")
    scan, begin = _Scan(path, identity), head.tell()
    scan.run(head)
    keys = _Legacy(path, identity, {}).run(head, MAX_KEY_LIST)
    entries = _entries(file, length, head.tell(), keys, scan.declared)
    head.seek(begin)
    return _Legacy(path, identity, entries).run(head)


def _entries(file: io.FileIO, length: int, position: int, keys: Any, declared: dict[str, Declared]) -> dict[str, Entry]:
    """Returns the position of each storage.

    Raises Refusal if the declared storages do not fill the file from `position` to its end.
    """
    if type(keys) is not list or any(type(key) is not str for key in keys) or len(set(keys)) < len(keys):
        raise Refusal(f"has a damaged list of storages. {GET_AGAIN}")
    if set(keys) != set(declared):
        raise Refusal(
            f"lists {len(keys):,} storages, which do not match the {len(declared):,} that its tensors use. {GET_AGAIN}"
        )
    entries = {}
    for key in keys:
        type_name, elements = declared[key]
        file.seek(position)
        stored_elements, start = int.from_bytes(file.read(8), "little", signed=True), position + 8
        position = start + elements * np.dtype(STORAGE_TYPES[type_name]).itemsize
        if position > length:
            raise Refusal(
                f"is truncated: storage {shown(key)} ends at byte {shown(position)} of {length:,}. {GET_AGAIN}"
            )
        if stored_elements != elements:
            used = f"{elements:,} elements of {type_name}"
            raise Refusal(
                f"has {stored_elements:,} elements in storage {shown(key)}, but its tensors use {used}. {GET_AGAIN}"
            )
        entries[f"data/{key}"] = Entry(start, position - start, None)
    if position != length:
        raise Refusal(f"has {length - position:,} bytes after its last storage, where it should end. {GET_AGAIN}")
    return entries
