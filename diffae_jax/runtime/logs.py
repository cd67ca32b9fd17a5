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
def quiet_libraries() -> Iterator[None]:
    """Hides the log of Orbax and Grain, and restores the root logger, which absl changes.

    They log an error with its traceback before they raise it, and the caller turns it into one
    sentence. Handlers that other code adds in the block stay.
    """
    from absl import logging as absl_logging

    before, level, verbosity = set(logging.root.handlers), logging.root.level, absl_logging.get_verbosity()
    hook = sys.unraisablehook

    def without_closed_loops(unraisable):
        # after a failed save, TensorStore still reports to the event loop that Orbax has closed
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    absl_logging.set_verbosity(absl_logging.FATAL)
    sys.unraisablehook = without_closed_loops
    try:
        yield
    finally:
        sys.unraisablehook = hook
        absl_logging.set_verbosity(verbosity)
        for handler in set(logging.root.handlers) - before:
            # removes the handler that absl or logging.basicConfig added
            if type(handler).__module__.startswith("absl.") or type(handler) is logging.StreamHandler:
                logging.root.removeHandler(handler)
        logging.root.setLevel(level)
