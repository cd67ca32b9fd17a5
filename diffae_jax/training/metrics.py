"""The metrics of a run: metrics.jsonl, TensorBoard, the overview of parameters."""

import json
from pathlib import Path
from typing import Any

from clu import parameter_overview

from diffae_jax.runtime.cluster import is_main_process

FLUSH_SECONDS = 10  # what a killed run may lose of TensorBoard's file


def parameter_table(params: Any) -> str:
    """Returns the count of parameters of each part of a model, and of each group of layers in it, as lines."""
    count = parameter_overview.count_parameters
    lines = []
    for part, groups in params.items():
        lines.append(f"{part:24} {count(groups):>12,} parameters")
        lines += [f"  {name:22} {count(group):>12,}" for name, group in groups.items()]
    return "\n".join([*lines, f"{'together':24} {count(params):>12,}"])


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
            from tensorboardX import SummaryWriter

            # of earlier files TensorBoard hides what they have from the purged step on; names hold whole seconds
            self._tensorboard = SummaryWriter(
                str(folder / "tensorboard" / stage),
                purge_step=first_step + 1,
                flush_secs=FLUSH_SECONDS,
                filename_suffix=f".{first_step}",
            )

    def write(self, step: int, samples: int, **values: float) -> None:
        """Writes one row: the step, the images or latents seen, and values."""
        if self._file is None:
            return
        row = {"stage": self.stage, "step": step, self.unit: samples, **values}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)

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
