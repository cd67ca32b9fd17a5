"""Arrays that numpy wrote, as npy or in an npz: mapped, so that they stay on the disk, or unpacked where memory allows.

What a file says of itself is checked against its size before anything is made of it.
"""

import contextlib
import dataclasses
import io
import lzma
import math
import os
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

import numpy as np

from diffae_jax.runtime.errors import UserError, name_some, shown

_parsing = threading.Lock()  # Python 3.11 fails where threads parse what looks like Python at once, as numpy does
MAX_ENTRIES = 10_000
MAX_HEADER = 2**16  # bytes; numpy itself reads no more than 10,000
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclasses.dataclass(frozen=True)
class Entry:
    """An array of which the header alone was read."""

    path: Path
    member: str  # of an npz; of an npy ""
    shape: tuple[int, ...]
    dtype: np.dtype
    order: str
    offset: int | None  # of the values in the file; None where they are compressed

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def array(self) -> np.ndarray:
        """Returns the values, mapped where they can be.

        Raises UserError for Python objects, which reading would execute, and for what does not fit into memory.
        """
        where = f"{shown(self.member)} in {self.path}" if self.member else str(self.path)
        if self.dtype.hasobject:
            raise UserError(f"{where} holds Python objects, which are not read: save it as numbers or text.")
        size = math.prod(self.shape) * self.dtype.itemsize
        if not size:
            return np.empty(self.shape, self.dtype)
        if self.offset is not None:
            return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, self.order)
        if size > memory() // 2:
            raise UserError(
                f"{where} would take {size / 2**30:,.1f} GiB of memory, more than half of what there is: save it with "
                f"np.savez, not compressed, so that it can stay on the disk."
            )
        with told_zip(self.path), zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file, _parsing:
            return np.lib.format.read_array(file, allow_pickle=False)


def open_npy(path: Path) -> Entry:
    """Returns the array of an npy. Raises UserError where the file is none, or of another size than it says."""
    with path.open("rb") as file:
        shape, order, dtype, start = _header(file, str(path))
        end = os.fstat(file.fileno()).st_size
    _check_size(shape, dtype, end - start, str(path))
    return Entry(path, "", shape, dtype, order, start)


def open_npz(path: Path) -> dict[str, Entry]:
    """Returns the arrays of an npz by name. Raises UserError for a damaged or encrypted file, and odd names in it."""
    with told_zip(path), zipfile.ZipFile(path) as archive:
        infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        names = [info.filename for info in infos]
        odd = [name for name in names if _leads_out(name)]
        if odd:
            raise UserError(f"{path} has entries that lead out of it ({name_some(odd)}): it is not read.")
        if len(set(names)) < len(names) or len(names) > MAX_ENTRIES:
            raise UserError(
                f"{path} has {len(names):,} arrays of {len(set(names)):,} names, where each must have one of its own, "
                f"and {MAX_ENTRIES:,} at most: it is not read."
            )
        if not names:
            raise UserError(f"{path} holds no arrays, but {name_some(archive.namelist()) or 'nothing'}.")
        return {info.filename.removesuffix(".npy"): _entry(path, archive, info) for info in infos}


def _leads_out(name: str) -> bool:
    return any(
        kind(name).is_absolute() or ".." in kind(name).parts or kind(name).anchor
        for kind in (PurePosixPath, PureWindowsPath)
    )


def _entry(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Entry:
    where = f"{shown(info.filename)} in {path}"
    with archive.open(info) as file:
        shape, order, dtype, start = _header(file, where)
    _check_size(shape, dtype, info.file_size - start, where)
    if info.compress_type != zipfile.ZIP_STORED:
        return Entry(path, info.filename, shape, dtype, order, None)
    with path.open("rb") as file:  # an entry begins behind its own header, of 30 bytes, a name and extra fields
        file.seek(info.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2")
        end = os.fstat(file.fileno()).st_size
    offset = info.header_offset + 30 + int(lengths.sum()) + start
    _check_size(shape, dtype, end - offset, where)
    return Entry(path, info.filename, shape, dtype, order, offset)


def _header(file: BinaryIO | Any, where: str) -> tuple[tuple[int, ...], str, np.dtype, int]:
    """Returns shape, order and type of an array, and where its values begin."""
    start = io.BytesIO(file.read(MAX_HEADER))  # numpy would read as much as the header says of itself
    try:
        version = np.lib.format.read_magic(start)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        with _parsing:
            shape, is_fortran, dtype = read(start)  # 3.0 differs in how the names of fields are written alone
    except Exception as error:  # numpy parses the header as Python does, with whatever that raises
        raise UserError(f"{where} is no array that numpy saved, or damaged ({shown(str(error))}).") from error
    if any(length < 0 or length >= 2**63 for length in shape):
        raise UserError(f"{where} is damaged: it says that its shape is {shown(str(shape))}.")
    return shape, "F" if is_fortran else "C", dtype, start.tell()


def _check_size(shape: tuple[int, ...], dtype: np.dtype, have: int, where: str) -> None:
    """Raises UserError where there are fewer bytes than an array of that shape has, unless it is of Python objects."""
    if dtype.hasobject:
        return
    needed = math.prod(shape) * dtype.itemsize
    if needed > have:
        raise UserError(
            f"{where} has {have:,} of the {shown(needed)} bytes of its shape {shown(str(shape))}: it was cut off or is "
            f"damaged; copy it anew."
        )


@contextlib.contextmanager
def told_zip(path: Path) -> Iterator[None]:
    """Turns what zipfile says of a damaged archive into a UserError with its name."""
    try:
        yield
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path} cannot be read as an npz ({shown(str(error))}): it is damaged or none.") from error


def memory() -> int:
    """Returns the bytes of memory that this process may have."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
        return min(physical, int(CGROUP_LIMIT.read_text()))
    return physical
