"""How fast the model is here (Appendix B, Table 7)."""

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
NEEDS: tuple[str, ...] = ()
PICTURE = ""
NUM_IMAGES = 64  # a device
NUM_STEPS = 10
REPEATS = 5
METRIC = "images a second on each device"


def calls(study: Study) -> int:
    """Returns how many times the UNet is called, once for each image."""
    return 2 * (REPEATS + 1) * NUM_STEPS * NUM_IMAGES * jax.device_count()


def run(study: Study) -> Section:
    """Times encoding, inversion and decoding, once they are compiled, and tells the speed of training."""
    model, devices = study.model, jax.device_count()
    count = NUM_IMAGES * devices
    images = study.read(0, min(count, len(study.chosen)))
    x_0 = images[np.arange(count) % len(images)]
    z = encoded(model, x_0)
    x_T = model.noise(np.arange(count))
    work: dict[str, Callable[[], np.ndarray]] = {
        **({"encode": lambda: model.encode(x_0)} if study.has_z else {}),
        f"infer x_T, T = {NUM_STEPS}": lambda: model.invert(x_0, z, NUM_STEPS),
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
        of_paper = paper.throughput(model.config.name, study.has_z)
        seen = model.config.train.batch_size
        figures.append(Figure(METRIC, "training", "", speed / devices, seen, paper=of_paper, counted="images a step"))
    kind = jax.devices()[0].device_kind
    notes = [f"On {devices} x {kind}, in {model.precision}; the paper's V100 trained in float16."]
    if speed is None:
        notes.append("The speed of training is in the metrics.jsonl of a run; a bundle does not hold it.")
    return Section(NAME, TITLE, tuple(figures), (), tuple(notes))


def _seconds(call: Callable[[], np.ndarray]) -> float:
    began = time.perf_counter()
    call()  # returns arrays on the host, so it has waited for the devices
    return time.perf_counter() - began
