"""The x_T of images that differ from the training images (Appendix J, Fig. 11 and 12)."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from diffae_jax.data.pictures import save_rows
from diffae_jax.evaluation.chunk_cache import Arrays
from diffae_jax.evaluation.intervals import mean_figure
from diffae_jax.evaluation.metrics import mse
from diffae_jax.evaluation.results import Figure, Picture, Section
from diffae_jax.evaluation.study import NUM_PICTURES, Study, as_float, encoded
from diffae_jax.runtime.cluster import is_main_process

NAME = "out_of_distribution"
TITLE = "Out-of-distribution images (Appendix J)"
REQUIREMENTS: tuple[str, ...] = ()
NUM_IMAGES = 256
PICTURE = "out_of_distribution.png"
USUAL, SHIFTED, NEGATIVE, FOREIGN = "held-out images", "shifted by a quarter", "negatives", "foreign images"
NORMAL = "noise drawn from N(0, I)"
AUTOCORRELATION = "autocorrelation of neighboring values of x_T"
ERROR = "MSE of the reconstruction"

Images = Float[np.ndarray, "n *shape"]


def shifted(images: Images) -> Images:
    """Shifts images right by a quarter of their last spatial axis, and repeats the border."""
    axis, size = images.ndim - 2, images.shape[-2]
    shift = max(1, size // 4)
    edge = np.repeat(np.take(images, [0], axis), shift, axis)
    return np.concatenate([edge, np.take(images, range(size - shift), axis)], axis)


def normality(x_T: Images) -> dict[str, Float[np.ndarray, "n"]]:
    """Returns statistics of each x_T.

    For N(0, I), the standard deviation is 1 and the others are 0. The autocorrelation is that of
    neighboring values, averaged over spatial axes and channels.
    """
    from scipy.stats import kurtosis, skew  # a slow import that changes warning filters

    values = np.asarray(x_T, np.float64)
    flat = values.reshape(len(values), -1)
    centered = values - flat.mean(1).reshape(-1, *[1] * (values.ndim - 1))
    products = []
    for axis in range(1, values.ndim - 1):
        if values.shape[axis] > 1:
            ahead = np.take(centered, range(1, values.shape[axis]), axis)
            behind = np.take(centered, range(values.shape[axis] - 1), axis)
            products.append((ahead * behind).reshape(len(values), -1).mean(1))
    variance = flat.var(1)
    return {
        "mean of x_T": flat.mean(1),
        "standard deviation of x_T": flat.std(1, ddof=1),
        "skewness of x_T": skew(flat, axis=1),
        "excess kurtosis of x_T": kurtosis(flat, axis=1),
        AUTOCORRELATION: np.mean(products, axis=0) / np.maximum(variance, 1e-12) if products else np.zeros(len(values)),
    }


def num_calls(study: Study) -> int:
    """Returns the approximate number of UNet calls, counted per image."""
    kinds = 3 + (study.foreign is not None)
    return 2 * kinds * min(NUM_IMAGES, len(study.chosen)) * study.settings.num_code_steps


def run(study: Study) -> Section:
    """Inverts images of several kinds, and measures x_T and the reconstructions."""
    count, num_steps = min(NUM_IMAGES, len(study.chosen)), study.settings.num_code_steps
    shape = study.model.image_shape
    kinds: dict[str, Callable[[int, int], Images]] = {
        USUAL: study.read,
        SHIFTED: lambda start, stop: shifted(study.read(start, stop)),
        NEGATIVE: lambda start, stop: -study.read(start, stop),
    }
    if study.foreign is not None:
        kinds[FOREIGN] = lambda start, stop: as_float(study.foreign, np.arange(start, stop))
    figures: list[Figure] = []
    rows = {}
    shown = min(NUM_PICTURES, count, len(study.foreign or range(NUM_PICTURES)))
    for name, images in kinds.items():
        num_images = min(count, len(study.foreign)) if name == FOREIGN else count
        chunks = [_chunk(study, name, images, num_steps, *bounds) for bounds in study.chunks(num_images)]
        measured = {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}
        x_T = measured.pop("x_T")[:shown]
        figures += [mean_figure(key, name, f"T = {num_steps}", values) for key, values in measured.items()]
        rows[name] = images(0, shown)
        rows[f"x_T of {name}"] = x_T / 3  # black and white are -3 and 3
    random = np.random.default_rng(study.seed)
    noise = [normality(random.normal(size=(stop - start, *shape))) for start, stop in study.chunks(count)]
    for key in noise[0]:
        figures.append(mean_figure(key, NORMAL, f"T = {num_steps}", np.concatenate([chunk[key] for chunk in noise])))
    if is_main_process():
        save_rows(study.folder / PICTURE, rows)
    picture = Picture(PICTURE, "Images, and the x_T that are inferred from them.")
    return Section(NAME, TITLE, tuple(figures), (picture,))


def _chunk(study: Study, name: str, images: Callable, num_steps: int, start: int, stop: int) -> Arrays:
    def compute() -> Arrays:
        x_0 = images(start, stop)
        z = encoded(study.model, x_0)
        x_T = study.model.invert(x_0, z, num_steps)
        decoded = study.model.decode(z, x_T, num_steps)
        return {**normality(x_T), ERROR: mse(decoded, x_0), "x_T": x_T[: max(0, NUM_PICTURES - start)]}

    return study.cache.load_or_compute(f"{NAME}-{name.replace(' ', '-')}-{start:07d}", compute)
