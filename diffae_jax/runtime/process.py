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

    Call it before jax is imported. At exit, the collector would visit all objects, which takes 1 to
    5 seconds of the grace time after a signal. `gc.freeze` avoids that. It is registered before the
    exit handlers of jax, so it runs after them.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    gc.set_threshold(*GC_THRESHOLDS)
    atexit.register(gc.freeze)
