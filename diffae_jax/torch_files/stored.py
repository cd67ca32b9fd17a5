"""Tensors in a file of `torch.save` that are checked but not read yet."""

import dataclasses
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffae_jax.runtime.errors import UserError

GET_AGAIN = "Download or copy it again."  # the fix in messages
STORAGE_TYPES = {  # dtypes in the file; numpy has no bfloat16, which is the upper half of a float32
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
RESULT_TYPES = {"torch.BFloat16Storage": "<f4", "torch.BoolStorage": "?"}  # where they differ


class Refusal(Exception):
    """A reason to refuse a file. The message continues a sentence that begins with the path."""


class Entry(NamedTuple):
    """The position of a zip entry, or of a storage in a legacy file."""

    start: int
    size: int
    checksum: int | None  # CRC-32; None in legacy files


@dataclasses.dataclass(frozen=True)
class Storage:
    """The elements of one entry of a file, with their type."""

    path: Path
    identity: tuple[int, ...]  # of the file, when it was checked
    start: int  # position in the file, in bytes
    elements: int
    type_name: str
    checksum: int | None  # CRC-32 of the entry; None: damage cannot be detected

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the arrays that `read` returns."""
        return np.dtype(RESULT_TYPES.get(self.type_name, STORAGE_TYPES[self.type_name])).newbyteorder("=")

    def read(self, first: int, count: int) -> np.ndarray:
        """Returns `count` elements as a 1-D array.

        Raises UserError if the file has changed since it was checked, or if its checksum differs.
        The checksum covers all elements, so it is not checked when only a part is read.
        """
        raw = np.empty(count, STORAGE_TYPES[self.type_name])
        try:
            with self.path.open("rb") as file:
                file.seek(self.start + first * raw.itemsize)
                complete = file.readinto(raw.view(np.uint8)) == raw.nbytes
                unchanged = identity_of(file) == self.identity
        except OSError as error:
            raise UserError(f"{self.path} can no longer be read ({error.strerror}).") from error
        if not (complete and unchanged):
            raise UserError(f"{self.path} has changed since it was opened. Run the command again.")
        can_check = count == self.elements and self.checksum is not None
        if can_check and zlib.crc32(raw.view(np.uint8)) != self.checksum:
            raise UserError(f"{self.path} has a damaged tensor at byte {self.start:,}. {GET_AGAIN}")
        if self.type_name == "torch.BFloat16Storage":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(self.dtype, copy=False)


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor that is checked but not read yet.

    `dtype` is the dtype of the array that `numpy()` returns: float32 for bfloat16.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    storage: Storage
    offset: int  # in elements, as are the strides
    strides: tuple[int, ...]

    def numpy(self) -> np.ndarray:
        """Reads this tensor into a new array. Raises UserError if the file has changed."""
        elements = self.storage.read(self.offset, extent(self.shape, self.strides))
        strides = tuple(stride * elements.itemsize for stride in self.strides)
        return np.asarray(np.ndarray(self.shape, elements.dtype, elements, strides=strides), order="C")


def identity_of(file: Any) -> tuple[int, ...]:
    """Returns numbers that identify an open file and change when it is written."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Returns the number of storage elements from a tensor's first element to its last."""
    return 0 if 0 in shape else 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
