"""Error against network calls for all inversions, samplers and grids."""

import numpy as np

from diffae_jax.evaluation.chunk_cache import Arrays
from diffae_jax.evaluation.curves import save_curves
from diffae_jax.evaluation.frontier import (
    DECODINGS,
    NUM_TARGET_STEPS,
    RECONSTRUCTIONS,
    TARGET,
    Choice,
    calls_of_decoding,
    decoding,
    exact_decoding,
    jumps,
    reconstruction,
)
from diffae_jax.evaluation.intervals import mean_figure, percentiles
from diffae_jax.evaluation.results import Figure, Picture, Section
from diffae_jax.evaluation.study import Study, encoded
from diffae_jax.runtime.cluster import is_main_process

NAME = "frontier"
TITLE = "Error against network calls"
REQUIREMENTS: tuple[str, ...] = ("two images",)
NUM_IMAGES = 64
PICTURE = "frontier.png"
RECONSTRUCTED, DECODED = "MSE of the reconstruction", "MSE to the exact solution"
CALLS, CALLS_OF_DECODING = "network calls in both directions", "network calls of decoding"
SECONDS = "seconds per image"
JUMPS = "largest jump of an interpolation"
CALLS_OF_EXACT = 6  # about as many in each step, to estimate the duration


def num_calls(study: Study) -> int:
    """Returns the approximate number of UNet calls, counted per image."""
    steps, images = study.settings.num_steps, min(NUM_IMAGES, len(study.chosen))
    one_step = sum(2 * calls_of_decoding(choice, 1) for choice in DECODINGS + RECONSTRUCTIONS)
    one_step += sum(2 * (CALLS_OF_EXACT if c.inversion == "exact" else 2) for c in RECONSTRUCTIONS)
    return images * (one_step * sum(steps) + calls_of_decoding(TARGET, NUM_TARGET_STEPS))


def run(study: Study) -> Section:
    """Measures errors, network calls and times, and draws the error against the calls."""
    figures: list[Figure] = []
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {RECONSTRUCTED: {}, DECODED: {}}
    for metric, calls, choices in (
        (RECONSTRUCTED, CALLS, RECONSTRUCTIONS),
        (DECODED, CALLS_OF_DECODING, DECODINGS),
    ):
        for choice in choices:
            for num_steps in study.settings.num_steps:
                point = _point(study, choice, num_steps)
                row, column = choice.name, f"T = {num_steps}"
                figures.append(mean_figure(metric, row, column, point["errors"]))
                figures.append(mean_figure(calls, row, column, point["num_calls"]))
                seconds = calls.replace("network calls", SECONDS)
                figures.append(Figure(seconds, row, column, float(point["seconds"]), len(point["errors"])))
                if choice.inversion is not None:
                    figures += [_of_codes(name, row, column, point) for name in NORMALITY]
                    figures.append(mean_figure(JUMPS, row, column, point["jumps"], counted="pairs"))
                mean = float(point["num_calls"].mean()), float(point["errors"].mean())
                curves[metric].setdefault(choice.name, []).append(mean)
    if is_main_process():
        save_curves(study.folder / PICTURE, curves, "network calls per image")
    note = (
        f"The exact solution is taken from {NUM_TARGET_STEPS} steps of {TARGET.sampler} on the grid {TARGET.grid}. "
        "If x_T is N(0, I), its deviation is 1, its kurtosis 3, and the autocorrelation of neighboring values 0. The "
        "largest jump is 1 if all frames of an interpolation are equally far apart."
    )
    picture = Picture(PICTURE, "Mean squared error against network calls; below and to the left is better.")
    return Section(NAME, TITLE, tuple(figures), (picture,), (note,))


# Statistics of x_T, which are 1, 3 and 0 for N(0, I). `moments` has the sums that they need.
NORMALITY = {
    "deviation of x_T": lambda m: float(np.sqrt(m[:, 1].mean() - m[:, 0].mean() ** 2)),
    "kurtosis of x_T": lambda m: float(m[:, 3].mean() / (m[:, 1].mean() - m[:, 0].mean() ** 2) ** 2),
    "autocorrelation of x_T": lambda m: float(m[:, 2].mean() / (m[:, 1].mean() - m[:, 0].mean() ** 2)),
}


def moments(x_T: np.ndarray) -> np.ndarray:
    """Returns the sums behind the statistics of x_T for each image, [N, 4].

    They are the mean of x_T, of its square, of products of neighbors along the last spatial axis,
    and of the fourth power. The last two are taken around the mean over all images.
    """
    axes = tuple(range(1, x_T.ndim))
    centered = x_T - x_T.mean()
    neighbors = centered[..., 1:, :] * centered[..., :-1, :]
    columns = x_T.mean(axes), np.square(x_T).mean(axes), neighbors.mean(axes), (centered**4).mean(axes)
    return np.stack(columns, axis=1)


def _of_codes(name: str, row: str, column: str, point: Arrays) -> Figure:
    values = point["moments"].astype(np.float64)
    low, high = percentiles(NORMALITY[name], values)
    return Figure(name, row, column, NORMALITY[name](values), len(values), low, high)


def _point(study: Study, choice: Choice, num_steps: int) -> Arrays:
    """Returns errors, calls, time and moments of x_T for one choice and number of steps."""
    x_0 = study.read(0, min(NUM_IMAGES, len(study.chosen)))

    def compute() -> Arrays:
        if choice.inversion is not None:
            point = reconstruction(study.model, x_0, choice, num_steps)
            z = encoded(study.model, x_0)
            more = {"moments": moments(point.x_T), "jumps": jumps(study.model, z, point.x_T, choice, num_steps)}
        else:
            z, x_T, target = _targets(study, x_0)
            point, more = decoding(study.model, z, x_T, target, choice, num_steps), {}
        return {
            "errors": np.asarray(point.errors),
            "num_calls": np.asarray(point.num_calls, np.float64),
            "seconds": np.asarray(point.seconds),
        } | more

    direction = "decoding" if choice.inversion is None else "both"  # a name such as "ddim, even" is of either
    return study.cache.load_or_compute(f"{NAME}-{direction}-{choice.name.replace(', ', '-')}-{num_steps}", compute)


def _targets(study: Study, x_0: np.ndarray) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Returns z of the images, random x_T, and their exact decodings."""
    z, x_T = encoded(study.model, x_0), study.model.noise(np.arange(len(x_0)), study.seed)
    target = study.cache.load_or_compute(f"{NAME}-target", lambda: {"images": exact_decoding(study.model, z, x_T)})
    return z, x_T, target["images"]
