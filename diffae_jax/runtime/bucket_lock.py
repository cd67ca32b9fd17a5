"""The lock of a folder in a bucket, where no operating system frees it when a process dies."""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from diffae_jax.runtime.buckets import BucketPath
from diffae_jax.runtime.errors import UnavailableError, shown
from diffae_jax.runtime.interrupts import end_process

RENEW_SECONDS = 5
STALE_SECONDS = 30  # without a renewal, after which the process that held the lock counts as dead


class BucketLockedError(Exception):
    """Another process holds the lock; the text names it."""


class BucketLock:
    """An object that names the process that holds the lock, and that this process renews.

    Only one process can create it. A lock is free if its process ran on this machine and is dead.
    It is also free if it is not renewed for `STALE_SECONDS`. No clocks are compared, so they may
    differ. If this process was suspended, another may have taken the lock. This process then ends
    at its next renewal.
    """

    def __init__(self, path: BucketPath):
        self._path = path
        self._content = {"host": socket.gethostname(), "process": os.getpid(), "machine": _machine()}
        self._content |= {"token": uuid.uuid4().hex, "renewals": 0}
        self._over = threading.Event()
        self._renewing: threading.Thread | None = None
        self._connected = True

    def acquire(self) -> None:
        """Takes the lock. Raises BucketLockedError if another process holds it.

        This is known after `RENEW_SECONDS`. Raises OSError if the bucket cannot be used.
        """
        if not self._create():
            self._wait_until_free()
            self._path.unlink(missing_ok=True)
            if not self._create():
                raise BucketLockedError(_name_of(self._read()))
            time.sleep(1)  # another process may have removed this lock, because it saw the old one
            if not self._is_mine(self._read()):
                raise BucketLockedError(_name_of(self._read()))
        self._renewing = threading.Thread(target=self._renew, name="lock", daemon=True)
        self._renewing.start()

    def release(self) -> None:
        """Removes the lock if this process holds it. Without a connection, it becomes stale."""
        if self._renewing is None:
            return
        self._over.set()
        self._renewing.join(1)
        is_connected = self._connected and not self._renewing.is_alive()
        self._renewing = None
        with contextlib.suppress(OSError):
            if is_connected and self._is_mine(self._read()):
                self._path.unlink(missing_ok=True)

    def _create(self) -> bool:
        try:
            self._path.create(json.dumps(self._content).encode())
        except FileExistsError:
            return self._is_mine(self._read())  # the answer to the first attempt was lost
        return True

    def _wait_until_free(self) -> None:
        """Returns when the lock is free. Raises BucketLockedError if it is renewed meanwhile."""
        first = self._read()
        end = time.monotonic() + STALE_SECONDS
        while first is not None and not _is_dead(first) and time.monotonic() < end:
            time.sleep(1)
            now = self._read()
            if now is None:
                return
            if now != first:
                raise BucketLockedError(_name_of(now))

    def _read(self) -> dict[str, Any] | None:
        try:
            content = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}

    def _is_mine(self, content: dict[str, Any] | None) -> bool:
        return content is not None and content.get("token") == self._content["token"]

    def _renew(self) -> None:
        while not self._over.wait(RENEW_SECONDS):
            try:
                now = self._read()
                if not self._is_mine(now):
                    _end_without(self._path, now)
                self._content["renewals"] += 1
                self._path.write_bytes(json.dumps(self._content).encode())
                self._connected = True
            except OSError:
                self._connected = False  # the next renewal may succeed


def _end_without(path: BucketPath, holder: dict[str, Any] | None) -> None:
    """Ends this process: what it would still write could damage the other run."""
    error = UnavailableError(
        f"{path.parent} is now used by another run ({_name_of(holder)}), because this one could not renew its lock for "
        f"{STALE_SECONDS} s. What was saved before is kept."
    )
    os.write(2, f"\nError: {error}\n".encode(errors="backslashreplace"))
    end_process(error.exit_code)


def _name_of(content: dict[str, Any] | None) -> str:
    content = content or {}
    return f"process {shown(content.get('process', 'unknown'))} on {shown(content.get('host', 'an unknown host'))}"


def _machine() -> str:
    """Returns a text that two processes share if each can see whether the other is alive."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return ""


def _is_dead(content: dict[str, Any]) -> bool:
    """Returns whether a lock's process ran on this machine and has ended."""
    process = content.get("process")
    if not content.get("machine") or content["machine"] != _machine() or type(process) is not int:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:  # of another user
        return False
    return False
