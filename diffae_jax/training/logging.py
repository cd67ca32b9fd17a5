"""What a person sees of a run: metrics.jsonl, TensorBoard, the progress bar, the parameter overview."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview
from tqdm import tqdm

WARM_UP_CALLS = 5  # of the step, before which the first ones still fill the queue


def is_main_process() -> bool:
    """Whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


def say(*words: Any, file: Any = None) -> None:
    """Prints a line once, whatever the number of processes, without breaking a progress bar; by default to stdout."""
    if is_main_process():
        file = file or sys.stdout
        tqdm.write(" ".join(str(word) for word in words), file=file)
        file.flush()


def parameter_table(params: Any) -> str:
    """Returns the count of parameters of each part of a model, and of each group of layers in it, as lines."""
    count = parameter_overview.count_parameters
    lines = []
    for part, groups in params.items():
        lines.append(f"{part:24} {count(groups):>12,} parameters")
        lines += [f"  {name:22} {count(group):>12,}" for name, group in groups.items()]
    return "\n".join([*lines, f"{'together':24} {count(params):>12,}"])


def warn_of_memory(bytes_per_device: int, remedy: str) -> None:
    """Says so where a program needs more memory than a device has."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit and bytes_per_device > limit:
        say(f"WARNING: a device has {quantity(limit, 'B')}, less than that: {remedy}.")


class MetricsWriter:
    """Appends a stage's rows to the metrics.jsonl of a run and, if asked, to TensorBoard; on the main process only.

    A stage that resumes at a step first drops its rows after it, so that the file is the one that an uninterrupted run
    would have written. `unit` is what the stage trains on: images or latents.
    """

    def __init__(self, folder: Path, stage: str, unit: str, first_step: int, tensorboard: bool):
        self.stage, self.unit = stage, unit
        self._file = None
        self._tensorboard = None
        if not is_main_process():
            return
        path = folder / "metrics.jsonl"
        if path.exists():
            kept = [
                json.dumps(row)
                for row in read_metrics(folder)
                if row.get("stage", "autoencoder") != stage or row["step"] <= first_step
            ]
            scratch = path.with_suffix(".tmp")
            scratch.write_text("".join(line + "\n" for line in kept))
            scratch.replace(path)
        self._file = path.open("a")
        if tensorboard:
            from clu.metric_writers import SummaryWriter  # imports TensorFlow

            self._tensorboard = SummaryWriter(str(folder / "tensorboard" / stage))

    def write(self, step: int, samples: int, **values: float) -> None:
        """Writes one row: the step, the images or latents seen, and values."""
        if self._file is None:
            return
        row = {"stage": self.stage, "step": step, self.unit: samples, **values}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._tensorboard is not None:
            self._tensorboard.write_scalars(step, values)

    def close(self) -> None:
        """Flushes and closes the files."""
        for file in (self._file, self._tensorboard):
            if file is not None:
                file.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of a run's metrics.jsonl; a kill may have cut the last, which is left out."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().rpartition("\n")[0].splitlines()] if path.exists() else []


def last_speed(folder: Path, unit: str) -> float | None:
    """Returns how many images or latents a second a run last trained on; None where it did not."""
    speeds = [row[f"{unit}_per_second"] for row in read_metrics(folder) if f"{unit}_per_second" in row]
    return speeds[-1] if speeds else None


class Progress:
    """A progress bar over images or latents on a terminal, a line at each report elsewhere."""

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
        """Counts samples done; says once, when the speed is known, how long the rest will take."""
        self._bar.update(samples)
        self._done += samples
        self._calls += 1
        if self._calls == WARM_UP_CALLS:
            self._timed_from = self._done, time.monotonic()
        elif self._calls == 4 * WARM_UP_CALLS and not self._on_terminal:
            done, began = self._timed_from
            per_second = (self._done - done) / (time.monotonic() - began)
            left = max(0, self._num_samples - self._done) / per_second
            say(f"About {duration(left)} to go, at {per_second:,.0f} {self._unit}/s.")

    def report(self, samples: int, loss: float, per_second: float) -> None:
        """Shows the loss, the speed and the time left."""
        self._bar.set_postfix(loss=f"{loss:.4f}")
        if not self._on_terminal:
            left = max(0.0, self._num_samples - samples) / per_second
            say(
                f"{samples:,} of {self._num_samples:,} {self._unit}, loss {loss:.4f}, "
                f"{per_second:,.0f} {self._unit}/s, {duration(left)} left"
            )

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()


def duration(seconds: float) -> str:
    """Writes a time span with the two units that matter: 3 d 4 h, 5 min 10 s."""
    seconds = round(seconds)
    for size, name, smaller, smaller_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{seconds // size} {name} {seconds % size // smaller} {smaller_name}"
    return f"{seconds} s"


def quantity(value: float | int, unit: str) -> str:
    """Writes a number with a metric prefix: 1.41 G, 20.3 M."""
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
