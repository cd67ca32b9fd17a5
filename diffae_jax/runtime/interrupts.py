"""Ends a command soon after SIGINT or SIGTERM, with a sentence that says what is kept."""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

GRACE_SECONDS = 5  # in which the main thread may react; it cannot while compiled code runs
RESUME = "To resume, run the same command again."
SIGNALS = (signal.SIGINT, signal.SIGTERM)

stuck = threading.Event()  # set if threads of a library may never end, so that a normal exit would wait forever
_reports: list[Callable[[], str]] = []  # the innermost comes last


class Stopped(Exception):
    """Raised when a signal stopped the training. The state is saved."""

    def __init__(self, step: int, signal_number: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name} at step {step}")
        self.step = step
        self.signal_number = signal_number


class Interrupted(KeyboardInterrupt):
    """Raised in the main thread of a command at SIGINT and SIGTERM. Its text says what is kept."""


@contextlib.contextmanager
def if_interrupted(report: Callable[[], str]) -> Iterator[None]:
    """Sets the sentences that a command prints if a signal ends it in this block.

    `report` is called at the signal, possibly in another thread.
    """
    _reports.append(report)
    try:
        yield
    finally:
        _reports.remove(report)


class Interruptible:
    """A block that SIGINT ends with exit code 130 and SIGTERM with 143, within seconds.

    The signal raises Interrupted, so that the block removes its unfinished files. If it does not
    end in `GRACE_SECONDS`, for example because it waits for devices, a thread ends the process.
    Outside the main thread, the block runs without any of this. Ignored signals stay ignored.

    Args:
        otherwise: What to print if no `if_interrupted` applies.
    """

    def __init__(self, otherwise: str):
        self._otherwise = otherwise
        self._previous: dict[int, Any] = {}
        self._number: int | None = None
        self._over, self._last_words = threading.Event(), threading.Lock()

    def __enter__(self) -> "Interruptible":
        if threading.current_thread() is not threading.main_thread():
            return self
        # Python runs `_handle` only between two bytecodes, but writes to this socket at once
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._watcher.start()
        numbers = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def joined_cluster(self, num_processes: int) -> None:
        """Adapts to the handler that JAX sets for SIGTERM when a process joins a cluster.

        JAX keeps it if there are several processes.
        """
        if signal.SIGTERM in self._previous:
            if num_processes == 1:
                signal.signal(signal.SIGTERM, self._handle)
            else:
                del self._previous[signal.SIGTERM]

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        if isinstance(error, KeyboardInterrupt):
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
            self._end(self._number or signal.SIGINT, str(error) or self._report())
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        self._sender.send(b"\0")
        self._watcher.join()
        self._sender.close()
        self._receiver.close()

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._number is None:  # a second signal must not interrupt the removal of unfinished files
            self._number = number
            raise Interrupted(self._report())

    def _watch(self) -> None:
        while number := self._receiver.recv(1)[0]:
            # the training loop has its own handler, and saves
            if signal.getsignal(number) == self._handle and not self._over.wait(GRACE_SECONDS):
                self._end(number, self._report())

    def _report(self) -> str:
        try:
            return _reports[-1]()
        except Exception:  # there is none, or its files cannot be read; the process must end in any case
            return self._otherwise

    def _end(self, number: int, report: str) -> None:
        """Ends the process. A normal exit would wait for the devices to finish."""
        self._last_words.acquire()  # forever: only one thread prints
        os.write(2, f"\n{signal.Signals(number).name}: {report}\n".encode())  # a lock may guard sys.stderr
        end_process(128 + number)


def end_process(code: int) -> None:
    """Ends the process and its workers at once. A normal exit may wait for other processes."""
    for worker in multiprocessing.active_children():  # they read images
        worker.terminate()
    os._exit(code)
