"""Processes of the package's commands, for tests that signal, kill or join them.

They are forked from a process that has imported the package and done nothing else: importing takes
seconds, which a hundred processes would spend again and again. A test of the way from a shell to
`main` starts a real command instead.
"""

import atexit
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path

from tests.environment import ROOT, flags

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.preloaded"])


class Forked:
    """A function of the package, called like a command, with output and an exit code."""

    def __init__(
        self,
        function: str,
        arguments: list[str],
        num_devices: int = 1,
        folder: Path = ROOT,
        settings: dict[str, str] | None = None,
    ):
        number, path = tempfile.mkstemp(prefix="output-", suffix=".txt")
        os.close(number)
        self._output = Path(path)
        inside = (function, arguments, flags(num_devices), folder, path, settings or {})
        self._process = _forks.Process(target=_call, args=inside, daemon=True)
        self._process.start()

    @property
    def output(self) -> str:
        """What the process has written to stdout and stderr so far."""
        return self._output.read_text()

    def is_running(self) -> bool:
        return self._process.is_alive()

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    def wait(self, timeout: float = 300) -> int:
        """Returns the exit code, negative for the signal that ended the process."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"The process did not end within {timeout} s:\n{self.output}")
        return self._process.exitcode


def _call(
    function: str, arguments: list[str], xla_flags: str, folder: Path, output: str, settings: dict[str, str]
) -> None:
    """Calls package.module:function with its output in a file, and ends as an interpreter does."""
    file = os.open(output, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started the tests in the background
    os.environ.update(settings)
    os.environ["XLA_FLAGS"] = xla_flags  # XLA reads it when it is first asked for devices
    module, _, name = function.partition(":")
    sys.argv = [module, *map(str, arguments)]
    try:
        getattr(importlib.import_module(module), name)()
    except Exception:
        traceback.print_exc()  # before the exit handlers, which may wait for other processes
        sys.exit(1)
    finally:  # multiprocessing leaves this out
        atexit._run_exitfuncs()
