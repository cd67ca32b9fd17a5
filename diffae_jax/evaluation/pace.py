"""How long the programs of an evaluation take."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

from diffae_jax.runtime.console import duration


@dataclasses.dataclass
class Pace:
    """How long programs take, estimated from their UNet calls.

    Args:
        calls: The number of UNet calls of each program that is left, counted per image.
        seconds_per_call: The time of a call. None: unknown.
    """

    calls: dict[str, int]
    seconds_per_call: float | None = None

    @contextlib.contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Runs a program in the block. The pace of the others is then that of this program."""
        start = time.monotonic()
        yield
        calls = self.calls.pop(name)
        if calls:
            self.seconds_per_call = (time.monotonic() - start) / calls

    def time_left(self) -> str:
        """Returns "at most about 5 min 10 s, plus compilation", or "" if it is unknown."""
        if self.seconds_per_call is None:
            return ""
        return f"at most about {duration(sum(self.calls.values()) * self.seconds_per_call + 1)}, plus compilation"
