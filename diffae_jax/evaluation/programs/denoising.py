"""The predicted image at each step of decoding (Sec. 5.5, Fig. 6)."""

import numpy as np

from diffae_jax.data.pictures import save_rows
from diffae_jax.evaluation.chunk_cache import Arrays
from diffae_jax.evaluation.intervals import mean_figure
from diffae_jax.evaluation.metrics import mse
from diffae_jax.evaluation.programs.reconstruction import BASELINE, Method, methods
from diffae_jax.evaluation.results import Figure, Picture, Section
from diffae_jax.evaluation.study import Study, encoded
from diffae_jax.runtime.cluster import is_main_process

NAME = "denoising"
TITLE = "Predicted image at each step (Sec. 5.5, Fig. 6)"
REQUIREMENTS: tuple[str, ...] = ()
NUM_STEPS = 10  # as in Fig. 6
NUM_IMAGES = 256
METRIC = "MSE of the predicted image"
PICTURE = "denoising.png"


def column(step: int) -> str:
    """Returns the column name of a step, which is counted down as in Fig. 6."""
    return f"t_{NUM_STEPS - 1 - step}"


def num_calls(study: Study) -> int:
    """Returns the approximate number of UNet calls, counted per image."""
    return 2 * NUM_STEPS * min(NUM_IMAGES, len(study.chosen)) * len(_inferred(study))


def run(study: Study) -> Section:
    """Measures the error of the predicted image at each step from the image's own x_T."""
    count = min(NUM_IMAGES, len(study.chosen))
    figures: list[Figure] = []
    rows = {}
    for method in _inferred(study):
        chunks = [_chunk(study, method, *bounds) for bounds in study.chunks(count)]
        errors = np.concatenate([chunk["errors"] for chunk in chunks])
        figures += [mean_figure(METRIC, method.row, column(step), errors[:, step]) for step in range(NUM_STEPS)]
        rows["DDIM baseline" if method.row == BASELINE else "with z"] = chunks[0]["frames"]
    if is_main_process():
        save_rows(study.folder / PICTURE, rows, [column(step) for step in range(NUM_STEPS)])
    picture = Picture(PICTURE, f"The predicted image at each of {NUM_STEPS} steps, from t_9 to t_0.")
    return Section(NAME, TITLE, tuple(figures), (picture,))


def _inferred(study: Study) -> list[Method]:
    """Returns the methods of the paper that infer x_T."""
    return [method for method in methods(study) if method.inversion == "ddim"]


def _chunk(study: Study, method: Method, start: int, stop: int) -> Arrays:
    def compute() -> Arrays:
        x_0 = study.read(start, stop)
        z = encoded(method.model, x_0)
        predicted = method.model.progress(z, method.model.invert(x_0, z, NUM_STEPS), NUM_STEPS)
        errors = np.stack([mse(predicted[:, step], x_0) for step in range(NUM_STEPS)], axis=1)
        return {"errors": errors, "frames": predicted[0]}

    return study.cache.load_or_compute(f"{NAME}-{method.name}-{start:07d}", compute)
