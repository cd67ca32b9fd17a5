"""Reads what torch.save wrote before PyTorch 1.6, as strictly as the zips of today.

Such a file is five pickles in a row: a magic number, the version of the format, what machine wrote it, the objects, and
the keys of the storages. Then follows, for each of the keys, the number of its elements and the elements. So where a
storage lies is known only once the objects were read: their pickle is followed twice, first to learn of what storages
it speaks.
"""

import io
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffae_jax.runtime.errors import shown
from diffae_jax.torch_files.instructions import LONGEST_NAME, MAX_PICKLE_BYTES, Machine
from diffae_jax.torch_files.stored import STORAGE_TYPES, Entry, Refusal, Storage

MAX_STORAGES = 20_000
MAX_PREFACE = 100  # instructions of what stands before the objects
MAX_KEY_LIST = 3 * MAX_STORAGES + MAX_PREFACE  # a key takes two, or three where texts are long

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001


class Declared(NamedTuple):
    """What the objects say of a storage."""

    type_name: str
    elements: int


class _Legacy(Machine):
    """Follows a pickle that also says of what other storage each is a part, which is of none in a state dict."""

    part = "pickle"
    described = (*Machine.described, type(None))


class _Scan(_Legacy):
    """Follows a pickle for the types and sizes of its storages alone, by their keys."""

    def __init__(self, path: Path, identity: tuple[int, ...]):
        super().__init__(path, identity, {})
        self.declared: dict[str, Declared] = {}

    def storage(self, type_name: str, key: str, elements: int) -> Storage:
        """Returns a storage that lies nowhere, having noted what it is."""
        if len(key) > LONGEST_NAME or elements < 0:
            raise Refusal(f"declares {shown(elements)} elements for the storage {shown(key)}: it is damaged.")
        declared = Declared(type_name, elements)
        if self.declared.setdefault(key, declared) != declared:
            raise Refusal(f"declares the storage {shown(key)} twice, with other types or numbers of elements.")
        if len(self.declared) > MAX_STORAGES:
            raise Refusal(f"speaks of more than the {MAX_STORAGES:,} storages that are read.")
        return Storage(self.path, self.identity, 0, elements, type_name, None)


class _Head(io.BytesIO):
    """The bytes in which pickles may lie. More is not read, whatever length they tell."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and self.tell() + size > MAX_PICKLE_BYTES:
            raise Refusal(f"describes its tensors in more than the {MAX_PICKLE_BYTES:,} bytes that are read.")
        return super().read(size)


def is_legacy(head: bytes) -> bool:
    """Whether a file that begins so is one of PyTorch before 1.6, or of its old format."""
    return MAGIC.to_bytes(10, "little") in head[:32]


def read_legacy(path: Path, identity: tuple[int, ...], file: io.FileIO) -> Any:
    """Returns the objects of an open legacy file; its tensors are `StoredTensor`. Raises Refusal where it is wrong."""
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = _Head(file.read(min(length, MAX_PICKLE_BYTES)))
    magic, version, machine = (_Legacy(path, identity, {}).run(head, MAX_PREFACE) for _ in range(3))
    if (magic, version) != (MAGIC, VERSION) or type(machine) is not dict:
        raise Refusal("is a legacy file of another version: save it again with torch.save in PyTorch 1.6 or later.")
    if machine.get("little_endian") is not True:
        raise Refusal("was written on a big-endian machine: save it again on a little-endian one.")
    scan, begin = _Scan(path, identity), head.tell()
    scan.run(head)
    keys = _Legacy(path, identity, {}).run(head, MAX_KEY_LIST)
    entries = _entries(file, length, head.tell(), keys, scan.declared)
    head.seek(begin)
    return _Legacy(path, identity, entries).run(head)


def _entries(file: io.FileIO, length: int, position: int, keys: Any, declared: dict[str, Declared]) -> dict[str, Entry]:
    """Returns where each storage lies, having seen that those and no others fill the file from here to its end."""
    if type(keys) is not list or any(type(key) is not str for key in keys) or len(set(keys)) < len(keys):
        raise Refusal("has a damaged list of storages: download or copy it again.")
    if set(keys) != set(declared):
        raise Refusal(f"holds {len(keys):,} storages where its tensors speak of {len(declared):,}, or others.")
    entries = {}
    for key in keys:
        type_name, elements = declared[key]
        file.seek(position)
        told, start = int.from_bytes(file.read(8), "little", signed=True), position + 8
        position = start + elements * np.dtype(STORAGE_TYPES[type_name]).itemsize
        if position > length:
            raise Refusal(f"is cut short: storage {shown(key)} would end at byte {shown(position)} of {length:,}.")
        if told != elements:
            told_of = f"{elements:,} elements of {type_name}"
            raise Refusal(f"holds {told:,} elements in storage {shown(key)}, where its tensors speak of {told_of}.")
        entries[f"data/{key}"] = Entry(start, position - start, None)
    if position != length:
        raise Refusal(f"holds {length - position:,} bytes after its last storage, where a checkpoint ends.")
    return entries
