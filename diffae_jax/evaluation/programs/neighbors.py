"""The nearest training images of samples, to find copies (Appendix C, Fig. 9)."""

import numpy as np

from diffae_jax.data.pictures import save_rows
from diffae_jax.evaluation.chunk_cache import Arrays
from diffae_jax.evaluation.intervals import mean_figure, share_figure
from diffae_jax.evaluation.results import Figure, Picture, Section
from diffae_jax.evaluation.study import NUM_PICTURES, Study, as_float
from diffae_jax.runtime.cluster import is_main_process

NAME = "neighbors"
TITLE = "Nearest training images of samples (Appendix C)"
REQUIREMENTS: tuple[str, ...] = ("z", "prior", "training", "held out", "two images")
NUM_SAMPLES = 200
CANDIDATES = 64  # LPIPS is measured to this many nearest images by pixels and by z
NO_DISTANCE = 1e-4  # smaller distances are rounding errors
NEAR = 1  # the percentile of held-out distances below which a sample counts as a copy
COPIES = "share of samples closer to a training image than 99 % of held-out images"
DISTANCE = "RMS distance to the nearest training image"
SPACES = {"pixels": "pixels", "z": "normalized z"}
PICTURE = "neighbors.png"


def num_calls(study: Study) -> int:
    """Returns the largest possible number of UNet calls, counted per image."""
    return NUM_SAMPLES * study.settings.num_code_steps


def run(study: Study) -> Section:
    """Finds the nearest training images of samples and, as a reference, of held-out images."""
    model, settings = study.model, study.settings
    num_steps = settings.num_code_steps
    held_out = study.chosen[:NUM_SAMPLES]
    count = min(NUM_SAMPLES, settings.num_samples)
    samples = study.cache.load_or_compute(
        f"{NAME}-samples", lambda: {"images": model.sample(count, study.seed, num_steps, num_steps)}
    )["images"]
    real = as_float(study.images, held_out)
    queries = {"samples": _codes(study, samples), "held-out images": _codes(study, real)}
    nearest = _nearest(study, queries)
    figures: list[Figure] = []
    notes = [f"Each image is compared with {len(study.training):,} training images."]
    for space, label in SPACES.items():
        limit = np.percentile(nearest[f"held-out images-{space}-distance"][:, 0], NEAR)
        if limit < NO_DISTANCE:
            notes.append(
                f"In {label}, some held-out images are identical to training images, so copies cannot be detected."
            )
        for row in queries:
            distance = nearest[f"{row}-{space}-distance"][:, 0]
            figures.append(mean_figure(DISTANCE, row, f"in {label}", distance))
            if row == "samples" and limit >= NO_DISTANCE:
                figures.append(share_figure(COPIES, row, f"in {label}", distance <= limit))
    shown = min(NUM_PICTURES, count)
    rows = {"sample": samples[:shown]}
    for space, label in SPACES.items():
        rows[f"nearest in {label}"] = as_float(study.training, nearest[f"samples-{space}-number"][:shown, 0])
    if study.networks.lpips is not None:
        rows["nearest by LPIPS"], distance = _by_lpips(study, samples[:shown], nearest)
        figures.append(mean_figure("LPIPS to the nearest candidate", "samples", "", distance))
        notes.append(
            f"LPIPS is measured for {shown} samples. The candidates are the {CANDIDATES} nearest training images in "
            f"pixels and the {CANDIDATES} nearest in z."
        )
    if is_main_process():
        save_rows(study.folder / PICTURE, rows)
    picture = Picture(PICTURE, f"Samples in {num_steps} steps, and their nearest training images.")
    return Section(NAME, TITLE, tuple(figures), (picture,), (*notes, *study.networks.no_lpips))


def _codes(study: Study, images: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the vectors to compare: pixels in [0, 1], and normalized z."""
    z = study.model.statistics.normalize(study.model.encode(images))
    return {"pixels": (images.reshape(len(images), -1) + 1) / 2, "z": z}


def _nearest(study: Study, queries: dict[str, dict[str, np.ndarray]]) -> Arrays:
    """Returns the distances and indices of each query's nearest training images, nearest first."""
    nearest: Arrays = {}
    for start, stop in study.chunks(len(study.training)):
        indices = np.arange(start, stop)

        def compute(indices=indices) -> Arrays:
            codes = _codes(study, as_float(study.training, indices))
            chunk = {}
            for row, query in queries.items():
                for space in SPACES:
                    distance = _distances(query[space], codes[space])
                    order = np.argsort(distance, axis=1)[:, :CANDIDATES]
                    chunk[f"{row}-{space}-distance"] = np.take_along_axis(distance, order, 1)
                    chunk[f"{row}-{space}-number"] = indices[order]
            return chunk

        chunk = study.cache.load_or_compute(f"{NAME}-{start:07d}", compute)
        nearest = _merged(nearest, chunk) if nearest else chunk
    return nearest


def _merged(nearest: Arrays, chunk: Arrays) -> Arrays:
    """Merges two lists of nearest images."""
    merged: Arrays = {}
    for key in nearest:
        if key.endswith("-distance"):
            number = key.removesuffix("distance") + "number"
            distance = np.concatenate([nearest[key], chunk[key]], axis=1)
            order = np.argsort(distance, axis=1, kind="stable")[:, :CANDIDATES]
            merged[key] = np.take_along_axis(distance, order, 1)
            merged[number] = np.take_along_axis(np.concatenate([nearest[number], chunk[number]], axis=1), order, 1)
    return merged


def _distances(query: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Returns the RMS difference of each pair, without an array of all differences."""
    query, codes = query.astype(np.float64), codes.astype(np.float64)
    squares = np.square(query).sum(1)[:, None] + np.square(codes).sum(1) - 2 * query @ codes.T
    return np.sqrt(np.maximum(squares, 0) / query.shape[1])


def _by_lpips(study: Study, samples: np.ndarray, nearest: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Returns each sample's nearest candidate by LPIPS, and its distance."""
    neighbors, distances = [], []
    for i, sample in enumerate(samples):
        # duplicates are kept: all samples have the same shapes, so it compiles once
        indices = np.concatenate([nearest[f"samples-{space}-number"][i] for space in SPACES])
        images = as_float(study.training, indices)
        distance = study.networks.lpips(np.broadcast_to(sample, images.shape), images)
        neighbors.append(images[distance.argmin()])
        distances.append(distance.min())
    return np.stack(neighbors), np.array(distances)
