"""The speed of the model on these devices (Appendix B, Table 7)."""

import time
from collections.abc import Callable

import jax
import numpy as np

from diffae_jax.evaluation.intervals import percentiles
from diffae_jax.evaluation.paper import published as paper
from diffae_jax.evaluation.results import Figure, Section
from diffae_jax.evaluation.study import Study, encoded

NAME = "throughput"
TITLE = "Throughput (Appendix B, Table 7)"
REQUIREMENTS: tuple[str, ...] = ()
PICTURE = ""
NUM_IMAGES = 64  # for each device
NUM_STEPS = 10
REPEATS = 5
METRIC = "images per second on each device"


def num_calls(study: Study) -> int:
    """Returns the number of UNet calls, counted per image."""
    return 2 * (REPEATS + 1) * NUM_STEPS * NUM_IMAGES * study.model.mesh.size


def run(study: Study) -> Section:
    """Times encoding, inversion and decoding after compilation, and reports the training speed."""
    model, devices = study.model, study.model.mesh.size
    count = NUM_IMAGES * devices
    images = study.read(0, min(count, len(study.chosen)))
    x_0 = images[np.arange(count) % len(images)]
    z = encoded(model, x_0)
    x_T = model.noise(np.arange(count))
    work: dict[str, Callable[[], np.ndarray]] = {
        **({"encode": lambda: model.encode(x_0)} if study.has_z else {}),
        f"invert, T = {NUM_STEPS}": lambda: model.invert(x_0, z, NUM_STEPS),
        f"decode, T = {NUM_STEPS}": lambda: model.decode(z, x_T, NUM_STEPS),
    }
    figures = []
    for row, call in work.items():
        call()
        speeds = np.array([count / _seconds(call) / devices for _ in range(REPEATS)])
        low, high = percentiles(np.median, speeds)
        figures.append(Figure(METRIC, row, "", float(np.median(speeds)), count, low, high))
    speed = study.images_per_second
    if speed is not None:
        paper_value = paper.throughput(model.config.name, study.has_z)
        batch_size = model.config.train.batch_size
        figures.append(
            Figure(METRIC, "training", "", speed / devices, batch_size, paper=paper_value, counted="images per step")
        )
    kind = jax.devices()[0].device_kind
    notes = [f"Measured on {devices} x {kind} in {model.precision}. The paper used V100 GPUs and float16."]
    if speed is None:
        notes.append("A bundle does not include the training speed. It is in the metrics.jsonl of a run.")
    return Section(NAME, TITLE, tuple(figures), (), tuple(notes))


def _seconds(call: Callable[[], np.ndarray]) -> float:
    began = time.perf_counter()
    call()  # returns arrays on the host, so it has waited for the devices
    return time.perf_counter() - began
