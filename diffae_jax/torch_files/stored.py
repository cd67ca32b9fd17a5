"""Tensors of a file of torch.save that were checked and are not yet read."""

import dataclasses
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffae_jax.runtime.errors import UserError

STORAGE_TYPES = {  # how the elements lie in the file; bfloat16, the upper half of a float32, is unknown to numpy
    "torch.DoubleStorage": "<f8",
    "torch.FloatStorage": "<f4",
    "torch.HalfStorage": "<f2",
    "torch.BFloat16Storage": "<u2",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "u1",
}
GIVEN_AS = {"torch.BFloat16Storage": "<f4", "torch.BoolStorage": "?"}  # where it is not what lies in the file


class Refusal(Exception):
    """What is wrong with a file, as the end of a sentence that begins with its path."""


class Entry(NamedTuple):
    """Where the bytes of an entry of the zip, or of a storage of a legacy file, lie."""

    start: int
    size: int
    checksum: int | None  # CRC-32; legacy files have none


@dataclasses.dataclass(frozen=True)
class Storage:
    """The elements of one entry of a file, as a storage type sees them."""

    path: Path
    identity: tuple[int, ...]  # of the file that was checked
    start: int  # byte in the file
    elements: int
    type_name: str
    checksum: int | None  # CRC-32 of the entry; None: nothing tells whether the elements are damaged

    @property
    def dtype(self) -> np.dtype:
        """What the elements are given as."""
        return np.dtype(GIVEN_AS.get(self.type_name, STORAGE_TYPES[self.type_name])).newbyteorder("=")

    def read(self, first: int, count: int) -> np.ndarray:
        """Returns elements in one dimension.

        Raises UserError where the file is no longer the one that was checked, and where all elements together are not
        what was once written: of a part nothing tells.
        """
        raw = np.empty(count, STORAGE_TYPES[self.type_name])
        try:
            with self.path.open("rb") as file:
                file.seek(self.start + first * raw.itemsize)
                complete = file.readinto(raw.view(np.uint8)) == raw.nbytes
                unchanged = identity_of(file) == self.identity
        except OSError as error:
            raise UserError(f"{self.path} cannot be read any more ({error.strerror}).") from error
        if not (complete and unchanged):
            raise UserError(f"{self.path} has changed since it was opened: run the command again.")
        whole = count == self.elements and self.checksum is not None
        if whole and zlib.crc32(raw.view(np.uint8)) != self.checksum:
            raise UserError(f"{self.path} has a damaged tensor at byte {self.start:,}: download or copy it again.")
        if self.type_name == "torch.BFloat16Storage":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(self.dtype, copy=False)


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor that was checked and not yet read; `dtype` is what `numpy` gives, float32 for bfloat16."""

    shape: tuple[int, ...]
    dtype: np.dtype
    storage: Storage
    offset: int  # in elements, as are the strides
    strides: tuple[int, ...]

    def numpy(self) -> np.ndarray:
        """Reads this tensor alone into an array of its own. Raises UserError where the file has changed."""
        elements = self.storage.read(self.offset, extent(self.shape, self.strides))
        strides = tuple(stride * elements.itemsize for stride in self.strides)
        return np.asarray(np.ndarray(self.shape, elements.dtype, elements, strides=strides), order="C")


def identity_of(file: Any) -> tuple[int, ...]:
    """Returns what an open file does not share with another, or with itself after a change."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """The elements from a tensor's first to its last in the storage."""
    return 0 if 0 in shape else 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
