"""Paths in buckets: gs://BUCKET/NAME of Google Cloud Storage and s3://BUCKET/NAME of Amazon S3.

A bucket has objects with names, but no folders, no renaming and no appending. A folder here is
what the names of objects begin with. A folder that must be complete or not exist at all has a
marker: the object manifest.json, which is written last and removed first.
"""

import contextlib
import dataclasses
import datetime
import errno
import fnmatch
import functools
import importlib.util
import io
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path, PurePosixPath
from typing import Any

from diffae_jax.runtime.errors import UserError, shown

PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}  # of each scheme
EXTRAS = {"gs": "gcs", "s3": "s3"}
MARKER = "manifest.json"
CONNECT_SECONDS, READ_SECONDS = 5, 10  # of one attempt
LONGEST_SECONDS = 60  # of all attempts of a request that transfers little
LITTLE = 2**23  # bytes
ATTEMPTS, REPEATS = 3, 2  # of a request to S3: those of botocore, and how often s3fs repeats these
MAX_BYTES_IN_MEMORY = 2**31
THREADS = 16  # copy files
LOGGERS = ("gcsfs", "s3fs", "fsspec", "botocore", "aiobotocore", "google")


def is_address(text: str | os.PathLike) -> bool:
    """Returns whether a text is an address in a bucket, such as gs://BUCKET/NAME."""
    return os.fspath(text).startswith(tuple(f"{scheme}://" for scheme in PACKAGES))


@dataclasses.dataclass(frozen=True)
class Object:
    """Size and time of an object. The time is that of its last change, in ms since the epoch."""

    size: int
    time: int


class BucketPath(PurePosixPath):
    """An address in a bucket, used like a pathlib.Path. Every failure raises OSError.

    `etils.epath` has such a class, too. It prefers TensorFlow if that is installed, creates
    missing buckets of S3, and raises the errors of each store's own library.
    """

    if sys.version_info < (3, 12):

        def __new__(cls, *parts: str | os.PathLike) -> "BucketPath":  # noqa: D102
            return super().__new__(cls, *map(_rooted, parts))

    else:

        def __init__(self, *parts: str | os.PathLike) -> None:
            super().__init__(*map(_rooted, parts))

    def relative_to(self, other: "BucketPath") -> PurePosixPath:
        """Returns the name below a folder."""
        return PurePosixPath(*self.parts).relative_to(PurePosixPath(*other.parts))

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __fspath__(self) -> str:
        return str(self)

    def __reduce__(self) -> tuple:
        return type(self), (str(self),)

    @property
    def scheme(self) -> str:
        """The store: gs or s3."""
        return self.parts[1]

    @property
    def key(self) -> str:
        """BUCKET/NAME."""
        return "/".join(self.parts[2:])

    @property
    def bucket(self) -> str:
        """The name of the bucket."""
        return self.parts[2] if len(self.parts) > 2 else ""

    def absolute(self) -> "BucketPath":
        """Returns the same address: it is absolute."""
        return self

    def resolve(self, strict: bool = False) -> "BucketPath":
        """Returns the same address: there are no links."""
        return self

    # --- reading ---------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Returns whether there is an object with this name, or one in this folder."""
        return self._kind() is not None

    def is_file(self) -> bool:
        """Returns whether there is an object with this name."""
        return self._kind() == "file"

    def is_dir(self) -> bool:
        """Returns whether there is an object in this folder."""
        return self._kind() == "directory"

    def _kind(self) -> str | None:
        try:
            return self._call("info", self.key)["type"]
        except FileNotFoundError:
            return None

    def iterdir(self) -> Iterator["BucketPath"]:
        """Yields what the folder has. A missing folder is empty."""
        try:
            names = self._call("ls", self.key, detail=False)
        except FileNotFoundError:
            return
        for name in names:
            path = type(self)(f"{self.scheme}://{name.rstrip('/')}")
            if path != self:
                yield path

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        """Yields what the folder has with a name like `pattern`, which has no slash."""
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def objects(self) -> dict[str, Object]:
        """Returns all objects below the folder by their names relative to it, in sorted order.

        Raises FileNotFoundError if there is no such bucket.
        """
        found = self._call("find", self.key, detail=True)
        names = {name.removeprefix(f"{self.key}/"): entry for name, entry in found.items()}
        return {
            name: Object(entry["size"], _time(entry))
            for name, entry in sorted(names.items())
            if not name.endswith("/") and name != self.key  # consoles create empty objects as folders
        }

    def object(self) -> Object:
        """Returns size and time of the object. Raises FileNotFoundError if there is none."""
        entry = self._call("info", self.key)
        return Object(entry["size"] or 0, _time(entry))

    def open(self, mode: str = "rb") -> io.BytesIO:
        """Returns the content of the object, like an opened file. Raises OSError above 2 GiB."""
        if mode != "rb":
            raise ValueError(f"Objects are opened with mode rb, not {mode}.")
        return io.BytesIO(self.read_bytes())

    def read_bytes(self) -> bytes:
        """Returns the content of the object. Raises OSError if it has more than 2 GiB."""
        if (size := self.object().size) > MAX_BYTES_IN_MEMORY:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes", str(self))
        return self._call("cat_file", self.key, limited=size <= LITTLE)

    def read_text(self) -> str:
        """Returns the content of the object as text."""
        return self.read_bytes().decode()

    # --- writing ---------------------------------------------------------------------------------

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Checks that the bucket exists and can be listed: there is nothing to create."""
        try:
            self._call("find", self.bucket, prefix=f"{'/'.join(self.parts[3:])}/{MARKER}")
        except FileNotFoundError as error:
            problem = f"there is no bucket {self.bucket}, or it is not yours"
            raise FileNotFoundError(errno.ENOENT, problem, str(self)) from error

    def write_bytes(self, content: bytes) -> None:
        """Writes the object with one request: it is complete or stays as it was."""
        self._call("pipe_file", self.key, content, limited=len(content) <= LITTLE)

    def write_text(self, text: str) -> None:
        """Writes the object with one request: it is complete or stays as it was."""
        self.write_bytes(text.encode())

    def create(self, content: bytes) -> None:
        """Writes the object if there is none. Raises FileExistsError if there is one.

        The store decides, so only one of several processes succeeds.
        """
        self._call("pipe_file", self.key, content, mode="create")

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the object."""
        try:
            self._call("rm_file", self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove(self) -> None:
        """Removes all objects below the folder, its marker first."""
        (self / MARKER).unlink(missing_ok=True)
        _in_threads(lambda name: (self / name).unlink(missing_ok=True), self.objects())

    def rename(self, target: "BucketPath") -> "BucketPath":
        """Copies all objects to another folder, and removes them here. It is not atomic."""

        def copy(name: str) -> None:
            self._call("cp_file", (self / name).key, (target / name).key, limited=False)

        _in_threads(copy, self.objects())
        self.remove()
        return target

    def upload(self, file: Path) -> None:
        """Writes the object from a local file. It is complete or stays as it was."""
        self._call("put_file", str(file), self.key, limited=file.stat().st_size <= LITTLE)

    def upload_folder(self, folder: Path) -> None:
        """Replaces the folder by a local one. Its marker is removed first and written last."""
        names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
        self.remove()
        _in_threads(lambda name: (self / name).upload(folder / name), [name for name in names if name != MARKER])
        (self / MARKER).upload(folder / MARKER)

    # --- copies on this machine ------------------------------------------------------------------

    def download(self, target: Path) -> None:
        """Copies the object or the folder to the local path `target`.

        Files of the same size and time are not copied again, and other local files are removed.
        Raises UserError if a name would lead out of the folder.
        """
        found = {"": self.object()} if self.is_file() else self.objects()
        for name in found:
            if ".." in name.split("/") or "\\" in name or name.startswith("/"):
                raise UserError(f"{self} has an object named {shown(name)}, which no folder can hold. Remove it.")
        if target.is_dir():
            for file in target.rglob("*"):
                if file.is_file() and file.relative_to(target).as_posix() not in found:
                    file.unlink()
        _in_threads(lambda name: self._download(name, found[name], target / name), found)

    def _download(self, name: str, entry: Object, file: Path) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            status = file.stat()
            if (status.st_size, status.st_mtime_ns // 10**6) == (entry.size, entry.time):
                return
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_name(f".{file.name}.tmp")
        self._call("get_file", (self / name).key, str(scratch), limited=entry.size <= LITTLE)
        os.utime(scratch, ns=(entry.time * 10**6, entry.time * 10**6))
        scratch.replace(file)

    def _call(self, method: str, *arguments: Any, limited: bool = True, **settings: Any) -> Any:
        """Calls the file system of the store. `limited` ends it after `LONGEST_SECONDS`."""
        settings |= {"timeout": LONGEST_SECONDS} if limited else {}
        try:
            return getattr(_file_system(self.scheme), method)(*arguments, **settings)
        except UserError:
            raise
        except Exception as error:  # each store's library has its own types of errors
            raise _as_os_error(error, self) from error


def _rooted(part: str | os.PathLike) -> str:
    """Returns a part of a path; gs://BUCKET as /gs/BUCKET, so that pathlib keeps its slashes."""
    text = os.fspath(part)
    scheme, _, rest = text.partition("://")
    return f"/{scheme}/{rest}" if is_address(text) else text


def _time(entry: dict[str, Any]) -> int:
    time = entry.get("LastModified") or entry.get("mtime") or datetime.datetime.fromtimestamp(0)
    return int(time.timestamp() * 1000)


@functools.cache
def _file_system(scheme: str) -> Any:
    """Returns the file system of a scheme. Raises UserError if its package is missing."""
    if importlib.util.find_spec(PACKAGES[scheme]) is None:
        raise UserError(
            f'{scheme}:// needs {PACKAGES[scheme]}, which is not installed: pip install "diffae_jax[{EXTRAS[scheme]}]".'
        )
    for name in LOGGERS:  # they report each attempt, and an error that is raised, too
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    uncached = {"use_listings_cache": False, "skip_instance_cache": True}  # other processes write, too
    if scheme == "s3":
        from s3fs import S3FileSystem

        timeouts = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
        opened = S3FileSystem(
            config_kwargs={**timeouts, "retries": {"mode": "standard", "max_attempts": ATTEMPTS}}, **uncached
        )
        opened.retries = REPEATS
        return opened
    import aiohttp
    from gcsfs.core import GCSFileSystem  # the other class of gcsfs first asks another service about the bucket

    limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    return GCSFileSystem(requests_timeout=limits, **uncached)


def _in_threads(call: Callable[[str], None], names: Iterable[str]) -> None:
    """Calls a function for each object of a folder, in threads.

    The first error ends it: calls that have begun still end, and others do not begin.
    """
    threads = ThreadPoolExecutor(THREADS)
    try:
        for done in as_completed([threads.submit(call, name) for name in names]):
            done.result()
    finally:
        threads.shutdown(cancel_futures=True)


def _as_os_error(error: Exception, path: BucketPath) -> OSError:
    """Returns an OSError with the reason in its `strerror`."""
    if isinstance(error, FileExistsError):
        return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    text = " ".join(str(error).partition("?")[0].split())  # without the parameters of an address
    text = shown(text or type(error).__name__)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"NoCredentialsError", "PartialCredentialsError", "GoogleAuthError"}:
        return PermissionError(errno.EACCES, f"no credentials were found: {text}", str(path))
    if isinstance(error, PermissionError) or getattr(error, "code", 0) in (401, 403) or text.startswith("Forbidden"):
        return PermissionError(errno.EACCES, f"access was denied: {text}", str(path))
    if "FSTimeoutError" in kinds:
        return ConnectionError(errno.EIO, f"the server does not answer within {LONGEST_SECONDS} s", str(path))
    if kinds & {"TimeoutError", "ConnectionError", "HTTPClientError", "ClientConnectionError"}:
        return ConnectionError(errno.EIO, f"the server does not answer: {text}", str(path))
    return OSError(errno.EIO, text, str(path))
