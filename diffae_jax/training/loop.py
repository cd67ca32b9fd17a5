"""The training loop: steps, reports, checkpoints, stop signals. Both networks use it."""

import collections
import contextlib
import dataclasses
import itertools
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Key

from diffae_jax.models.functional import flatten, unflatten
from diffae_jax.runtime.console import Progress
from diffae_jax.runtime.interrupts import Stopped
from diffae_jax.runtime.sharding import on_host, shard_array
from diffae_jax.training.checkpoint import Checkpoints
from diffae_jax.training.health import check_finite
from diffae_jax.training.metrics import MetricsWriter
from diffae_jax.training.program import Program
from diffae_jax.training.state import TrainState
from diffae_jax.training.step import Metrics

_SYNC_POINTS = itertools.count()  # JAX stops all processes at the same number

# A step whose loss is this many times the mean of the steps before it, since the last report, is a
# spike. The mean of few steps says little.
SPIKE, STEPS_BEFORE_SPIKE = 5, 10
CALLS_IN_FLIGHT = 3  # dispatched ahead of the running call; more would only hold batches in memory

# (state, step, metrics of that step) -> values for metrics.jsonl
PeriodicCall = Callable[[TrainState, int, dict[str, float]], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Periodic:
    """A task that runs every `every` steps, and after the last step."""

    every: int
    call: PeriodicCall


@dataclasses.dataclass
class Window:
    """Sums of the metrics since the last report.

    The sums are part of the checkpoint, so that a resumed run reports the same values.
    """

    count: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    num_spikes: int = 0

    def add(self, metrics: dict[str, float]) -> None:
        """Adds the metrics of a step, unless float16 overflow skipped the step."""
        if metrics["finite"]:
            if self.count >= STEPS_BEFORE_SPIKE and metrics["loss"] > SPIKE * self.sums["loss"] / self.count:
                self.num_spikes += 1
            self.count += 1
            for name, value in metrics.items():
                self.sums[name] = self.sums.get(name, 0.0) + value

    def take_means(self) -> dict[str, float]:
        """Returns the means and the number of spikes of the loss, and resets all."""
        means = {name: value / max(self.count, 1) for name, value in self.sums.items()}
        means["loss_spikes"] = float(self.num_spikes)
        self.count, self.sums, self.num_spikes = 0, {}, 0
        means.pop("finite", None)
        return means


class StopSignal:
    """Catches SIGINT and SIGTERM, so that all processes can stop after the same step."""

    def __init__(self):
        self.number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may set signal handlers
        numbers = [signal.SIGINT]
        if jax.process_count() == 1:  # otherwise the JAX cluster runtime handles SIGTERM for all processes
            numbers.append(signal.SIGTERM)
        self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.number = number
        if number == signal.SIGINT:  # do not print here: the signal may have interrupted a print
            os.write(2, b"\nStopping after this step. To stop at once without saving, press Ctrl-C again.\n")
        signal.signal(number, self._handle_again)
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)

    def _handle_again(self, number: int, _: FrameType | None) -> None:
        signal.signal(number, self._previous[number])
        signal.raise_signal(number)

    def reached(self) -> bool:
        """Returns whether to stop now, with the same result on all processes.

        All processes must call this equally often.
        """
        if jax.process_count() == 1:
            return self.number is not None
        if multihost_utils.reached_preemption_sync_point(next(_SYNC_POINTS)):
            self.number = self.number or signal.SIGTERM
            return True
        return False


def steps_of(samples: int, batch_size: int) -> int:
    """Converts a number of samples into steps, at least one."""
    return max(1, round(samples / batch_size))


@dataclasses.dataclass(frozen=True)
class Intervals:
    """The length of training and the intervals of logging and saving, in steps."""

    num_steps: int
    log_every: int
    save_every: int

    def last_step(self, first_step: int, steps_per_call: int) -> int:
        """Returns the step after which training ends, because a call is never cut short."""
        return first_step + steps_per_call * math.ceil((self.num_steps - first_step) / steps_per_call)


def begin(
    program: Program, checkpoints: Checkpoints, key: Key[Array, ""], weights: Mapping[str, np.ndarray] | None = None
) -> tuple[TrainState, Window]:
    """Returns the state and the metrics window of the newest checkpoint, or those of step 0.

    `weights` are host arrays by dotted name. At step 0, they replace initial weights.
    """
    if checkpoints.latest is None:
        state = program.init(key)
        if weights:
            whole = program.abstract_state.step.sharding  # replicated
            params = flatten(program.packing.unpack(on_host(state.params))) | dict(weights)
            state = program.start(unflatten({name: shard_array(array, whole) for name, array in params.items()}))
        return state, Window()
    layouts = program.abstract_state, program.unpacked_state
    state, window = checkpoints.restore(checkpoints.latest, *layouts, program.packing)
    return state, Window(**window)


class Reports:
    """Collects metrics for metrics.jsonl. They stay on the devices until a report needs them."""

    def __init__(self, window: Window, writer: MetricsWriter, checkpoints: Checkpoints, batch_size: int, step: int):
        self.window, self.last = window, {}  # last: the metrics of the last step
        self._writer, self._checkpoints, self._batch_size = writer, checkpoints, batch_size
        self._pending: collections.deque[tuple[int, Metrics]] = collections.deque()  # (steps before the call, metrics)
        self._reported_step, self._reported_at = step, time.monotonic()

    def add(self, step_before: int, metrics: Metrics) -> None:
        """Adds the metrics of a call. Waits if too many calls are in flight."""
        self._pending.append((step_before, metrics))
        if len(self._pending) > CALLS_IN_FLIGHT:
            jax.block_until_ready(self._pending[-CALLS_IN_FLIGHT][1])

    def collect(self, explain: Callable[[], str] | None = None) -> None:
        """Fetches the metrics from the devices.

        Raises UserError if a step was not finite, with the explanation that `explain` finds.
        """
        while self._pending:
            step_before, metrics = self._pending.popleft()
            columns = {name: np.atleast_1d(values).tolist() for name, values in jax.device_get(metrics).items()}
            for offset, row in enumerate(zip(*columns.values(), strict=True), start=1):
                values = dict(zip(columns, row, strict=True))
                if not values["finite"]:
                    self._checkpoints.wait()  # the message names the last step that was saved
                check_finite(step_before + offset, values, self._checkpoints.latest, self._writer.stage, explain)
                self.window.add(values)
                self.last.update(values)

    def write(self, step: int, progress: Progress) -> None:
        """Writes the means since the last report, and the speed."""
        self.collect()
        speed = (step - self._reported_step) * self._batch_size / (time.monotonic() - self._reported_at)
        self._reported_step, self._reported_at = step, time.monotonic()
        means, samples = self.window.take_means(), step * self._batch_size
        self._writer.write(step, samples, **means, **{f"{self._writer.unit}_per_second": speed})
        progress.report(samples, means.get("loss", float("nan")), speed, num_spikes=int(means["loss_spikes"]))

    def run(self, task: Periodic, state: TrainState, step: int) -> None:
        """Runs a task and writes its values. Its time does not count as training time."""
        self.collect()
        paused = time.monotonic()
        values = task.call(state, step, self.last)
        self._reported_at += time.monotonic() - paused
        if values:
            self._writer.write(step, step * self._batch_size, **values)


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
    sample_names: Callable[[int], Sequence[str]] | None = None,
    weights: Mapping[str, np.ndarray] | None = None,
) -> TrainState:
    """Trains from the newest checkpoint to the last step, saves the final state and returns it.

    Without a checkpoint, it starts from initial weights. `weights`, host arrays by dotted name,
    replace some of them.

    `batches` must start after the step of the checkpoint. A call of the program may take several
    steps; a report, task or save that falls within the call runs after it. Raises Stopped after a
    signal, and UserError after a step with a non-finite loss. Both leave good checkpoints.

    `sample_names` returns the names of the samples of a step. If it is given, each step is checked
    at once, and the error says which samples and which layer were not finite. The program must
    then take one step per call.
    """
    init_key, step_key = jax.random.split(key)
    step = checkpoints.latest or 0
    state, window = begin(program, checkpoints, init_key, weights)
    reports = Reports(window, writer, checkpoints, batch_size, step)
    last_step = intervals.last_step(step, program.steps_per_call)
    progress = Progress(writer.unit, last_step * batch_size, step * batch_size)

    def is_due(every):
        return finished or step // every > step_before // every

    def explain_step(step):
        return program.explain(state, batch, step_key, sample_names(step), writer.unit.removesuffix("s"))

    with contextlib.closing(progress), StopSignal() as stop:
        while step < intervals.num_steps:
            step_before, step = step, step + program.steps_per_call
            finished = step >= intervals.num_steps
            state, metrics = program.step(state, batch := next(batches), step_key)
            checkpoints.check()
            reports.add(step_before, metrics)
            if sample_names is not None:  # the batch and, in the state, the weights are still those of a bad step
                reports.collect(partial(explain_step, step))
            progress.advance((step - step_before) * batch_size)
            if is_due(intervals.log_every):
                reports.write(step, progress)
            for task in periodic:
                if is_due(task.every):
                    reports.run(task, state, step)
            stopping = stop.reached()  # only after the tasks, because a resumed run does not repeat them
            if is_due(intervals.save_every) or stopping:
                reports.collect()
                checkpoints.save(step, state, dataclasses.asdict(window))
            if stopping:
                checkpoints.wait()
                raise Stopped(step, stop.number)
        checkpoints.wait()
        if stop.number is not None and jax.process_count() == 1:  # a signal after the last step
            raise Stopped(step, stop.number)
    return state
