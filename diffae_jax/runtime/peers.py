"""Ends this process in one sentence if another process of the cluster dies.

When the coordination service of JAX has lost a process, it logs a fatal error, prints a native
stack and aborts each of the others. JAX has no setting for this. So this module reads what is
written to stderr, and delays the abort until it has ended the process with a sentence.
"""

import contextlib
import ctypes
import faulthandler
import os
import re
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

from diffae_jax.runtime.errors import ClusterError, UserError, shown
from diffae_jax.runtime.interrupts import end_process
from diffae_jax.runtime.rendezvous import name_processes

HEARTBEAT_SECONDS = 20  # a process that is silent for that long is lost
VERDICT_SECONDS = HEARTBEAT_SECONDS + 5  # time in which the service says which process was lost
ALONE_SECONDS = 10  # in which all processes exit, if they have the same error
HOLD_SECONDS = 1.0  # messages wait so long, because those just before a fatal error belong to it
FATAL = "JAX distributed service detected fatal errors"
NATIVE_STACK = "*** Check failure stack trace"
# in the messages of exceptions that a lost process may have caused
SIGNS = ("Gloo", "coordination service", "topologies", "Barrier", "DEADLINE_EXCEEDED", "UNAVAILABLE")


@contextlib.contextmanager
def end_with_peers(saved: Callable[[], str]) -> Iterator[None]:
    """Ends this process with exit code 3 if another process ends before the block does.

    At an error that no UserError explains, the process ends at once with its traceback, so that
    the others notice its end.

    Args:
        saved: Returns a sentence that says what is saved.
    """
    ending = threading.Lock()  # taken by the thread that ends the process

    def end(terminal: int, error: ClusterError) -> None:
        if not ending.acquire(blocking=False):
            threading.Event().wait()
        os.write(terminal, f"\nError: {error}\n".encode(errors="backslashreplace"))
        end_process(error.exit_code)  # an ordinary exit waits for the other processes

    with _held_stderr(lambda terminal, text: end(terminal, ClusterError(f"{_lost(text)} {saved()}"))) as terminal:
        try:
            yield
        except ClusterError as error:
            end(terminal, error)
        except UserError as error:
            _exit_within(ALONE_SECONDS, error.exit_code)
            raise
        except Exception as error:
            if any(sign in str(error) for sign in SIGNS):
                time.sleep(VERDICT_SECONDS)  # if a process was lost, this one is ended meanwhile
                end(terminal, ClusterError(f"{_lost(str(error))} {saved()}"))
            traceback.print_exc()
            time.sleep(2 * HOLD_SECONDS)  # until it is shown
            end_process(1)


def _exit_within(seconds: float, code: int) -> None:
    """Ends this process if it does not exit by itself, because it waits for the others.

    They are there if all of them have the error. Otherwise they must notice the end of this one.
    """
    timer = threading.Timer(seconds, end_process, [code])
    timer.daemon = True
    timer.start()


def _lost(text: str) -> str:
    """Returns which processes were lost, according to messages of JAX."""
    tasks = re.search(r"stopped sending heartbeats\):\s*(.*?)The tasks have crashed", text, re.DOTALL)
    numbers = re.findall(r"(\d+)\s*$", tasks[1], re.MULTILINE) if tasks else re.findall(r"Task (\d+) heartbeat", text)
    if numbers:
        return f"{name_processes(sorted(set(map(int, numbers))))} ended or lost the connection: see its output."
    if "Failed to send RPC to coordination service" in text or "CoordinationService/Heartbeat" in text:
        return "Process 0 ended or lost the connection: see its output."
    if "RegisterTask" in text:
        return "Not all processes came in time: check that all of them run, or set a longer --cluster_timeout."
    reason = shown(text.rpartition("absl::Status: ")[2])
    return f"The processes lost each other ({reason}): see all outputs, and check that no machine is overloaded."


@contextlib.contextmanager
def _held_stderr(lost: Callable[[int, str], None]) -> Iterator[int]:
    """Holds stderr back for a second, and calls `lost` instead of showing a fatal error of JAX.

    Yields the file descriptor of what stderr was.
    """
    if os.name != "posix":
        yield 2
        return
    terminal, (read, write) = os.dup(2), os.pipe()
    sys.stderr.flush()
    os.dup2(write, 2)
    os.close(write)
    reader = threading.Thread(target=_pass_on, args=(read, terminal, lost), daemon=True)
    reader.start()
    faulthandler.enable(terminal)
    # An abort calls C's sleep with the number of the signal: 6 s, in which the reader ends the
    # process. A handler in Python could wait forever for the interpreter's lock.
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
    try:
        yield terminal
    finally:
        libc.signal(signal.SIGABRT, None)
        sys.stderr.flush()
        os.dup2(terminal, 2)  # closes the pipe, so the reader ends
        faulthandler.enable(2)
        reader.join(2 * HOLD_SECONDS)


def _pass_on(read: int, terminal: int, lost: Callable[[int, str], None]) -> None:
    while text := os.read(read, 2**16):
        time.sleep(HOLD_SECONDS)
        while select.select([read], [], [], 0)[0] and (more := os.read(read, 2**16)):
            text += more
        message = text.decode(errors="replace")
        if FATAL in message:
            lost(terminal, message)
        with contextlib.suppress(OSError):  # its reader has ended
            os.write(terminal, text)
        if NATIVE_STACK in message:
            faulthandler.dump_traceback(terminal)
