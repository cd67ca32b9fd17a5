"""What the commands set up in their own process, once."""

import atexit
import functools
import gc
import os

from diffae_jax.runtime.errors import UserError


@functools.cache
def _user_of_devices() -> int:
    return os.getpid()


def forbid_forks() -> None:
    """Raises UserError in a fork of a process that has used its devices: JAX's threads are not there to answer."""
    if _user_of_devices() != os.getpid():
        raise UserError(
            "This process is a fork of one that has used JAX, which would hang here: start processes with "
            'multiprocessing.get_context("spawn").'
        )


@functools.cache
def prepare_command() -> None:
    """Silences XLA's notes of its inner life, and makes the process end at once. Call it before jax is imported.

    A process that ends looks through all objects once more, which takes a second or, where processes share a core, five
    of those that a signal leaves. Registered before jax registers its own, this runs after them.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    atexit.register(gc.freeze)
