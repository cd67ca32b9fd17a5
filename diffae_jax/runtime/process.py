"""Setup of the current process for the commands, and a check against forks."""

import atexit
import functools
import gc
import os

from diffae_jax.runtime.errors import UserError

GC_THRESHOLDS = (50_000, 20, 20)  # Python's defaults take a tenth of a short run: tracing creates many objects


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
    """Hides log messages of XLA, and runs Python's garbage collector less often.

    Call it before jax is imported. `gc.freeze` avoids a garbage collection of 1 to 5 s at exit, in
    the grace time after a signal. It is registered first, because exit handlers run in reverse
    order: those of jax run before it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    gc.set_threshold(*GC_THRESHOLDS)
    atexit.register(gc.freeze)
