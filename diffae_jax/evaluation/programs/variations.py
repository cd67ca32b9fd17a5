"""Variation between images with the same z and different x_T (Sec. 5.1, Fig. 3, Appendix D)."""

import numpy as np

from diffae_jax.data.pictures import save_rows
from diffae_jax.evaluation.chunk_cache import Arrays
from diffae_jax.evaluation.intervals import percentiles
from diffae_jax.evaluation.results import Figure, Picture, Section
from diffae_jax.evaluation.study import Study
from diffae_jax.runtime.cluster import is_main_process

NAME = "variations"
TITLE = "Stochastic variations (Sec. 5.1, Appendix D)"
REQUIREMENTS: tuple[str, ...] = ("z", "two images")
NUM_VARIATIONS = 8
NUM_IMAGES = 32
NUM_ROWS = 6  # of the picture
METRIC = "share of the pixel variance that is due to x_T"
PICTURE = "variations.png"
COLUMNS = ("image", *(f"x_T {i + 1}" for i in range(NUM_VARIATIONS)), "mean", "4 x deviation")


def num_calls(study: Study) -> int:
    """Returns the number of UNet calls, counted per image."""
    return NUM_VARIATIONS * min(NUM_IMAGES, len(study.chosen)) * study.settings.num_code_steps


def run(study: Study) -> Section:
    """Measures the share of the pixel variance that is due to x_T, and draws some variations."""
    num_steps = study.settings.num_code_steps
    count = min(NUM_IMAGES, len(study.chosen))
    chunks = [_chunk(study, num_steps, *bounds) for bounds in study.chunks(count)]
    mean, variance, images = (np.concatenate([chunk[k] for chunk in chunks]) for k in ("mean", "variance", "images"))

    def share(mean, variance):
        within = variance.mean()
        between = mean.var(axis=0, ddof=1).mean() if len(mean) > 1 else 0.0
        # a mean of NUM_VARIATIONS images still varies with x_T; subtract that part
        return float(within / (within + max(0.0, between - within / NUM_VARIATIONS)))

    low, high = percentiles(share, mean, variance)
    figure = Figure(METRIC, "random x_T", f"T = {num_steps}", share(mean, variance), count, low, high)
    if is_main_process():
        shown = study.read(0, len(images))
        rows = {
            f"image {i + 1}": np.concatenate([x_0[None], decoded, m[None], 4 * np.sqrt(v)[None] - 1])
            for i, (x_0, decoded, m, v) in enumerate(zip(shown, images, mean, variance, strict=False))
        }
        save_rows(study.folder / PICTURE, rows, COLUMNS)
    caption = (
        f"Each row shows an image, decodings of its z with {NUM_VARIATIONS} random x_T, their mean, and their standard "
        "deviation (four times as bright)."
    )
    picture = Picture(PICTURE, caption)
    return Section(NAME, TITLE, (figure,), (picture,))


def _chunk(study: Study, num_steps: int, start: int, stop: int) -> Arrays:
    def compute() -> Arrays:
        variations = study.model.variations(study.read(start, stop), NUM_VARIATIONS, num_steps, study.seed, first=start)
        return {
            "mean": variations.mean,
            "variance": variations.images.var(axis=1, ddof=1),
            "images": variations.images[: max(0, NUM_ROWS - start)],
        }

    return study.cache.load_or_compute(f"{NAME}-{start:07d}", compute)
