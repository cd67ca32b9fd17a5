"""What the commands set up in their own process, once."""

import atexit
import functools
import gc
import os


@functools.cache
def prepare_command() -> None:
    """Silences XLA's notes of its inner life, and makes the process end at once. Call it before jax is imported.

    A process that ends looks through all objects once more, which takes a second or, where processes share a core, five
    of those that a signal leaves. Registered before jax registers its own, this runs after them.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    atexit.register(gc.freeze)
