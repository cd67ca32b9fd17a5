"""What x_T holds of images that are unlike those of training (Appendix J, Fig. 11 and 12)."""

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
TITLE = "Images unlike those of training (Appendix J)"
NEEDS: tuple[str, ...] = ()
NUM_IMAGES = 256
PICTURE = "out_of_distribution.png"
USUAL, SHIFTED, NEGATIVE, FOREIGN = "held-out images", "shifted by a quarter", "negatives", "foreign images"
NORMAL = "N(0, I) itself"
AUTOCORRELATION = "autocorrelation of neighbors in x_T"
ERROR = "MSE of the reconstruction"

Images = Float[np.ndarray, "n *shape"]


def shifted(images: Images) -> Images:
    """Moves images by a quarter of their last spatial axis, to the right; their border is repeated."""
    axis, size = images.ndim - 2, images.shape[-2]
    by = max(1, size // 4)
    edge = np.repeat(np.take(images, [0], axis), by, axis)
    return np.concatenate([edge, np.take(images, range(size - by), axis)], axis)


def normality(x_T: Images) -> dict[str, Float[np.ndarray, "n"]]:
    """Returns what tells each noise map from N(0, I), where all but the deviation, 1, are 0.

    The autocorrelation is that of neighbors, a mean over spatial axes and channels.
    """
    from scipy.stats import kurtosis, skew  # imported here: it takes a third of a second and sets filters of warnings

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
        "deviation of x_T": flat.std(1, ddof=1),
        "skew of x_T": skew(flat, axis=1),
        "excess kurtosis of x_T": kurtosis(flat, axis=1),
        AUTOCORRELATION: np.mean(products, axis=0) / np.maximum(variance, 1e-12) if products else np.zeros(len(values)),
    }


def calls(study: Study) -> int:
    """Returns about how many times the UNet is called, once for each image."""
    kinds = 3 + (study.foreign is not None)
    return 2 * kinds * min(NUM_IMAGES, len(study.chosen)) * study.settings.num_code_steps


def run(study: Study) -> Section:
    """Inverts images of several kinds, and measures how normal their x_T are and how close the images come back."""
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
        among = min(count, len(study.foreign)) if name == FOREIGN else count
        parts = [_part(study, name, images, num_steps, *chunk) for chunk in study.chunks(among)]
        measured = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        x_T = measured.pop("x_T")[:shown]
        figures += [mean_figure(key, name, f"T = {num_steps}", values) for key, values in measured.items()]
        rows[name.replace(" ", "\n")] = images(0, shown)
        rows[f"$x_T$ of\n{name}"] = x_T / 3  # three deviations to either side are shown
    random = np.random.default_rng(study.seed)
    drawn = [normality(random.normal(size=(stop - start, *shape))) for start, stop in study.chunks(count)]
    for key in drawn[0]:
        figures.append(mean_figure(key, NORMAL, f"T = {num_steps}", np.concatenate([part[key] for part in drawn])))
    if is_main_process():
        save_rows(study.folder / PICTURE, rows)
    picture = Picture(PICTURE, "Images and the x_T that are inferred from them.")
    return Section(NAME, TITLE, tuple(figures), (picture,))


def _part(study: Study, name: str, images: Callable, num_steps: int, start: int, stop: int) -> Arrays:
    def compute() -> Arrays:
        x_0 = images(start, stop)
        z = encoded(study.model, x_0)
        x_T = study.model.invert(x_0, z, num_steps)
        again = study.model.decode(z, x_T, num_steps)
        return {**normality(x_T), ERROR: mse(again, x_0), "x_T": x_T[: max(0, NUM_PICTURES - start)]}

    return study.cache.keep(f"{NAME}-{name.replace(' ', '-')}-{start:07d}", compute)
