"""Notes of the library, through the logger "diffae_jax", and the root logger kept as its owner left it."""

import contextlib
import logging
import sys
from collections.abc import Iterator

from diffae_jax.runtime.cluster import is_main_process
from diffae_jax.runtime.console import say

LOGGER = logging.getLogger("diffae_jax")


def note(message: str) -> None:
    """Logs, on one process, what a call found or did: of level INFO, which shows only where logging is set up."""
    if is_main_process():
        LOGGER.info(message)


def caution(message: str) -> None:
    """Logs, on one process, what may not be as meant: of level WARNING, which Python prints on stderr by default."""
    if is_main_process():
        LOGGER.warning(message)


@contextlib.contextmanager
def notes_on_stderr() -> Iterator[None]:
    """Prints all notes on stderr, as the commands do; afterwards the logger is as it was."""
    handler = _Printer()
    before = LOGGER.level, LOGGER.propagate
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False  # absl's handler at the root would print them once more
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(before[0])
        LOGGER.propagate = before[1]


class _Printer(logging.Handler):
    """Prints a note as any other line: without breaking a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage(), file=sys.stderr)


@contextlib.contextmanager
def root_logger_kept() -> Iterator[None]:
    """Undoes what absl, which Orbax and Grain log through, does to a root logger without handlers: it adds one."""
    before = list(logging.root.handlers)
    try:
        yield
    finally:
        for handler in set(logging.root.handlers) - set(before):
            if type(handler) is logging.StreamHandler:  # logging.basicConfig makes such ones
                logging.root.removeHandler(handler)
