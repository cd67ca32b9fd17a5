"""Reads untrusted files with limits on type, size and depth, and writes files atomically.

A path is a pathlib.Path or an address in a bucket. Both have the same methods. The functions here
do what a disk and a bucket do differently, such as publishing a folder.
"""

import contextlib
import errno
import functools
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import stat
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diffae_jax.runtime.buckets import BucketPath, is_address
from diffae_jax.runtime.errors import UnavailableError, UserError, shown

AnyPath = Path | BucketPath

CHECK_FILE = "Check that it is the right file, or copy it again."  # the fix in messages
DAMAGED = ".damaged"  # ends the name of what was set aside
UNFINISHED = ".tmp"  # ends the name of a folder that is being written or removed
MAX_JSON_BYTES = 4 * 2**20
MAX_JSON_DEPTH = 16
MAX_ROWS_BYTES = 4 * 2**20
ROW_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '<(f4|f8)', 'fortran_order': False, 'shape': \((\d{1,9}),\), \} *\n", re.S
)


def expand_home(path: str | os.PathLike) -> AnyPath:
    """Replaces ~ with the home folder, unless there is no such home.

    Returns a BucketPath for an address such as gs://BUCKET/NAME, else a Path.
    """
    if is_address(path):
        return BucketPath(path)
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


@contextlib.contextmanager
def os_errors_as_user_errors(path: AnyPath, verb: str = "read") -> Iterator[None]:
    """Turns an OSError about a path, such as a missing permission, into a UserError."""
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise UserError(f"{path} cannot be {verb}: it has characters that are not allowed in a path. Use another path.")
    try:
        yield
    except BrokenPipeError:  # of a line that was printed in the block
        raise
    except OSError as error:
        raise type_of_problem(error)(f"{path} cannot be {verb} ({reason_of(error)}).") from error


def type_of_problem(error: OSError) -> type[UserError]:
    """Returns `UnavailableError` if a server did not answer, otherwise `UserError`."""
    return UnavailableError if isinstance(error, ConnectionError) else UserError


def reason_of(error: BaseException) -> str:
    """Returns why reading or writing failed, such as "No space left on device".

    Libraries may raise errors of another type than OSError, with its text somewhere in theirs.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    known = (os.strerror(number) for number in errno.errorcode)
    return next((reason for reason in known if reason in text), shown(text.strip().partition("\n")[0]))


def unforeseen(error: OSError, path: AnyPath | str = "A file", before: str = "") -> UserError:
    """Returns an error that says what to do about an OSError that nothing foresaw.

    Args:
        error: The error.
        path: What cannot be used, if the error names no path.
        before: The beginning of the message.
    """
    name = error.filename or path
    store = "the bucket" if is_address(str(name)) else "the disk has space and"
    return type_of_problem(error)(
        f"{before}{name} cannot be used ({reason_of(error)}). What was saved before is kept. Make sure that {store} "
        f"can be read and written, then run the same command again."
    )


def set_aside(path: AnyPath) -> AnyPath:
    """Renames what is damaged to a name that is free: NAME.damaged, NAME.damaged-2, ..."""
    name = f"{path.name}{DAMAGED}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return path.rename(next(path.with_name(free) for free in names if not path.with_name(free).exists()))


@contextlib.contextmanager
def atomic_write(path: AnyPath) -> Iterator[Path]:
    """Yields a temporary path, and moves the file to `path` when the block ends without an error.

    If the process or the machine dies, `path` holds either the complete new file or the old one.
    The temporary path is always one of a disk, for libraries that know no buckets.
    """
    if isinstance(path, BucketPath):
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder, path.name)
            yield scratch
            path.upload(scratch)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.stem}.tmp{path.suffix}")  # a writer may choose the format by the suffix
    try:
        yield scratch
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def working_folder(folder: AnyPath) -> Path:
    """Returns where to prepare a folder for `publish`. All processes of a run get the same one.

    For a bucket, it is in the cache on this machine. Only process 0 writes there.
    """
    if isinstance(folder, Path):
        return folder.with_name(f"{folder.name}{UNFINISHED}")
    address = hashlib.sha256(str(folder.parent).encode()).hexdigest()
    return cache_folder() / "writing" / address[:16] / f"{folder.name}{UNFINISHED}"


def publish(scratch: Path, folder: AnyPath) -> None:
    """Moves a prepared folder, which has a manifest, to its name, where nothing may be yet.

    The folder is complete or does not exist, even if the process is killed: a disk renames it. In
    a bucket, a folder exists if it has a manifest, which is written last.
    """
    if isinstance(folder, Path):
        scratch.rename(folder)
        return
    folder.upload_folder(scratch)
    shutil.rmtree(scratch)


def remove_folder(folder: AnyPath) -> None:
    """Removes a complete folder. If the process is killed, an unfinished one may stay."""
    if isinstance(folder, Path):
        shutil.rmtree(folder.rename(folder.with_name(f"{folder.name}{UNFINISHED}")))
    else:
        folder.remove()


def cache_folder() -> Path:
    """Returns the folder of this user for files that can be made or copied again.

    It is diffae_jax in $XDG_CACHE_HOME or, unless that is an absolute path, in ~/.cache.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (folder if folder.is_absolute() else Path.home() / ".cache") / "diffae_jax"


@contextlib.contextmanager
def local_copy(path: AnyPath) -> Iterator[Path]:
    """Yields a path on this machine with the content of a file or folder.

    That of a disk is the path itself. What is in a bucket is copied to the cache, without what is
    already there. The message of a UserError in the block names the address.
    """
    if isinstance(path, Path):
        yield path
        return
    local = _copy_to_cache(path)
    try:
        yield local
    except UserError as error:
        raise type(error)(str(error).replace(str(local), str(path))) from error


def _copy_to_cache(path: BucketPath) -> Path:
    from filelock import FileLock

    if ".." in path.parts:
        raise UserError(f"{path} contains .., which has no meaning in a bucket. Use the address without it.")
    local = cache_folder() / "buckets" / path.scheme / path.key
    locks = cache_folder() / "buckets" / "locks"
    with os_errors_as_user_errors(path):
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / hashlib.sha256(str(path).encode()).hexdigest()):  # other processes copy the same
            path.download(local)
    return local


@functools.cache  # the same images are opened several times in a run
def _copied_once(address: str) -> Path:
    return _copy_to_cache(BucketPath(address))


def local_path(path: str | os.PathLike) -> Path:
    """Returns the path of input files on this machine: images, tables and weights.

    Replaces ~. What is in a bucket is copied to the cache once in a process. The path does not
    exist if there is nothing at the address.
    """
    return _copied_once(os.fspath(path)) if is_address(path) else Path(expand_home(path))


class GrowingText:
    """A text file to which lines are appended, each written at once.

    Objects in a bucket cannot grow. There, the whole text is written again with each line.
    """

    def __init__(self, path: AnyPath):
        self._path = path
        self._text = path.read_text() if isinstance(path, BucketPath) and path.exists() else ""
        self._file = path.open("a") if isinstance(path, Path) else None

    def append(self, line: str) -> None:
        """Appends a line. Raises OSError if it cannot be written."""
        if self._file is not None:
            self._file.write(line + "\n")
            self._file.flush()
        else:
            self._text += line + "\n"
            self._path.write_text(self._text)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def write_json(path: AnyPath, value: Any) -> None:
    """Writes a JSON file atomically."""
    with atomic_write(path) as scratch:
        scratch.write_text(json.dumps(value, indent=2) + "\n")


def check_file(path: AnyPath) -> None:
    """Raises UserError unless the path is a regular file or links to one. Refuses pipes."""
    with os_errors_as_user_errors(path):
        if not path.is_file():
            raise UserError(f"{path} is {'not a file' if path.exists() else 'missing'}. Check the path.")


def file_size(path: str | os.PathLike) -> int | None:
    """Returns the size of a regular file in bytes, or None if there is none. Calls stat once."""
    try:
        status = os.stat(path)  # noqa: PTH116, many paths take seconds
    except (OSError, ValueError):  # ValueError: a character that no path has
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def names_below(folder: AnyPath) -> list[str]:
    """Returns the names of all files below a folder, relative to it, in sorted order."""
    if isinstance(folder, BucketPath):
        return list(folder.objects())
    found = [Path(parent, file) for parent, _, files in os.walk(folder) for file in files]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def has_suffix(path: Path | str, suffixes: str | tuple[str, ...]) -> bool:
    """Returns whether a path has one of these suffixes, in upper or lower case."""
    return str(path).lower().endswith(suffixes)


def read_bytes(path: AnyPath, limit: int) -> bytes:
    """Returns the content of a regular file, or of the file that a link points to.

    Raises UserError for anything else, and if the file has more than `limit` bytes.
    """
    check_file(path)
    with os_errors_as_user_errors(path), path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UserError(
            f"{path} cannot be read: it has more than the {limit:,} bytes allowed for such a file. {CHECK_FILE}"
        )
    return content


def read_json(path: AnyPath) -> Any:
    """Parses a JSON file. Raises UserError if it is invalid, too large or too deep."""
    return parse_json(read_bytes(path, MAX_JSON_BYTES), path)


def parse_json(content: bytes, path: AnyPath) -> Any:
    """Parses JSON that was read from `path`. Raises UserError if it is invalid or too deep."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({shown(str(error))}): it is damaged. {CHECK_FILE}") from error
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [inner for outer in level if isinstance(outer, dict | list) for inner in _children(outer)]
    if level:
        raise UserError(
            f"{path} cannot be read: its JSON is nested more than {MAX_JSON_DEPTH} levels deep. {CHECK_FILE}"
        )
    return value


def _children(value: dict | list) -> Any:
    return value.values() if isinstance(value, dict) else value


def read_rows(path: AnyPath, names: tuple[str, ...]) -> list[np.ndarray]:
    """Reads vectors of numbers that np.savez wrote under exactly these names, as float32.

    Raises UserError for any other file. np.load is not safe here: it allocates whatever size and
    type the file declares.
    """
    content = io.BytesIO(read_bytes(path, MAX_ROWS_BYTES))
    expected = [f"{name}.npy" for name in names]
    try:
        with zipfile.ZipFile(content) as archive:
            infos = archive.infolist()
            plain = all(info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1 for info in infos)
            if not plain or [info.filename for info in infos] != expected:
                raise UserError(
                    f"{path} cannot be read: it does not hold {' and '.join(names)} as np.savez writes them. "
                    f"{CHECK_FILE}"
                )
            return [_row(archive.read(info), path, info.filename) for info in infos]
    except UserError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, EOFError, struct.error) as error:
        raise UserError(f"{path} cannot be read: it is damaged or was not written by np.savez. {CHECK_FILE}") from error


def _row(content: bytes, path: AnyPath, name: str) -> np.ndarray:
    header = ROW_HEADER.match(content)
    if header is None or len(content) - header.end() != int(header[2]) * int(header[1][1:]):
        raise UserError(f"{path} cannot be read: its {name} is not a row of floating point numbers. {CHECK_FILE}")
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, which callers refuse
        return np.frombuffer(content, f"<{header[1].decode()}", offset=header.end()).astype(np.float32)
