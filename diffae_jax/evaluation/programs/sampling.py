"""How close new images come to real ones (Sec. 5.7, Table 4)."""

import dataclasses
from collections.abc import Callable

import numpy as np

from diffae_jax.api import DiffAE
from diffae_jax.data.sources import Source, choose
from diffae_jax.evaluation import paper
from diffae_jax.evaluation.feature_spaces import FeatureSpace, principal_space, random_space
from diffae_jax.evaluation.figures import save_grid
from diffae_jax.evaluation.intervals import NORMAL, spread_of_distance
from diffae_jax.evaluation.metrics import frechet_distance, kernel_distance
from diffae_jax.evaluation.parts import Arrays
from diffae_jax.evaluation.results import Figure, Picture, Section
from diffae_jax.evaluation.study import Study, as_float
from diffae_jax.training.logging import is_main_process

NAME = "sampling"
TITLE = "Unconditional samples (Sec. 5.7, Table 4)"
NEEDS: tuple[str, ...] = ("prior",)
SAMPLES, AUTOENCODED, BASELINE = "samples", "+ autoencoding", "DDIM baseline"
GAUSSIAN, REAL = "z from a Gaussian, not from the latent DDIM", "other real images"
NUM_COMPONENTS = 32
FEWEST = 2  # real images in a set
FITTED = 1000  # images, to which components are fitted
NUM_SHOWN = 64
PICTURE = "samples.png"
FID = "FID"  # the name of a Frechet distance in one space alone
RESAMPLES, RESAMPLES_OF_MANY, MANY = 100, 20, 64  # resamples: fewer where features have many dimensions

Draw = Callable[[int, int], np.ndarray]  # images from one number to another


@dataclasses.dataclass(frozen=True)
class Real:
    """Real images that others are compared with, and further ones, as a yardstick and to take z from."""

    reference: tuple[Source, np.ndarray]
    others: tuple[Source, np.ndarray]
    what: str

    @classmethod
    def of(cls, study: Study) -> "Real":
        """Takes held-out and training images where there are both, and two halves of the images otherwise."""
        most = study.settings.num_samples
        random = np.random.default_rng(study.seed)
        if study.training is not None and study.training is not study.images:
            reference, others = (
                choose(len(study.images), most, study.seed),
                choose(len(study.training), most, study.seed),
            )
            return cls((study.images, reference), (study.training, random.permutation(others)), "held-out images")
        chosen = random.permutation(choose(len(study.images), 2 * most, study.seed))
        half = len(chosen) // 2
        return cls((study.images, chosen[:half]), (study.images, chosen[half:]), "one half of the images")


def spaces(study: Study, real: Real) -> list[FeatureSpace]:
    """Returns the spaces that images are compared in: those that need no download, and that of FID if it is at hand."""
    components = principal_space(as_float(real.others[0], real.others[1][:FITTED]), NUM_COMPONENTS)
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

        drawn.append(study.parts.keep(f"{name}-{start:07d}", compute))
    return {key: np.concatenate([part[key] for part in drawn]) for key in drawn[0]}


def distances(
    space: FeatureSpace, row: str, column: str, found: Arrays, reference: Arrays, of_paper=None
) -> list[Figure]:
    """Returns the distances of a set of images to the reference in a space, with intervals."""
    ours, real = found[space.name], reference[space.name]
    value = frechet_distance(ours, real)
    resamples = RESAMPLES if space.dim <= MANY else RESAMPLES_OF_MANY
    margin = NORMAL * spread_of_distance(frechet_distance, ours, real, resamples)
    is_fid = space.frechet_name == FID
    figures = [
        Figure(
            space.frechet_name, row, column, value, len(ours), max(0.0, value - margin), value + margin,
            of_paper if is_fid else None,
        )
    ]  # fmt: skip
    if is_fid:
        mean, std = kernel_distance(ours, real)
        # subsets are a share of all, and their distances vary more than those of sets of all would
        margin = NORMAL * std * (min(1000, len(ours), len(real)) / len(ours)) ** 0.5
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
    real = Real.of(study)
    counts = len(real.reference[1]), len(real.others[1])
    among = spaces(study, real) if min(counts) >= FEWEST else []
    figures: list[Figure] = []
    reference = _of_real(study, "reference", real.reference, among)
    shown = None
    for num_steps in study.settings.num_sample_steps:
        for row, (draw, count) in _sets(study, real, num_steps).items():
            if among or shown is None:
                kept = f"{NAME}-{row}-{num_steps}"
                found = features(study, kept, _keeping(study, kept, draw), count, among)
                for space in among:
                    of_paper = paper.sampling(study.model.config.name, row, num_steps)
                    figures += distances(space, row, f"T = {num_steps}", found, reference, of_paper)
                shown = found["images"] if row in (SAMPLES, BASELINE) and shown is None else shown
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
    picture = Picture(PICTURE, f"Samples in {study.settings.num_sample_steps[0]} steps.")
    return Section(NAME, TITLE, tuple(figures), (picture,), (note, *study.networks.no_inception))


def _of_real(study: Study, name: str, images: tuple[Source, np.ndarray], among: list[FeatureSpace]) -> Arrays:
    source, numbers = images
    if not among:
        return {}
    return features(
        study, f"{NAME}-{name}", lambda start, stop: as_float(source, numbers[start:stop]), len(numbers), among
    )


def _sets(study: Study, real: Real, num_steps: int) -> dict[str, tuple[Draw, int]]:
    """Returns what draws each set of images that is compared with real ones, by its row, and how many it draws."""
    count, seed = study.settings.num_samples, study.seed
    if not study.has_z:
        return {BASELINE: (_sampled(study.model, seed, num_steps), count)}
    sets = {SAMPLES: (_sampled(study.model, seed, num_steps), count)}
    if study.baseline is not None:
        sets[BASELINE] = _sampled(study.baseline, seed, num_steps), count
    sets[AUTOENCODED] = _autoencoded(study, real, num_steps), min(count, len(real.others[1]))
    if num_steps == max(study.settings.num_sample_steps):
        sets[GAUSSIAN] = _from_gaussian(study, num_steps), count
    return sets


def _keeping(study: Study, name: str, draw: Draw) -> Draw:
    def drawn(start, stop):
        images = draw(start, stop)
        study.keep_images(name.replace("-", "/", 1), start, images)
        return images

    return drawn


def _sampled(model: DiffAE, seed: int, num_steps: int) -> Draw:
    """Draws samples, z in as many steps as images."""
    return lambda start, stop: model.sample(stop - start, seed, num_steps, num_steps, first=start)


def _autoencoded(study: Study, real: Real, num_steps: int) -> Draw:
    """Decodes z of real images, others than the reference, with random x_T."""
    source, numbers = real.others

    def draw(start, stop):
        z = study.model.encode(as_float(source, numbers[start:stop]))
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
