"""How close samples of a class come to it, from a few labels (Sec. 5.6, Table 3)."""

import numpy as np

from diffae_jax.errors import UserError
from diffae_jax.evaluation import paper
from diffae_jax.evaluation.figures import save_rows
from diffae_jax.evaluation.metrics import frechet_distance
from diffae_jax.evaluation.programs.sampling import FID, Real, features, spaces
from diffae_jax.evaluation.results import Figure, Picture, Section
from diffae_jax.evaluation.study import NUM_PICTURES, Study, as_float
from diffae_jax.probes import fit, is_known, kind_of
from diffae_jax.training.logging import is_main_process

NAME = "conditional"
TITLE = "Class-conditional samples (Sec. 5.6, Table 3)"
NEEDS: tuple[str, ...] = ("z", "prior", "labels", "sets")
SEEDS = 3
MOST_TARGETS = 4
PER_SIDE = 50  # labelled images of the class and as many of others
POSITIVES, UNLABELLED = 100, 10_000
BINARY, POSITIVE_UNLABELLED, NAIVE = "binary", "positive and unlabelled", "all images"
PICTURE = "conditional.png"


def targets(study: Study) -> dict[str, np.ndarray]:
    """Returns the classes to sample, by name, with which training images are of them: at most four."""
    found = {}
    for name, values in study.training.labels.items():
        known = is_known(values)
        kind = kind_of(values[known].tolist())
        if kind not in ("binary", "classes") or not known.all():
            continue
        distinct = np.unique(values)
        if kind == "binary":
            found |= {name: values == distinct[-1], f"not {name}": values != distinct[-1]}
        else:
            found |= {f"{name} {value}": values == value for value in distinct}
    return dict(list(found.items())[:MOST_TARGETS])


def calls(study: Study) -> int:
    """Returns at most how many times the UNet is called, once for each image."""
    return 2 * SEEDS * MOST_TARGETS * study.settings.num_samples * study.settings.num_code_steps


def run(study: Study) -> Section:
    """Samples classes with probes of few labels, of three seeds, and measures how far they are from the class."""
    num_steps = study.settings.num_code_steps
    real = Real.of(study)
    among = spaces(study, real)
    numbers = np.arange(len(study.training))
    everything = features(
        study, f"{NAME}-real", lambda start, stop: as_float(study.training, numbers[start:stop]), len(numbers), among
    )
    figures: list[Figure] = []
    notes, rows = [], {}
    for target, is_target in targets(study).items():
        if is_target.sum() < 2 or (~is_target).sum() < 2:
            notes.append(f"{target} is left out: it has {is_target.sum():,} of {len(is_target):,} images.")
            continue
        found: dict[str, list[dict[str, np.ndarray]]] = {}
        for scenario in (BINARY, POSITIVE_UNLABELLED):
            for seed in range(study.seed, study.seed + SEEDS):
                try:
                    found.setdefault(scenario, []).append(
                        _samples(study, target, is_target, scenario, seed, num_steps, among)
                    )
                except UserError as error:  # too few z are of the class: told, and the other classes go on
                    notes.append(f"{target}, {scenario}: {error}")
        for space in among:
            metric, of_class = space.frechet_name, everything[space.name][is_target]
            for scenario, sets in found.items():
                values = [frechet_distance(each[space.name], of_class) for each in sets]
                of_paper = (
                    paper.conditional(study.model.config.name, target, scenario) if space.frechet_name == FID else None
                )
                count = len(sets[0][space.name])
                figures.append(Figure(metric, target, scenario, float(np.mean(values)), count, paper=of_paper))
                deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
                figures.append(Figure(f"{metric}, deviation over {SEEDS} seeds", target, scenario, deviation, count))
            naive = frechet_distance(everything[space.name], of_class)
            of_paper = paper.conditional(study.model.config.name, target, NAIVE) if space.frechet_name == FID else None
            figures.append(Figure(metric, target, NAIVE, naive, len(numbers), paper=of_paper))
        if BINARY in found:
            rows[target.replace(" ", "\n")] = found[BINARY][0]["images"][:NUM_PICTURES]
    if rows and is_main_process():
        save_rows(study.folder / PICTURE, rows)
    pictures = (
        (Picture(PICTURE, f"Samples of classes, from {PER_SIDE} labels for and {PER_SIDE} against."),) if rows else ()
    )
    notes.insert(0, f"Distances to all training images of the class; means of {SEEDS} seeds; T = {num_steps}.")
    return Section(NAME, TITLE, tuple(figures), pictures, (*notes, *study.networks.no_inception))


def _samples(study, target, is_target, scenario, seed, num_steps, among) -> dict[str, np.ndarray]:
    """Returns features and some images of samples of a class, from a probe of few labels."""
    model, random = study.model, np.random.default_rng(seed)
    inside, outside = np.flatnonzero(is_target), np.flatnonzero(~is_target)
    if scenario == BINARY:
        positive, other = (random.choice(rows, min(PER_SIDE, len(rows)), replace=False) for rows in (inside, outside))
    else:
        positive = random.choice(inside, min(POSITIVES, len(inside)), replace=False)
        rest = np.setdiff1d(np.arange(len(is_target)), positive)
        other = random.choice(rest, min(UNLABELLED, len(rest)), replace=False)
    count = study.settings.num_samples
    kept = f"{NAME}-{target}-{scenario}-{seed}".replace(" ", "-")

    def drawn():
        rows = np.concatenate([positive, other])
        z = np.concatenate(
            [model.encode(as_float(study.training, rows[slice(*chunk)])) for chunk in study.chunks(len(rows))]
        )
        labels = np.arange(len(rows)) < len(positive)
        normalised = model.statistics.normalize(z)
        probe = fit(target, normalised, labels, positive_unlabelled=scenario == POSITIVE_UNLABELLED)
        z, numbers = model.sample_latents(count, probe, True, seed, num_steps)
        return {"z": z, "numbers": numbers}

    codes = study.parts.keep(f"{kept}-codes", drawn)

    def draw(start, stop):
        x_T = model.noise(codes["numbers"][start:stop], seed)
        images = model.decode(codes["z"][start:stop], x_T, num_steps)
        study.keep_images(f"{NAME}/{target}-{scenario}-{seed}".replace(" ", "-"), start, images)
        return images

    return features(study, kept, draw, count, among)
