"""The training loop: steps, reports, checkpoints, stop signals. One loop for every network."""

import collections
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils
from jaxtyping import Array, Key

from diffae_jax.training.checkpoint import Checkpoints
from diffae_jax.training.health import check_finite
from diffae_jax.training.logging import MetricsWriter, Progress
from diffae_jax.training.state import TrainState
from diffae_jax.training.step import Metrics

STEPS_IN_FLIGHT = 3  # dispatched ahead of the one that runs; more would only hold their batches in memory


class Stopped(Exception):
    """A signal asked the run to stop, and its state was saved."""

    def __init__(self, step: int, signal_number: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name} at step {step}")
        self.step = step
        self.signal_number = signal_number


# (state, step, metrics of that step) -> values for metrics.jsonl
PeriodicCall = Callable[[TrainState, int, dict[str, float]], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Periodic:
    """Something to do every so many steps, and after the last."""

    every: int
    call: PeriodicCall


@dataclasses.dataclass
class Window:
    """Sums of the metrics since the last report; part of the checkpoint, so that a resumed run reports the same."""

    count: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, metrics: dict[str, float]) -> None:
        """Adds a step, unless float16 skipped it."""
        if metrics["finite"]:
            self.count += 1
            for name, value in metrics.items():
                self.sums[name] = self.sums.get(name, 0.0) + value

    def take_means(self) -> dict[str, float]:
        """Returns the means and starts anew."""
        means = {name: value / max(self.count, 1) for name, value in self.sums.items()}
        self.count, self.sums = 0, {}
        means.pop("finite", None)
        return means


class StopSignal:
    """Catches SIGINT and SIGTERM, so that the loop can end after a whole step, the same on every process."""

    def __init__(self):
        self.number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        numbers = [signal.SIGINT]
        if jax.process_count() == 1:  # otherwise the cluster runtime has SIGTERM, and tells all processes
            numbers.append(signal.SIGTERM)
        self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.number = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)

    def reached(self, step: int) -> bool:
        """Whether to stop after this step; all processes get the same answer."""
        if jax.process_count() == 1:
            return self.number is not None
        if multihost_utils.reached_preemption_sync_point(step):
            self.number = self.number or signal.SIGTERM
            return True
        return False


def steps_of(images: int, batch_size: int) -> int:
    """Turns an interval or budget in images into steps, at least one."""
    return max(1, round(images / batch_size))


def fit(
    state: TrainState,
    *,
    step_fn: Callable[[TrainState, Any, Key[Array, ""]], tuple[TrainState, Metrics]],
    batches: Iterator[Any],
    key: Key[Array, ""],
    first_step: int,
    num_steps: int,
    batch_size: int,
    log_every: int,
    save_every: int,
    periodic: list[Periodic],
    checkpoints: Checkpoints,
    window: Window,
    writer: MetricsWriter,
) -> TrainState:
    """Trains from `first_step` to `num_steps` (intervals in steps) and returns the last state, saved.

    `batches` starts at the batch of `first_step`. Metrics stay on the devices until a report, so that the host never
    waits for a step. Raises Stopped after a signal, UserError after a non-finite step; both leave good checkpoints.
    """
    pending: collections.deque[tuple[int, Metrics]] = collections.deque()
    progress = Progress(num_steps * batch_size, first_step * batch_size)
    reported_step, reported_at = first_step, time.monotonic()
    last = {}

    def collect():
        while pending:
            step, metrics = pending.popleft()
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            check_finite(step, values, checkpoints.latest)
            window.add(values)
            last.update(values)

    def save(step):
        collect()
        checkpoints.save(step, state, dataclasses.asdict(window))

    try:
        with StopSignal() as stop:
            for step in range(first_step + 1, num_steps + 1):
                state, metrics = step_fn(state, next(batches), key)
                pending.append((step, metrics))
                if len(pending) > STEPS_IN_FLIGHT:
                    jax.block_until_ready(pending[-STEPS_IN_FLIGHT][1])
                progress.advance(batch_size)

                if step % log_every == 0 or step == num_steps:
                    collect()
                    speed = (step - reported_step) * batch_size / (time.monotonic() - reported_at)
                    reported_step, reported_at = step, time.monotonic()
                    means = window.take_means()
                    writer.write(step, images=step * batch_size, **means, images_per_second=speed)
                    progress.report(step * batch_size, means.get("loss", float("nan")), speed)
                stopping = stop.reached(step)
                for task in () if stopping else periodic:
                    if step % task.every == 0 or step == num_steps:
                        collect()
                        paused = time.monotonic()
                        values = task.call(state, step, last)
                        reported_at += time.monotonic() - paused
                        if values:
                            writer.write(step, images=step * batch_size, **values)
                if step % save_every == 0 or step == num_steps or stopping:
                    save(step)
                if stopping:
                    checkpoints.wait()
                    raise Stopped(step, stop.number)
        checkpoints.wait()
    finally:
        progress.close()
    return state
