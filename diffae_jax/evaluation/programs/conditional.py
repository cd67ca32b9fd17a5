"""Class-conditional samples from a few labels, compared with the class (Sec. 5.6, Table 3)."""

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
REQUIREMENTS: tuple[str, ...] = ("z", "prior", "training", "classes", "two sets")
SEEDS = 3
MAX_TARGETS = 4
MIN_IMAGES = 2  # inside and outside of a class
PER_SIDE = 50  # labeled images inside and outside of the class, for a binary probe
POSITIVES, UNLABELED = 100, 10_000  # images for a probe of positive and unlabeled images
BINARY, POSITIVE_UNLABELED, NAIVE = "binary", "positive and unlabeled", "all images"
PICTURE = "conditional.png"

Indices = Int[np.ndarray, "n"]


class Target(NamedTuple):
    """A class to sample: the indices of the training images inside and outside of it."""

    inside: Indices
    outside: Indices


def targets(study: Study) -> dict[str, Target]:
    """Returns at most four classes to sample, by name. The paper's classes come first."""
    candidates = {}
    for name, values in study.training.labels.items():
        known = np.flatnonzero(is_known(values))
        kind, distinct = kind_of(values[known].tolist()), np.unique(values[known])
        if kind == "binary" and len(distinct) == 2:
            positive = values[known] == distinct[1]
            candidates[name] = Target(known[positive], known[~positive])
            candidates[f"not {name}"] = Target(known[~positive], known[positive])
        elif kind == "classes":
            for value in distinct:
                inside = values[known] == value
                candidates[f"{name} {value}"] = Target(known[inside], known[~inside])
    paper_classes = paper.classes(study.model.config.name)
    usable = [name for name, target in candidates.items() if min(map(len, target)) >= MIN_IMAGES]
    in_order = sorted(usable, key=lambda name: name not in paper_classes)
    return {name: candidates[name] for name in in_order[:MAX_TARGETS]}


def num_calls(study: Study) -> int:
    """Returns the largest possible number of UNet calls, counted per image."""
    return 2 * SEEDS * MAX_TARGETS * study.settings.num_samples * study.settings.num_code_steps


def run(study: Study) -> Section:
    """Samples each class with probes from few labels, and compares the samples with the class."""
    num_samples, num_steps = study.settings.num_samples, study.settings.num_code_steps
    feature_spaces = spaces(study, ReferenceSets.of(study))
    indices = np.arange(len(study.training))

    def read(start: int, stop: int) -> np.ndarray:
        return as_float(study.training, indices[start:stop])

    real = features(study, f"{NAME}-real", read, len(indices), feature_spaces)
    # the same number of images as of samples, because distances depend on it
    subset = choose(len(indices), num_samples, study.seed)
    figures: list[Figure] = []
    notes, rows = [], {}
    for name, target in targets(study).items():
        sampled: dict[str, list[Arrays]] = {BINARY: [], POSITIVE_UNLABELED: []}
        for scenario, samples in sampled.items():
            for seed in range(study.seed, study.seed + SEEDS):
                try:
                    samples.append(_samples(study, name, target, scenario, seed, num_steps, feature_spaces))
                except UserError as error:  # too few z of the class are accepted
                    notes.append(f"{name}, {scenario}: {error}")
        for space in feature_spaces:
            class_features = real[space.name][target.inside]
            for scenario, samples in sampled.items():
                figures += _figures(study, space, name, scenario, samples, class_features)
            naive = frechet_distance(real[space.name][subset], class_features)
            paper_value = _paper_value(study, space, name, NAIVE, len(subset), len(class_features))
            figures.append(Figure(space.frechet_name, name, NAIVE, naive, len(subset), paper=paper_value))
        if sampled[BINARY]:
            rows[name] = sampled[BINARY][0]["images"][:NUM_PICTURES]
    if rows and is_main_process():
        save_rows(study.folder / PICTURE, rows)
    caption = f"Samples of each class, with a probe from {PER_SIDE} images inside and {PER_SIDE} outside of the class."
    pictures = (Picture(PICTURE, caption),) if rows else ()
    notes.insert(
        0,
        f"Distances are measured to all training images of the class. Values are means over {SEEDS} seeds, with "
        f"T = {num_steps}.",
    )
    return Section(NAME, TITLE, tuple(figures), pictures, (*notes, *study.networks.no_inception))


def _figures(
    study: Study, space: FeatureSpace, name: str, scenario: str, samples: list[Arrays], class_features: np.ndarray
) -> list[Figure]:
    """Returns mean and standard deviation of a class's distances over seeds."""
    if not samples:
        return []
    from scipy.stats import t as student

    values = [frechet_distance(arrays[space.name], class_features) for arrays in samples]
    count, mean = len(samples[0][space.name]), float(np.mean(values))
    paper_value = _paper_value(study, space, name, scenario, count, len(class_features))
    if len(values) < 2:
        return [Figure(space.frechet_name, name, scenario, mean, count, paper=paper_value)]
    deviation = float(np.std(values, ddof=1))
    margin = float(student.ppf(0.975, len(values) - 1)) * deviation / len(values) ** 0.5
    low, high = max(0.0, mean - margin), mean + margin
    return [
        Figure(space.frechet_name, name, scenario, mean, count, low, high, paper_value),
        Figure(f"{space.frechet_name}, standard deviation over {len(values)} seeds", name, scenario, deviation, count),
    ]


def _paper_value(study: Study, space: FeatureSpace, name: str, column: str, *counts: int) -> float | None:
    """Returns the value of Table 3 if ours is also an FID, from at least as many images."""
    if space.frechet_name != FID or min(counts) < paper.CONDITIONAL_IMAGES:
        return None
    return paper.conditional(study.model.config.name, name, column)


def _samples(
    study: Study,
    name: str,
    target: Target,
    scenario: str,
    seed: int,
    num_steps: int,
    feature_spaces: list[FeatureSpace],
) -> Arrays:
    """Returns the features of samples of a class, and some samples.

    The probe is fitted to few labels. Raises UserError if `DiffAE.sample_latents` does.
    """
    model, random = study.model, np.random.default_rng(seed)
    if scenario == BINARY:
        positive, other = (random.choice(rows, min(PER_SIDE, len(rows)), replace=False) for rows in target)
    else:
        positive = random.choice(target.inside, min(POSITIVES, len(target.inside)), replace=False)
        rest = np.setdiff1d(np.concatenate(target), positive)
        other = random.choice(rest, min(UNLABELED, len(rest)), replace=False)
    chunk_name = f"{NAME}-{name}-{scenario}-{seed}"

    def sample_z() -> Arrays:
        rows = np.concatenate([positive, other])
        z = [model.encode(as_float(study.training, rows[slice(*chunk)])) for chunk in study.chunks(len(rows))]
        labels = np.arange(len(rows)) < len(positive)
        normalized = model.statistics.normalize(np.concatenate(z))
        probe = fit(name, normalized, labels, positive_unlabeled=scenario == POSITIVE_UNLABELED)
        z, indices = model.sample_latents(study.settings.num_samples, probe, True, seed, num_steps)
        return {"z": z, "numbers": indices}

    codes = study.cache.load_or_compute(f"{chunk_name}-codes", sample_z)

    def draw(start: int, stop: int) -> np.ndarray:
        x_T = model.noise(codes["numbers"][start:stop], seed)
        images = model.decode(codes["z"][start:stop], x_T, num_steps)
        study.write_images(start, images, NAME, f"{name}, {scenario}, seed {seed}")
        return images

    return features(study, chunk_name, draw, study.settings.num_samples, feature_spaces)
