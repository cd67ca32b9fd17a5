"""Whether samples are training images over again (Appendix C, Fig. 9)."""

import numpy as np

from diffae_jax.data.pictures import save_rows
from diffae_jax.evaluation.chunk_cache import Arrays
from diffae_jax.evaluation.intervals import mean_figure, share_figure
from diffae_jax.evaluation.results import Figure, Picture, Section
from diffae_jax.evaluation.study import NUM_PICTURES, Study, as_float
from diffae_jax.runtime.cluster import is_main_process

NAME = "neighbors"
TITLE = "Nearest training images of samples (Appendix C)"
NEEDS: tuple[str, ...] = ("z", "prior", "training", "held out", "two images")
NUM_SAMPLES = 200
CANDIDATES = 64  # the nearest by pixels and by z, among which LPIPS looks
NO_DISTANCE = 1e-4  # what rounding makes of none
NEAR = 1  # percent of held-out images that have a training image nearer than what is called a copy
COPIES = "share of images nearer to a training image than 99 % of held-out ones"
DISTANCE = "root of the mean squared distance to the nearest training image"
IN = {"pixels": "pixels", "z": "normalized z"}
PICTURE = "neighbors.png"


def calls(study: Study) -> int:
    """Returns at most how many times the UNet is called, once for each image."""
    return NUM_SAMPLES * study.settings.num_code_steps


def run(study: Study) -> Section:
    """Finds the nearest training images of samples and, to know what is near, of held-out images."""
    model, settings = study.model, study.settings
    num_steps = settings.num_code_steps
    held_out = study.chosen[:NUM_SAMPLES]
    count = min(NUM_SAMPLES, settings.num_samples)
    samples = study.cache.keep(
        f"{NAME}-samples", lambda: {"images": model.sample(count, study.seed, num_steps, num_steps)}
    )["images"]
    real = as_float(study.images, held_out)
    queries = {"samples": _codes(study, samples), "held-out images": _codes(study, real)}
    nearest = _nearest(study, queries)
    figures: list[Figure] = []
    notes = [f"Among {len(study.training):,} training images."]
    for space, place in IN.items():
        limit = np.percentile(nearest[f"held-out images-{space}-distance"][:, 0], NEAR)
        if limit < NO_DISTANCE:
            notes.append(f"Held-out images are training images, too, in {place}: so nothing tells what a copy is.")
        for row in queries:
            distance = nearest[f"{row}-{space}-distance"][:, 0]
            figures.append(mean_figure(DISTANCE, row, f"in {place}", distance))
            if row == "samples" and limit >= NO_DISTANCE:
                figures.append(share_figure(COPIES, row, f"in {place}", distance <= limit))
    shown = min(NUM_PICTURES, count)
    rows = {"sample": samples[:shown]}
    for space, place in IN.items():
        rows[f"nearest in\n{place}"] = as_float(study.training, nearest[f"samples-{space}-number"][:shown, 0])
    if study.networks.lpips is not None:
        rows["nearest\nby LPIPS"], distance = _by_lpips(study, samples[:shown], nearest)
        figures.append(mean_figure("LPIPS to the nearest of these training images", "samples", "", distance))
        notes.append(f"By LPIPS: among the {CANDIDATES} nearest in pixels and as many in z, of {shown} samples.")
    if is_main_process():
        save_rows(study.folder / PICTURE, rows)
    picture = Picture(PICTURE, f"Samples in {num_steps} steps, and the training images that are nearest to them.")
    return Section(NAME, TITLE, tuple(figures), (picture,), (*notes, *study.networks.no_lpips))


def _codes(study: Study, images: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what distances are taken of: pixels in [0, 1], and normalized z."""
    z = study.model.statistics.normalize(study.model.encode(images))
    return {"pixels": (images.reshape(len(images), -1) + 1) / 2, "z": z}


def _nearest(study: Study, queries: dict[str, dict[str, np.ndarray]]) -> Arrays:
    """Returns the distances and numbers of the nearest training images of each query, the nearest first."""
    found: Arrays = {}
    for start, stop in study.chunks(len(study.training)):
        numbers = np.arange(start, stop)

        def compute(numbers=numbers) -> Arrays:
            codes = _codes(study, as_float(study.training, numbers))
            part = {}
            for row, query in queries.items():
                for space in IN:
                    distance = _distances(query[space], codes[space])
                    order = np.argsort(distance, axis=1)[:, :CANDIDATES]
                    part[f"{row}-{space}-distance"] = np.take_along_axis(distance, order, 1)
                    part[f"{row}-{space}-number"] = numbers[order]
            return part

        part = study.cache.keep(f"{NAME}-{start:07d}", compute)
        found = part if not found else _nearer(found, part)
    return found


def _nearer(found: Arrays, part: Arrays) -> Arrays:
    """Merges two lists of nearest images."""
    merged: Arrays = {}
    for key in found:
        if key.endswith("-distance"):
            number = key.removesuffix("distance") + "number"
            distance = np.concatenate([found[key], part[key]], axis=1)
            order = np.argsort(distance, axis=1, kind="stable")[:, :CANDIDATES]
            merged[key] = np.take_along_axis(distance, order, 1)
            merged[number] = np.take_along_axis(np.concatenate([found[number], part[number]], axis=1), order, 1)
    return merged


def _distances(query: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Returns the root of the mean squared difference of each pair, without an array of all differences."""
    query, codes = query.astype(np.float64), codes.astype(np.float64)
    squares = np.square(query).sum(1)[:, None] + np.square(codes).sum(1) - 2 * query @ codes.T
    return np.sqrt(np.maximum(squares, 0) / query.shape[1])


def _by_lpips(study: Study, samples: np.ndarray, nearest: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Returns the training image nearest by LPIPS of each sample, among those near in pixels or in z, and how near."""
    found, distances = [], []
    for i, sample in enumerate(samples):
        # as many for every sample, though some come twice: so one program serves all
        numbers = np.concatenate([nearest[f"samples-{space}-number"][i] for space in IN])
        images = as_float(study.training, numbers)
        distance = study.networks.lpips(np.broadcast_to(sample, images.shape), images)
        found.append(images[distance.argmin()])
        distances.append(distance.min())
    return np.stack(found), np.array(distances)
