"""The training loop: steps, reports, checkpoints, stop signals. One loop for every network."""

import collections
import dataclasses
import itertools
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Key

from diffae_jax.training.checkpoint import Checkpoints
from diffae_jax.training.health import check_finite
from diffae_jax.training.logging import MetricsWriter, Progress
from diffae_jax.training.program import Program
from diffae_jax.training.state import TrainState
from diffae_jax.training.step import Metrics

_SYNC_POINTS = itertools.count()  # JAX stops all processes at the first of these numbers that none has passed

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

    def reached(self) -> bool:
        """Whether to stop now; all processes ask equally often and get the same answer."""
        if jax.process_count() == 1:
            return self.number is not None
        if multihost_utils.reached_preemption_sync_point(next(_SYNC_POINTS)):
            self.number = self.number or signal.SIGTERM
            return True
        return False


def steps_of(samples: int, batch_size: int) -> int:
    """Turns an interval or budget in samples into steps, at least one."""
    return max(1, round(samples / batch_size))


@dataclasses.dataclass(frozen=True)
class Intervals:
    """What a stage trains for, and how often it does what; all in steps."""

    num_steps: int
    log_every: int
    save_every: int


def begin(program: Program, checkpoints: Checkpoints, key: Key[Array, ""]) -> tuple[TrainState, Window]:
    """Returns the state and the unfinished report of the newest checkpoint; where there is none, those of step 0."""
    if checkpoints.latest is None:
        return program.init(key), Window()
    state, window = checkpoints.restore(checkpoints.latest, program.abstract_state)
    return state, Window(**window)


def fit(
    program: Program,
    *,
    batches: Iterator[Any],
    batch_size: int,
    key: Key[Array, ""],
    intervals: Intervals,
    periodic: list[Periodic],
    checkpoints: Checkpoints,
    writer: MetricsWriter,
) -> TrainState:
    """Trains from the newest checkpoint on and returns the last state, saved.

    `batches` starts where the checkpoint ends. A call of the program may take several steps: what is due within one is
    done after it. Metrics stay on the devices until a report, so that the host never waits for a step. Raises Stopped
    after a signal, UserError after a non-finite step; both leave good checkpoints.
    """
    init_key, step_key = jax.random.split(key)
    step = checkpoints.latest or 0
    state, window = begin(program, checkpoints, init_key)
    pending: collections.deque[tuple[int, Metrics]] = collections.deque()  # (steps before the call, metrics)
    progress = Progress(writer.unit, intervals.num_steps * batch_size, step * batch_size)
    reported_step, reported_at = step, time.monotonic()
    last = {}

    def collect():
        while pending:
            step_before, metrics = pending.popleft()
            columns = {name: np.atleast_1d(values).tolist() for name, values in jax.device_get(metrics).items()}
            for offset, row in enumerate(zip(*columns.values(), strict=True), start=1):
                values = dict(zip(columns, row, strict=True))
                check_finite(step_before + offset, values, checkpoints.latest)
                window.add(values)
                last.update(values)

    def save():
        collect()
        checkpoints.save(step, state, dataclasses.asdict(window))

    def is_due(every):
        return finished or step // every > step_before // every

    try:
        with StopSignal() as stop:
            while step < intervals.num_steps:
                step_before, step = step, step + program.steps_per_call
                finished = step >= intervals.num_steps
                state, metrics = program.step(state, next(batches), step_key)
                pending.append((step_before, metrics))
                if len(pending) > STEPS_IN_FLIGHT:
                    jax.block_until_ready(pending[-STEPS_IN_FLIGHT][1])
                progress.advance((step - step_before) * batch_size)

                if is_due(intervals.log_every):
                    collect()
                    speed = (step - reported_step) * batch_size / (time.monotonic() - reported_at)
                    reported_step, reported_at = step, time.monotonic()
                    means = window.take_means()
                    writer.write(step, step * batch_size, **means, **{f"{writer.unit}_per_second": speed})
                    progress.report(step * batch_size, means.get("loss", float("nan")), speed)
                stopping = stop.reached()
                for task in () if stopping else periodic:
                    if is_due(task.every):
                        collect()
                        paused = time.monotonic()
                        values = task.call(state, step, last)
                        reported_at += time.monotonic() - paused
                        if values:
                            writer.write(step, step * batch_size, **values)
                if is_due(intervals.save_every) or stopping:
                    save()
                if stopping:
                    checkpoints.wait()
                    raise Stopped(step, stop.number)
        checkpoints.wait()
    finally:
        progress.close()
    return state
