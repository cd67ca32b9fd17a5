"""How close samples of a class come to it, from a few labels (Sec. 5.6, Table 3)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from diffae_jax.data.pictures import save_rows
from diffae_jax.data.sources import choose
from diffae_jax.evaluation.chunk_cache import Arrays
from diffae_jax.evaluation.metrics import frechet_distance
from diffae_jax.evaluation.networks.feature_spaces import FeatureSpace
from diffae_jax.evaluation.paper import published as paper
from diffae_jax.evaluation.programs.sampling import FID, ReferenceSets, features, spaces
from diffae_jax.evaluation.results import Figure, Picture, Section
from diffae_jax.evaluation.study import NUM_PICTURES, Study, as_float
from diffae_jax.probes import fit, is_known, kind_of
from diffae_jax.runtime.cluster import is_main_process
from diffae_jax.runtime.errors import UserError

NAME = "conditional"
TITLE = "Class-conditional samples (Sec. 5.6, Table 3)"
NEEDS: tuple[str, ...] = ("z", "prior", "training", "classes", "sets")
SEEDS = 3
MOST_TARGETS = 4
FEWEST = 2  # images of a class, and of others
PER_SIDE = 50  # labeled images of the class and as many of others
POSITIVES, UNLABELED = 100, 10_000
BINARY, POSITIVE_UNLABELED, NAIVE = "binary", "positive and unlabeled", "all images"
PICTURE = "conditional.png"

Numbers = Int[np.ndarray, "n"]


class Target(NamedTuple):
    """A class to sample: the training images that are labeled as it, and those that are labeled otherwise."""

    inside: Numbers
    outside: Numbers


def targets(study: Study) -> dict[str, Target]:
    """Returns the classes to sample by name: at most four that have enough images, those of the paper first."""
    found = {}
    for name, values in study.training.labels.items():
        known = np.flatnonzero(is_known(values))
        kind, distinct = kind_of(values[known].tolist()), np.unique(values[known])
        if kind == "binary" and len(distinct) == 2:
            positive = values[known] == distinct[1]
            found[name] = Target(known[positive], known[~positive])
            found[f"not {name}"] = Target(known[~positive], known[positive])
        elif kind == "classes":
            for value in distinct:
                is_of = values[known] == value
                found[f"{name} {value}"] = Target(known[is_of], known[~is_of])
    of_paper = paper.classes(study.model.config.name)
    usable = [name for name, target in found.items() if min(map(len, target)) >= FEWEST]
    in_order = sorted(usable, key=lambda name: name not in of_paper)
    return {name: found[name] for name in in_order[:MOST_TARGETS]}


def calls(study: Study) -> int:
    """Returns at most how many times the UNet is called, once for each image."""
    return 2 * SEEDS * MOST_TARGETS * study.settings.num_samples * study.settings.num_code_steps


def run(study: Study) -> Section:
    """Samples classes with probes of few labels, of three seeds, and measures how far they are from the class."""
    num_samples, num_steps = study.settings.num_samples, study.settings.num_code_steps
    among = spaces(study, ReferenceSets.of(study))
    numbers = np.arange(len(study.training))
    real = features(
        study, f"{NAME}-real", lambda start, stop: as_float(study.training, numbers[start:stop]), len(numbers), among
    )
    some = choose(len(numbers), num_samples, study.seed)  # as many as there are samples: distances shrink with them
    figures: list[Figure] = []
    notes, rows = [], {}
    for name, target in targets(study).items():
        sampled: dict[str, list[Arrays]] = {BINARY: [], POSITIVE_UNLABELED: []}
        for scenario, found in sampled.items():
            for seed in range(study.seed, study.seed + SEEDS):
                try:
                    found.append(_samples(study, name, target, scenario, seed, num_steps, among))
                except UserError as error:  # too few z are of the class: told, and the others go on
                    notes.append(f"{name}, {scenario}: {error}")
        for space in among:
            of_class = real[space.name][target.inside]
            for scenario, found in sampled.items():
                figures += _figures(study, space, name, scenario, found, of_class)
            naive = frechet_distance(real[space.name][some], of_class)
            of_paper = _of_paper(study, space, name, NAIVE, len(some), len(of_class))
            figures.append(Figure(space.frechet_name, name, NAIVE, naive, len(some), paper=of_paper))
        if sampled[BINARY]:
            rows[name.replace(" ", "\n")] = sampled[BINARY][0]["images"][:NUM_PICTURES]
    if rows and is_main_process():
        save_rows(study.folder / PICTURE, rows)
    caption = f"Samples of classes, from {PER_SIDE} labels for and {PER_SIDE} against."
    pictures = (Picture(PICTURE, caption),) if rows else ()
    notes.insert(0, f"Distances to all training images of the class; means of {SEEDS} seeds; T = {num_steps}.")
    return Section(NAME, TITLE, tuple(figures), pictures, (*notes, *study.networks.no_inception))


def _figures(
    study: Study, space: FeatureSpace, name: str, scenario: str, found: list[Arrays], of_class: np.ndarray
) -> list[Figure]:
    """Returns mean and deviation of the distances of a class over seeds; the interval of the mean is Student's."""
    if not found:
        return []
    from scipy.stats import t as student

    values = [frechet_distance(each[space.name], of_class) for each in found]
    count, mean = len(found[0][space.name]), float(np.mean(values))
    of_paper = _of_paper(study, space, name, scenario, count, len(of_class))
    if len(values) < 2:
        return [Figure(space.frechet_name, name, scenario, mean, count, paper=of_paper)]
    deviation = float(np.std(values, ddof=1))
    margin = float(student.ppf(0.975, len(values) - 1)) * deviation / len(values) ** 0.5
    low, high = max(0.0, mean - margin), mean + margin
    return [
        Figure(space.frechet_name, name, scenario, mean, count, low, high, of_paper),
        Figure(f"{space.frechet_name}, deviation over {len(values)} seeds", name, scenario, deviation, count),
    ]


def _of_paper(study: Study, space: FeatureSpace, name: str, column: str, *counts: int) -> float | None:
    """Returns the figure of Table 3, where ours is an FID of as many images."""
    if space.frechet_name != FID or min(counts) < paper.CONDITIONAL_IMAGES:
        return None
    return paper.conditional(study.model.config.name, name, column)


def _samples(
    study: Study, name: str, target: Target, scenario: str, seed: int, num_steps: int, among: list[FeatureSpace]
) -> Arrays:
    """Returns features and some images of samples of a class, from a probe of few labels. Raises UserError as
    `DiffAE.sample_latents` does."""
    model, random = study.model, np.random.default_rng(seed)
    if scenario == BINARY:
        positive, other = (random.choice(rows, min(PER_SIDE, len(rows)), replace=False) for rows in target)
    else:
        positive = random.choice(target.inside, min(POSITIVES, len(target.inside)), replace=False)
        rest = np.setdiff1d(np.concatenate(target), positive)
        other = random.choice(rest, min(UNLABELED, len(rest)), replace=False)
    kept = f"{NAME}-{name}-{scenario}-{seed}"

    def drawn() -> Arrays:
        rows = np.concatenate([positive, other])
        z = [model.encode(as_float(study.training, rows[slice(*chunk)])) for chunk in study.chunks(len(rows))]
        labels = np.arange(len(rows)) < len(positive)
        normalized = model.statistics.normalize(np.concatenate(z))
        probe = fit(name, normalized, labels, positive_unlabeled=scenario == POSITIVE_UNLABELED)
        z, numbers = model.sample_latents(study.settings.num_samples, probe, True, seed, num_steps)
        return {"z": z, "numbers": numbers}

    codes = study.cache.keep(f"{kept}-codes", drawn)

    def draw(start: int, stop: int) -> np.ndarray:
        x_T = model.noise(codes["numbers"][start:stop], seed)
        images = model.decode(codes["z"][start:stop], x_T, num_steps)
        study.keep_images(start, images, NAME, f"{name}, {scenario}, seed {seed}")
        return images

    return features(study, kept, draw, study.settings.num_samples, among)
