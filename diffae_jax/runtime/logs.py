"""The logger of the library, and protection of the root logger from other libraries."""

import contextlib
import logging
import sys
from collections.abc import Iterator

LOGGER = logging.getLogger("diffae_jax")


class _Printer(logging.Handler):
    """Prints log records in the same way as other lines of a command: see `console.say`."""

    def emit(self, record: logging.LogRecord) -> None:
        from diffae_jax.runtime.console import say  # imports jax, which some commands do not need

        say(record.getMessage(), file=sys.stderr)


@contextlib.contextmanager
def log_to_stderr() -> Iterator[None]:
    """Prints log messages of the library to stderr. Restores the logger at the end."""
    printer, level, propagate = _Printer(), LOGGER.level, LOGGER.propagate
    LOGGER.addHandler(printer)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False  # handlers of the root logger would print them again
    try:
        yield
    finally:
        LOGGER.removeHandler(printer)
        LOGGER.setLevel(level)
        LOGGER.propagate = propagate


@contextlib.contextmanager
def preserve_root_logger() -> Iterator[None]:
    """Restores the root logger, to which absl adds a handler and a level when Orbax or Grain log.

    Handlers that other code adds in the block stay.
    """
    before, level = set(logging.root.handlers), logging.root.level
    try:
        yield
    finally:
        for handler in set(logging.root.handlers) - before:
            # removes the handler that absl or logging.basicConfig added
            if type(handler).__module__.startswith("absl.") or type(handler) is logging.StreamHandler:
                logging.root.removeHandler(handler)
        logging.root.setLevel(level)
