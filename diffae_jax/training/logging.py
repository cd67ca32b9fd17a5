"""What a person sees of a run: metrics.jsonl, TensorBoard, the progress bar, the parameter overview."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview
from tqdm import tqdm


def is_main_process() -> bool:
    """Whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


def say(*words: Any) -> None:
    """Prints a line once, whatever the number of processes, without breaking a progress bar."""
    if is_main_process():
        tqdm.write(" ".join(str(word) for word in words), file=sys.stdout)
        sys.stdout.flush()


def parameter_table(params: Any) -> str:
    """Returns the count of parameters of each part of a model, and of each group of layers in it, as lines."""
    count = parameter_overview.count_parameters
    lines = []
    for part, groups in params.items():
        lines.append(f"{part:24} {count(groups):>12,} parameters")
        lines += [f"  {name:22} {count(group):>12,}" for name, group in groups.items()]
    return "\n".join([*lines, f"{'together':24} {count(params):>12,}"])


class MetricsWriter:
    """Appends rows to metrics.jsonl and, if asked, to TensorBoard; on the main process only.

    A run that resumes at a step first drops the rows after it, so that the file is the one that an uninterrupted run
    would have written.
    """

    def __init__(self, folder: Path, first_step: int, tensorboard: bool):
        self._file = None
        self._tensorboard = None
        if not is_main_process():
            return
        path = folder / "metrics.jsonl"
        if path.exists():
            whole_lines = path.read_text().rpartition("\n")[0].splitlines()  # a kill may have cut the last
            kept = [line for line in whole_lines if json.loads(line)["step"] <= first_step]
            scratch = path.with_suffix(".tmp")
            scratch.write_text("".join(line + "\n" for line in kept))
            scratch.replace(path)
        self._file = path.open("a")
        if tensorboard:
            from clu.metric_writers import SummaryWriter  # imports TensorFlow

            self._tensorboard = SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, images: int, **values: float) -> None:
        """Writes one row: the step, the images seen, and values."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, "images": images, **values}) + "\n")
        self._file.flush()
        if self._tensorboard is not None:
            self._tensorboard.write_scalars(step, values)

    def close(self) -> None:
        """Flushes and closes the files."""
        for file in (self._file, self._tensorboard):
            if file is not None:
                file.close()


class Progress:
    """A progress bar over images on a terminal, a line at each report elsewhere."""

    def __init__(self, num_images: int, first_image: int):
        self._on_terminal = sys.stdout.isatty()
        self._num_images = num_images
        self._bar = tqdm(
            total=num_images,
            initial=first_image,
            unit=" images",
            unit_scale=True,
            file=sys.stdout,
            disable=not (is_main_process() and self._on_terminal),
            dynamic_ncols=True,
        )

    def advance(self, images: int) -> None:
        """Counts images done."""
        self._bar.update(images)

    def report(self, images: int, loss: float, images_per_second: float) -> None:
        """Shows the loss, the speed and the time left."""
        self._bar.set_postfix(loss=f"{loss:.4f}")
        if not self._on_terminal:
            left = (self._num_images - images) / images_per_second
            say(
                f"{images:,} of {self._num_images:,} images, loss {loss:.4f}, "
                f"{images_per_second:,.0f} images/s, {duration(left)} left"
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


def quantity(value: float, unit: str) -> str:
    """Writes a number with a metric prefix: 1.41 G, 20.3 M."""
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
