"""Output for people: printed lines, a progress bar, log messages, formatted quantities."""

import sys
import time
from typing import Any

from tqdm import tqdm

from diffae_jax.runtime.cluster import is_main_process
from diffae_jax.runtime.errors import counted
from diffae_jax.runtime.logs import LOGGER

WARM_UP_CALLS = 5  # calls of the step that are excluded from the speed, because they only fill the queue


def say(*words: Any, file: Any = None) -> None:
    """Prints a line on the main process, above any progress bar; by default to stdout."""
    if is_main_process():
        file = file or sys.stdout
        tqdm.write(" ".join(str(word) for word in words), file=file)
        file.flush()


def note(message: str) -> None:
    """Logs a message of level INFO. It is shown only if the program has configured logging."""
    if is_main_process():
        LOGGER.info(message)


def warn(message: str) -> None:
    """Logs a message of level WARNING. By default, Python prints it to stderr."""
    if is_main_process():
        LOGGER.warning(message)


class Progress:
    """A progress bar over images or latents. Outside a terminal, prints a line at each report."""

    def __init__(self, unit: str, num_samples: int, first_sample: int):
        self._on_terminal = sys.stdout.isatty()
        self._unit, self._num_samples, self._done = unit, num_samples, first_sample
        self._calls, self._timed_from = 0, (0, 0.0)
        self._bar = tqdm(
            total=num_samples,
            initial=first_sample,
            unit=f" {unit}",
            unit_scale=True,
            file=sys.stdout,
            disable=not (is_main_process() and self._on_terminal),
            dynamic_ncols=True,
        )

    def advance(self, samples: int) -> None:
        """Counts finished samples. Outside a terminal, prints once how much time is left."""
        self._bar.update(samples)
        self._done += samples
        self._calls += 1
        if self._calls == WARM_UP_CALLS:
            self._timed_from = self._done, time.monotonic()
        elif self._calls == 4 * WARM_UP_CALLS and not self._on_terminal:
            done, began = self._timed_from
            per_second = (self._done - done) / (time.monotonic() - began)
            left = max(0, self._num_samples - self._done) / per_second
            say(f"About {duration(left)} left, at {per_second:,.0f} {self._unit}/s.")

    def report(self, samples: int, loss: float, per_second: float, num_spikes: int = 0) -> None:
        """Shows the loss, the speed and the remaining time, and spikes of the loss."""
        self._bar.set_postfix(loss=f"{loss:.4f}")
        if not self._on_terminal:
            left = max(0.0, self._num_samples - samples) / per_second
            spikes = f", {counted(num_spikes, 'loss spike')}" if num_spikes else ""
            say(
                f"{samples:,} of {self._num_samples:,} {self._unit}, loss {loss:.4f}, "
                f"{per_second:,.0f} {self._unit}/s, {duration(left)} left{spikes}"
            )

    def close(self) -> None:
        """Closes the bar and leaves it visible."""
        self._bar.close()


def duration(seconds: float) -> str:
    """Formats a time span with its two largest units: 3 d 4 h, 5 min 10 s."""
    seconds = round(seconds)
    for size, name, smaller, smaller_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{seconds // size} {name} {seconds % size // smaller} {smaller_name}"
    return f"{seconds} s"


def quantity(value: float | int, unit: str) -> str:
    """Formats a number with a metric prefix and a unit: 1.41 GFLOP, 20.3 MB."""
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
