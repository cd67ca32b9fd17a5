"""How close new images come to real ones (Sec. 5.7, Table 4)."""

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
NEEDS: tuple[str, ...] = ("prior",)
SAMPLES, AUTOENCODED, BASELINE = "samples", "+ autoencoding", "DDIM baseline"
GAUSSIAN, REAL = "z from a Gaussian, not from the latent DDIM", "other real images"
NUM_COMPONENTS = 32
FEWEST = 2  # real images in a set
FITTED, FITTED_VALUES, FEWEST_FITTED = 1000, 2**26, 64  # images, to which components are fitted, and their values
FEWEST_FOR_KERNEL = 4
NUM_SHOWN = 64
PICTURE = "samples.png"
FID = "FID"  # the name of a Frechet distance in one space alone
RESAMPLES, RESAMPLES_OF_MANY, MANY = 100, 20, 64  # resamples: fewer where features have many dimensions

Draw = Callable[[int, int], np.ndarray]  # images from one number to another


class ImageSubset(NamedTuple):
    """Some images of a source."""

    source: Source
    numbers: Int[np.ndarray, "n"]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns the images from one place among them to another, in [-1, 1]."""
        return as_float(self.source, self.numbers[start:stop])


@dataclasses.dataclass(frozen=True)
class ReferenceSets:
    """Three sets of real images: those that others are compared with, as many again as a yardstick and to take z from,
    and those that components are fitted to; where there are few, the last two are the same."""

    reference: ImageSubset
    others: ImageSubset
    fitted: ImageSubset
    what: str

    @classmethod
    def of(cls, study: Study) -> "ReferenceSets":
        """Takes held-out and training images where there are both, and two halves of the images otherwise."""
        most, shape = study.settings.num_samples, study.model.image_shape
        num_fitted = max(FEWEST_FITTED, min(FITTED, FITTED_VALUES // math.prod(shape)))
        random = np.random.default_rng(study.seed)
        if study.training is not None and study.training is not study.images:
            reference = ImageSubset(study.images, choose(len(study.images), most, study.seed))
            source, rest, what = study.training, random.permutation(len(study.training)), "held-out images"
        else:
            chosen = random.permutation(choose(len(study.images), 2 * most + num_fitted, study.seed))
            half = min(most, len(chosen) // 2)
            reference = ImageSubset(study.images, chosen[:half])
            source, rest, what = study.images, chosen[half:], "of the images"
        others, left = rest[:most], rest[most : most + num_fitted]
        fitted = left if len(left) >= FEWEST_FITTED else others[:num_fitted]
        return cls(reference, ImageSubset(source, others), ImageSubset(source, fitted), what)


def spaces(study: Study, real: ReferenceSets) -> list[FeatureSpace]:
    """Returns the spaces that images are compared in: those that need no download, and that of FID if it is at hand."""
    components = principal_space(real.fitted.read(0, len(real.fitted.numbers)), NUM_COMPONENTS)
    convolutions = random_space(study.model.image_shape, study.model.mesh)
    return [*([study.networks.inception] if study.networks.inception else []), components, convolutions]


def features(study: Study, name: str, draw: Draw, count: int, among: list[FeatureSpace]) -> Arrays:
    """Returns the features of images in each space, by its name, and the first images; they are kept in parts."""
    drawn = []
    for start, stop in study.chunks(count):

        def compute(start=start, stop=stop) -> Arrays:
            images = draw(start, stop)
            kept = images[: max(0, NUM_SHOWN - start)]
            return {"images": kept} | {space.name: np.asarray(space.features(images), np.float32) for space in among}

        drawn.append(study.cache.keep(f"{name}-{start:07d}", compute))
    return {key: np.concatenate([part[key] for part in drawn]) for key in drawn[0]}


def distances(
    space: FeatureSpace, row: str, column: str, found: Arrays, reference: Arrays, of_paper: float | None = None
) -> list[Figure]:
    """Returns the distances of a set of images to the reference in a space, with intervals.

    The paper's figure stands beside ours where ours is of as many images.
    """
    ours, real = found[space.name], reference[space.name]
    value = frechet_distance(ours, real)
    resamples = RESAMPLES if space.dim <= MANY else RESAMPLES_OF_MANY
    margin = NORMAL * spread_of_distance(frechet_distance, ours, real, resamples)
    fewest = min(len(ours), len(real))
    comparable = of_paper if space.frechet_name == FID and fewest >= paper.SAMPLING_IMAGES else None
    low, high = max(0.0, value - margin), value + margin
    figures = [Figure(space.frechet_name, row, column, value, len(ours), low, high, comparable)]
    if space.frechet_name == FID and fewest >= FEWEST_FOR_KERNEL:
        size = min(1000, fewest // 2)
        mean, std = kernel_distance(ours, real, subset_size=size)
        # subsets overlap, so they differ less than fresh ones would, and these more than fresh whole sets
        margin = NORMAL * std * (size / (fewest - size)) ** 0.5
        figures.append(Figure(space.kernel_name, row, column, mean, len(ours), mean - margin, mean + margin))
    return figures


def calls(study: Study) -> int:
    """Returns about how many times the UNet is called, once for each image."""
    steps, sets = study.settings.num_sample_steps, 1 + (study.baseline is not None) + study.has_z
    return study.settings.num_samples * (sets * sum(steps) + max(steps))


def run(study: Study) -> Section:
    """Measures Frechet distances of samples, of the baseline's, and of images decoded from z of real ones.

    Where there are too few real images to compare with, samples are drawn and nothing is measured.
    """
    real = ReferenceSets.of(study)
    counts = len(real.reference.numbers), len(real.others.numbers)
    among = spaces(study, real) if min(counts) >= FEWEST else []
    figures: list[Figure] = []
    reference = _of_real(study, "reference", real.reference, among)
    own_row = SAMPLES if study.has_z else BASELINE
    # one number for all rows, for distances shrink with it; without real images it is what was asked for
    count = min(study.settings.num_samples, counts[1]) if among else study.settings.num_samples
    for num_steps in study.settings.num_sample_steps:
        for row, draw in _sets(study, real, num_steps).items():
            if among or row in (SAMPLES, BASELINE):
                kept = f"{NAME}-{row}-{num_steps}"
                found = features(study, kept, _keeping(study, f"{row}-{num_steps}", draw), count, among)
                for space in among:
                    of_paper = paper.sampling(study.model.config.name, row, num_steps)
                    figures += distances(space, row, f"T = {num_steps}", found, reference, of_paper)
                shown = found["images"] if row == own_row else shown
    others = _of_real(study, "others", real.others, among)
    for space in among:
        figures += distances(space, REAL, "real", others, reference)
    if is_main_process():
        save_grid(study.folder / PICTURE, shown)
    note = (
        f"Distances are to {counts[0]:,} {real.what}; {counts[1]:,} other real ones come as close as the last row "
        "says. They shrink with the number of images: compare rows of one table alone."
    )
    if not among:
        two = f"two sets of {FEWEST} or more are needed, not of {counts[0]:,} and {counts[1]:,}"
        note = f"Too few real images to compare samples with: {two}."
    picture = Picture(PICTURE, f"Samples in {study.settings.num_sample_steps[-1]} steps.")
    return Section(NAME, TITLE, tuple(figures), (picture,), (note, *study.networks.no_inception))


def _of_real(study: Study, name: str, images: ImageSubset, among: list[FeatureSpace]) -> Arrays:
    return features(study, f"{NAME}-{name}", images.read, len(images.numbers), among) if among else {}


def _sets(study: Study, real: ReferenceSets, num_steps: int) -> dict[str, Draw]:
    """Returns what draws each set of images that is compared with real ones, by its row."""
    if not study.has_z:
        return {BASELINE: _sampled(study.model, study.seed, num_steps)}
    sets = {SAMPLES: _sampled(study.model, study.seed, num_steps)}
    if study.baseline is not None:
        sets[BASELINE] = _sampled(study.baseline, study.seed, num_steps)
    sets[AUTOENCODED] = _autoencoded(study, real, num_steps)
    if num_steps == max(study.settings.num_sample_steps):
        sets[GAUSSIAN] = _from_gaussian(study, num_steps)
    return sets


def _keeping(study: Study, name: str, draw: Draw) -> Draw:
    def drawn(start, stop):
        images = draw(start, stop)
        study.keep_images(start, images, NAME, name)
        return images

    return drawn


def _sampled(model: DiffAE, seed: int, num_steps: int) -> Draw:
    """Draws samples, z in as many steps as images."""
    return lambda start, stop: model.sample(stop - start, seed, num_steps, num_steps, first=start)


def _autoencoded(study: Study, real: ReferenceSets, num_steps: int) -> Draw:
    """Decodes z of real images, others than the reference, with random x_T."""

    def draw(start, stop):
        z = study.model.encode(real.others.read(start, stop))
        return study.model.decode(z, study.model.noise(np.arange(start, stop), study.seed), num_steps)

    return draw


def _from_gaussian(study: Study, num_steps: int) -> Draw:
    """Decodes z of the right mean and deviation that no latent DDIM drew: what it is worth."""
    statistics = study.model.statistics
    z = np.random.default_rng(study.seed).normal(size=(study.settings.num_samples, len(statistics.mean)))
    z = statistics.denormalize(z.astype(np.float32))

    def draw(start, stop):
        return study.model.decode(z[start:stop], study.model.noise(np.arange(start, stop), study.seed), num_steps)

    return draw
