"""The metrics of a run: metrics.jsonl, TensorBoard, a tracker, and the table of parameters."""

import json
from collections.abc import Callable
from types import TracebackType
from typing import Any

from clu import parameter_overview
from ml_collections import ConfigDict

from diffae_jax.config.differences import flat
from diffae_jax.runtime.cluster import is_main_process, together
from diffae_jax.runtime.console import warn
from diffae_jax.runtime.files import AnyPath, GrowingText, atomic_write, reason_of
from diffae_jax.runtime.interrupts import Stopped
from diffae_jax.training.trackers import Status, TrackedStage, open_tracker

METRICS = "metrics.jsonl"
FLUSH_SECONDS = 10  # a killed run loses at most this much of the TensorBoard file


def parameter_table(params: Any) -> str:
    """Returns a table with the number of parameters of each part of a model and of its layers."""
    count = parameter_overview.count_parameters
    lines = []
    for part, groups in params.items():
        lines.append(f"{part:24} {count(groups):>12,} parameters")
        lines += [f"  {name:22} {count(group):>12,}" for name, group in groups.items()]
    return "\n".join([*lines, f"{'total':24} {count(params):>12,}"])


class MetricsWriter:
    """Appends rows to the metrics.jsonl of a run and, optionally, to TensorBoard and a tracker.

    Only the main process writes. A resumed stage first removes its rows after `first_step`, so
    that the file equals that of an uninterrupted run. A tracker cannot remove rows: it gets them
    once, because the resumed stage writes the same values. If it fails, it gets no more rows until
    the run is resumed, and training continues. `unit` is "images" or "latents". As a context, the
    writer tells the tracker how the stage ended.
    """

    def __init__(
        self,
        folder: AnyPath,
        stage: str,
        unit: str,
        first_step: int,
        tensorboard: bool,
        tracker: TrackedStage | None = None,
    ):
        self.stage, self.unit = stage, unit
        self._file = None
        self._tensorboard = None
        self._tracker = tracker
        if not is_main_process():
            return
        path = folder / METRICS
        if path.exists():
            rows = read_metrics(folder)
            kept = [
                json.dumps(row) for row in rows if row.get("stage", "autoencoder") != stage or row["step"] <= first_step
            ]
            with atomic_write(path) as scratch:
                scratch.write_text("".join(line + "\n" for line in kept))
        self._file = GrowingText(path)
        if tensorboard:
            from tensorboardX import SummaryWriter

            # TensorBoard ignores values of earlier files from `purge_step` on. File names have a
            # resolution of one second, so the suffix keeps them distinct.
            self._tensorboard = SummaryWriter(
                str(folder / "tensorboard" / stage),
                purge_step=first_step + 1,
                flush_secs=FLUSH_SECONDS,
                filename_suffix=f".{first_step}",
            )

    def write(self, step: int, samples: int, **values: float) -> None:
        """Writes one row: the step, the number of images or latents seen, and the values."""
        if self._file is None:
            return
        row = {"stage": self.stage, "step": step, self.unit: samples, **values}
        self._file.append(json.dumps(row))
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
        self._track(lambda tracked: tracked.write(step, samples, values))

    def _track(self, call: Callable[[TrackedStage], None]) -> None:
        """Calls the tracker. Gives it up with a warning if it fails."""
        if self._tracker is None:
            return
        try:
            call(self._tracker)
        except Exception as error:  # of any type: a server, a network or a disk has failed
            self._tracker = None
            warn(
                f"WARNING: the tracker failed ({reason_of(error)}), so it gets no more metrics of this stage. "
                f"{METRICS} has all of them."
            )

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self.close("KILLED" if isinstance(error, Stopped | KeyboardInterrupt) else "FAILED")

    def close(self, status: Status = "FINISHED") -> None:
        """Closes the files, and the connection to the tracker with the status of the stage."""
        for file in (self._file, self._tensorboard):
            if file is not None:
                file.close()
        self._track(lambda tracked: tracked.close(status))


def open_writer(config: ConfigDict, folder: AnyPath, stage: str, unit: str, first_step: int) -> MetricsWriter:
    """Returns the writer that the section `report` of a config describes, for a training stage.

    Raises UserError if the tracker cannot be used.
    """
    with together():
        tracker = open_tracker(
            config.report.tracker, folder, config.name, flat(config.to_dict()), stage, unit, first_step
        )
    return MetricsWriter(folder, stage, unit, first_step, config.report.tensorboard, tracker)


def read_metrics(folder: AnyPath) -> list[dict[str, Any]]:
    """Returns the rows of metrics.jsonl.

    Ignores an incomplete last row, which a killed run may leave.
    """
    path = folder / METRICS
    return [json.loads(line) for line in path.read_text().rpartition("\n")[0].splitlines()] if path.exists() else []


def last_speed(folder: AnyPath, unit: str) -> float | None:
    """Returns the last logged training speed in images or latents per second, or None."""
    speeds = [row[f"{unit}_per_second"] for row in read_metrics(folder) if f"{unit}_per_second" in row]
    return speeds[-1] if speeds else None
