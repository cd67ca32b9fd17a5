"""NumPy arrays in npy and npz files, memory-mapped or, if compressed, unpacked."""

import contextlib
import dataclasses
import math
import os
import struct
import threading
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from diffae_jax.runtime.errors import UserError, list_some, reader_errors_as_user_errors, shown

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")

_parsing = threading.Lock()  # NumPy parses headers with `ast`, which is not thread-safe in Python 3.11


@dataclasses.dataclass(frozen=True)
class Packed:
    """An array in an npz that cannot be mapped: it is compressed or holds Python objects."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def array(self) -> np.ndarray:
        """Reads the values. Raises UserError for Python objects, damage, and too little memory."""
        size = math.prod(self.shape) * self.dtype.itemsize
        if size > memory() // 2:
            raise UserError(
                f"{shown(self.name)} in {self.path} would take {size / 2**30:,.1f} GiB, more than half of the memory. "
                f"Save it uncompressed with np.savez: it is then read from disk."
            )
        with volume_errors_as_user_errors(self.path), _parsing, np.load(self.path, allow_pickle=False) as archive:
            return archive[self.name]


def open_npy(path: Path) -> np.memmap:
    """Memory-maps an npy. Raises UserError if it is damaged or holds Python objects."""
    with volume_errors_as_user_errors(path), _parsing:
        return np.lib.format.open_memmap(path, mode="r")


def open_npz(path: Path) -> dict[str, np.memmap | Packed]:
    """Returns the arrays of an npz by name, without reading them.

    Raises UserError if the file is damaged or has no arrays.
    """
    with volume_errors_as_user_errors(path), path.open("rb") as file, zipfile.ZipFile(file) as archive:
        entries = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        if not entries:
            raise UserError(
                f"{path} holds no arrays. It holds {list_some(archive.namelist()) or 'no files'}. Check the path."
            )
        return {info.filename.removesuffix(".npy"): _entry(path, file, archive, info) for info in entries}


def _entry(path: Path, file: IO[bytes], archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.memmap | Packed:
    with archive.open(info) as entry, _parsing:
        version = np.lib.format.read_magic(entry)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(entry)  # 3.0 differs from 2.0 only in how field names are encoded
        start = entry.tell()
    if info.compress_type != zipfile.ZIP_STORED or dtype.hasobject:
        return Packed(path, info.filename.removesuffix(".npy"), shape, dtype)
    file.seek(info.header_offset + 26)  # the local header: 30 bytes, a name and extra fields
    offset = info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))) + start
    return np.memmap(path, dtype, "r", offset, shape, "F" if is_fortran else "C")


def volume_errors_as_user_errors(name: str | Path) -> contextlib.AbstractContextManager[None]:
    """Converts any error of an array reader into a UserError with the name of the file."""
    return reader_errors_as_user_errors(name, "an array")


def memory() -> int:
    """Returns the memory that this process may use, in bytes."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # ValueError: the file may contain the word max
        return min(physical, int(CGROUP_LIMIT.read_text()))
    return physical
