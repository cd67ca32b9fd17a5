"""Distances between sets of generated and real images (Sec. 5.7, Table 4)."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from diffae_jax.data.pictures import save_grid
from diffae_jax.data.sources import Source, choose
from diffae_jax.evaluation.chunk_cache import Arrays
from diffae_jax.evaluation.intervals import NORMAL, spread_of_distance
from diffae_jax.evaluation.metrics import frechet_distance, kernel_distance
from diffae_jax.evaluation.networks.feature_spaces import FeatureSpace, principal_space, random_space
from diffae_jax.evaluation.paper import published as paper
from diffae_jax.evaluation.results import Figure, Picture, Section
from diffae_jax.evaluation.study import Study, as_float
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.runtime.cluster import is_main_process

NAME = "sampling"
TITLE = "Unconditional samples (Sec. 5.7, Table 4)"
REQUIREMENTS: tuple[str, ...] = ("prior",)
SAMPLES, AUTOENCODED, BASELINE = "samples", "+ autoencoding", "DDIM baseline"
GAUSSIAN, REAL = "z from a Gaussian instead of the latent DDIM", "other real images"
NUM_COMPONENTS = 32
MIN_IMAGES = 2  # real images in a set
MAX_FITTED, MAX_FITTED_VALUES, MIN_FITTED = 1000, 2**26, 64  # images for fitting components, and their values
MIN_FOR_KERNEL = 4
NUM_SHOWN = 64
PICTURE = "samples.png"
FID = "FID"  # the name of the Frechet distance in the space of Inception
RESAMPLES, RESAMPLES_OF_MANY, MANY = 100, 20, 64  # fewer resamples for features of many dimensions

Draw = Callable[[int, int], np.ndarray]  # returns the images from a start to a stop


class ImageSubset(NamedTuple):
    """Some images of a source."""

    source: Source
    indices: Int[np.ndarray, "n"]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns the images from `start` to `stop` of this subset, in [-1, 1]."""
        return as_float(self.source, self.indices[start:stop])


@dataclasses.dataclass(frozen=True)
class ReferenceSets:
    """Three sets of real images. If there are few images, `others` and `fitted` overlap."""

    reference: ImageSubset  # all distances are measured to these
    others: ImageSubset  # the yardstick: compared with the reference; also encoded for "+ autoencoding"
    fitted: ImageSubset  # principal components are fitted to these
    kind: str  # of the reference images

    @classmethod
    def of(cls, study: Study) -> "ReferenceSets":
        """Uses held-out and training images if available, otherwise two halves of the images."""
        limit, shape = study.settings.num_samples, study.model.image_shape
        num_fitted = max(MIN_FITTED, min(MAX_FITTED, MAX_FITTED_VALUES // math.prod(shape)))
        random = np.random.default_rng(study.seed)
        if study.training is not None and study.training is not study.images:
            reference = ImageSubset(study.images, choose(len(study.images), limit, study.seed))
            source, rest, kind = study.training, random.permutation(len(study.training)), "held-out images"
        else:
            chosen = random.permutation(choose(len(study.images), 2 * limit + num_fitted, study.seed))
            half = min(limit, len(chosen) // 2)
            reference = ImageSubset(study.images, chosen[:half])
            source, rest, kind = study.images, chosen[half:], "of the images"
        others, remaining = rest[:limit], rest[limit : limit + num_fitted]
        fitted = remaining if len(remaining) >= MIN_FITTED else others[:num_fitted]
        return cls(reference, ImageSubset(source, others), ImageSubset(source, fitted), kind)


def spaces(study: Study, real: ReferenceSets) -> list[FeatureSpace]:
    """Returns the feature spaces: Inception if available, and two that need no download."""
    components = principal_space(real.fitted.read(0, len(real.fitted.indices)), NUM_COMPONENTS)
    convolutions = random_space(study.model.image_shape, study.model.mesh)
    return [*([study.networks.inception] if study.networks.inception else []), components, convolutions]


def features(study: Study, name: str, draw: Draw, count: int, feature_spaces: list[FeatureSpace]) -> Arrays:
    """Returns the features of images in each space, by its name, and the first images."""
    chunks = []
    for start, stop in study.chunks(count):

        def compute(start=start, stop=stop) -> Arrays:
            images = draw(start, stop)
            vectors = {space.name: np.asarray(space.features(images), np.float32) for space in feature_spaces}
            return {"images": images[: max(0, NUM_SHOWN - start)]} | vectors

        chunks.append(study.cache.load_or_compute(f"{name}-{start:07d}", compute))
    return {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}


def distances(
    space: FeatureSpace, row: str, column: str, generated: Arrays, reference: Arrays, paper_value: float | None = None
) -> list[Figure]:
    """Returns the distances of a set of images to the reference in a space, with intervals.

    The paper's value is only added if the sets have at least as many images as in the paper.
    """
    ours, real = generated[space.name], reference[space.name]
    value = frechet_distance(ours, real)
    resamples = RESAMPLES if space.dim <= MANY else RESAMPLES_OF_MANY
    margin = NORMAL * spread_of_distance(frechet_distance, ours, real, resamples)
    smallest = min(len(ours), len(real))
    comparable = paper_value if space.frechet_name == FID and smallest >= paper.SAMPLING_IMAGES else None
    low, high = max(0.0, value - margin), value + margin
    figures = [Figure(space.frechet_name, row, column, value, len(ours), low, high, comparable)]
    if space.frechet_name == FID and smallest >= MIN_FOR_KERNEL:
        size = min(1000, smallest // 2)
        mean, std = kernel_distance(ours, real, subset_size=size)
        # corrects for overlap between subsets, and for the larger size of the full sets
        margin = NORMAL * std * (size / (smallest - size)) ** 0.5
        figures.append(Figure(space.kernel_name, row, column, mean, len(ours), mean - margin, mean + margin))
    return figures


def num_calls(study: Study) -> int:
    """Returns the approximate number of UNet calls, counted per image."""
    steps = study.settings.num_sample_steps
    sets = len(study.settings.samplers) + (study.baseline is not None) + study.has_z
    return study.settings.num_samples * (sets * sum(steps) + max(steps))


def run(study: Study) -> Section:
    """Measures Frechet distances of samples and autoencoded images to real images.

    If there are too few real images, it draws samples and measures nothing.
    """
    real = ReferenceSets.of(study)
    counts = len(real.reference.indices), len(real.others.indices)
    feature_spaces = spaces(study, real) if min(counts) >= MIN_IMAGES else []
    figures: list[Figure] = []
    reference = _real_features(study, "reference", real.reference, feature_spaces)
    samples = list(_samples_of(study, SAMPLES if study.has_z else BASELINE, 1))
    # the same number for all rows, because distances depend on it
    count = min(study.settings.num_samples, counts[1]) if feature_spaces else study.settings.num_samples
    for num_steps in study.settings.num_sample_steps:
        for row, draw in _sets(study, real, num_steps).items():
            if feature_spaces or row in (*samples, BASELINE):
                draw = _also_writing(study, f"{row}-{num_steps}", draw)
                generated = features(study, f"{NAME}-{row}-{num_steps}", draw, count, feature_spaces)
                for space in feature_spaces:
                    paper_value = paper.sampling(study.model.config.name, row, num_steps)
                    figures += distances(space, row, f"T = {num_steps}", generated, reference, paper_value)
                if row == samples[0]:
                    shown = generated["images"]
    others = _real_features(study, "others", real.others, feature_spaces)
    for space in feature_spaces:
        figures += distances(space, REAL, "real", others, reference)
    if is_main_process():
        save_grid(study.folder / PICTURE, shown)
    if feature_spaces:
        note = (
            f"Distances are measured to {counts[0]:,} {real.kind}. As a yardstick, the last row compares {counts[1]:,} "
            "other real images with them. A distance shrinks with the number of images, so compare only rows of the "
            "same table."
        )
    else:
        note = (
            f"There are too few real images to compare samples with: two sets of at least {MIN_IMAGES} are needed, "
            f"but they have {counts[0]:,} and {counts[1]:,}. Give more images with --data."
        )
    picture = Picture(PICTURE, f"Samples in {study.settings.num_sample_steps[-1]} steps.")
    return Section(NAME, TITLE, tuple(figures), (picture,), (note, *study.networks.no_inception))


def _real_features(study: Study, name: str, images: ImageSubset, feature_spaces: list[FeatureSpace]) -> Arrays:
    if not feature_spaces:
        return {}
    return features(study, f"{NAME}-{name}", images.read, len(images.indices), feature_spaces)


def _sets(study: Study, real: ReferenceSets, num_steps: int) -> dict[str, Draw]:
    """Returns a function for each row that draws the images to compare with real ones."""
    if not study.has_z:
        return _samples_of(study, BASELINE, num_steps)
    sets = _samples_of(study, SAMPLES, num_steps)
    if study.baseline is not None:
        sets[BASELINE] = _sampled(study.baseline, study.seed, num_steps)
    sets[AUTOENCODED] = _autoencoded(study, real, num_steps)
    if num_steps == max(study.settings.num_sample_steps):
        sets[GAUSSIAN] = _from_gaussian(study, num_steps)
    return sets


def _also_writing(study: Study, name: str, draw: Draw) -> Draw:
    def draw_and_write(start, stop):
        images = draw(start, stop)
        study.write_images(start, images, NAME, name)
        return images

    return draw_and_write


def _samples_of(study: Study, row: str, num_steps: int) -> dict[str, Draw]:
    """Returns a row for each sampler."""
    return {
        row if sampler == "ddim" else f"{row}, {sampler}": _sampled(study.model, study.seed, num_steps, sampler)
        for sampler in study.settings.samplers
    }


def _sampled(model: DiffAE, seed: int, num_steps: int, sampler: str = "ddim") -> Draw:
    """Draws samples, with the same sampler and number of steps for z and for images."""
    samplers = dict(sampler=sampler, latent_sampler=sampler)
    return lambda start, stop: model.sample(stop - start, seed, num_steps, num_steps, first=start, **samplers)


def _autoencoded(study: Study, real: ReferenceSets, num_steps: int) -> Draw:
    """Decodes z of real images that are not reference images, with random x_T."""

    def draw(start, stop):
        z = study.model.encode(real.others.read(start, stop))
        return study.model.decode(z, study.model.noise(np.arange(start, stop), study.seed), num_steps)

    return draw


def _from_gaussian(study: Study, num_steps: int) -> Draw:
    """Decodes Gaussian z with the right mean and deviation, to judge the prior."""
    statistics = study.model.statistics
    z = np.random.default_rng(study.seed).normal(size=(study.settings.num_samples, len(statistics.mean)))
    z = statistics.denormalize(z.astype(np.float32))

    def draw(start, stop):
        return study.model.decode(z[start:stop], study.model.noise(np.arange(start, stop), study.seed), num_steps)

    return draw
