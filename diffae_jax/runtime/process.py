"""Setup of the current process for the commands, and checks of how processes start."""

import atexit
import contextlib
import functools
import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from diffae_jax.runtime.errors import UserError

GC_THRESHOLDS = (50_000, 20, 20)  # Python's defaults take a tenth of a short run: tracing creates many objects
IMAGE_READERS = ("PIL", "pydicom", "tifffile", "nibabel")
PIPE_CLOSED = 141  # the exit code if SIGPIPE ends a process


@functools.cache
def _device_process() -> int:
    return os.getpid()


def forbid_forks() -> None:
    """Raises UserError in a fork of a process that has used JAX.

    The threads of JAX do not exist in a fork.
    """
    if _device_process() != os.getpid():
        raise UserError(
            "This process is a fork of a process that has used JAX, so JAX would hang: start processes with "
            'multiprocessing.get_context("spawn").'
        )


@functools.cache
def prepare_command() -> None:
    """Hides messages of XLA and of image readers, and runs the garbage collector less often.

    Warnings of libraries that read images name no file. `data.formats` checks what it reads, and
    names it. They stay hidden, because threads of Grain read ahead until the process ends.

    Call it before jax is imported. `gc.freeze` avoids a garbage collection of 1 to 5 s at exit, in
    the grace time after a signal. It is registered first, because exit handlers run in reverse
    order: those of jax run before it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # errors of XLA are also raised
    warnings.filterwarnings("ignore", module=rf"({'|'.join(IMAGE_READERS)})\b")
    for name in IMAGE_READERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    gc.set_threshold(*GC_THRESHOLDS)
    atexit.register(gc.freeze)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Lets a command print any text to any terminal or pipe.

    Characters that the encoding of the terminal lacks are escaped. If the reader of the output
    ends first, as in `| head -1`, the process exits with the code of SIGPIPE.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it at exit
        sys.exit(PIPE_CLOSED)


def check_main_guard(num_workers: int) -> None:
    """Raises UserError if worker processes would run the script of this process again.

    Each of them imports the script. Without `if __name__ == "__main__":`, it would start the
    training and its own workers.
    """
    file = getattr(sys.modules["__main__"], "__file__", None)
    if not num_workers or file is None:
        return
    try:
        script = Path(file).read_text()
    except (OSError, UnicodeDecodeError):
        return
    if "__main__" not in script:
        raise UserError(
            f"execution.num_workers={num_workers} starts processes that import {file}, which would train again in each "
            f'of them. Move the code of this script below `if __name__ == "__main__":`.'
        )
