"""The logger of the library, and the root logger kept as its owner left it."""

import contextlib
import logging
import sys
from collections.abc import Iterator

LOGGER = logging.getLogger("diffae_jax")


class _Printer(logging.Handler):
    """Prints a record as any line of a command: once for all processes, without breaking a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from diffae_jax.runtime.console import say  # brings jax, which a command may do without

        say(record.getMessage(), file=sys.stderr)


@contextlib.contextmanager
def log_to_stderr() -> Iterator[None]:
    """Prints the notes of the library on stderr, as the commands do; afterwards the logger is as it was."""
    printer, level, propagate = _Printer(), LOGGER.level, LOGGER.propagate
    LOGGER.addHandler(printer)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False  # handlers at the root would print them once more
    try:
        yield
    finally:
        LOGGER.removeHandler(printer)
        LOGGER.setLevel(level)
        LOGGER.propagate = propagate


@contextlib.contextmanager
def preserve_root_logger() -> Iterator[None]:
    """Takes back what absl, through which Orbax and Grain log, does to the root logger: its handler and its level.

    Handlers that others add meanwhile stay.
    """
    before, level = set(logging.root.handlers), logging.root.level
    try:
        yield
    finally:
        for handler in set(logging.root.handlers) - before:
            # of absl or, where absl was not set up, that of logging.basicConfig
            if type(handler).__module__.startswith("absl.") or type(handler) is logging.StreamHandler:
                logging.root.removeHandler(handler)
        logging.root.setLevel(level)
