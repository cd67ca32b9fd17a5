"""Errors of reconstructed images (Sec. 5.4, Tables 1 and 2)."""

from typing import NamedTuple

import numpy as np

from diffae_jax.data.pictures import save_rows
from diffae_jax.evaluation import metrics
from diffae_jax.evaluation.chunk_cache import Arrays
from diffae_jax.evaluation.intervals import mean_figure
from diffae_jax.evaluation.paper import published as paper
from diffae_jax.evaluation.results import Figure, Picture, Section
from diffae_jax.evaluation.study import NUM_PICTURES, Study, encoded
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.inference.methods import as_round_trip
from diffae_jax.runtime.cluster import is_main_process

NAME = "reconstruction"
TITLE = "Reconstruction (Sec. 5.4, Tables 1 and 2)"
REQUIREMENTS: tuple[str, ...] = ()
INFERRED, RANDOM = "inferred x_T", "random x_T"
BASELINE = "DDIM baseline, inferred x_T"
METRICS = {"ssim": "SSIM", "mse": "MSE", "psnr": "PSNR in dB", "lpips": "LPIPS"}
PICTURE = "reconstructions.png"


class Method(NamedTuple):
    """A method of reconstruction."""

    row: str
    name: str  # part of the names of its chunks
    model: DiffAE
    inversion: str | None = "ddim"  # how x_T is inferred; None: it is random

    @property
    def infers(self) -> bool:
        """Whether x_T is inferred."""
        return self.inversion is not None


def row_for_size(model: DiffAE) -> str:
    """Returns the row name of a model with a different size of z."""
    return f"z of {model.config.model.z_dim}, {RANDOM}"


def methods(study: Study) -> list[Method]:
    """Returns the methods to compare: x_T inferred or random, baseline, other sizes of z."""
    row = INFERRED if study.has_z else BASELINE
    result = [
        Method(row, "inferred", study.model)
        if inversion == "ddim"
        else Method(f"{row}, {inversion}", f"inferred-{inversion}", study.model, inversion)
        for inversion in study.settings.inversions
    ]
    if study.has_z:
        result.append(Method(RANDOM, "random", study.model, None))
    if study.baseline is not None:
        result.append(Method(BASELINE, "baseline", study.baseline))
    others = sorted(study.others, key=lambda model: -model.config.model.z_dim)
    return result + [Method(row_for_size(model), f"z{model.config.model.z_dim}", model, None) for model in others]


def reconstruct_chunk(study: Study, method: Method, num_steps: int, start: int, stop: int) -> Arrays:
    """Returns the errors of the images from `start` to `stop`, and the decoded images to show.

    For a small data set it returns all decoded images, which other programs use.
    """

    def compute() -> Arrays:
        x_0 = study.read(start, stop)
        z = encoded(method.model, x_0)
        if method.infers:
            inverter, sampler = as_round_trip(method.inversion)
            settings = dict(method=method.inversion, grid=inverter.grid, seed=study.seed, first=start)
            x_T = method.model.invert(x_0, z, num_steps, **settings)
        else:
            sampler, x_T = "ddim", method.model.noise(np.arange(start, stop), study.seed)
        decoded = method.model.decode(z, x_T, num_steps, sampler=sampler)
        study.write_images(start, decoded, NAME, f"{method.name}-{num_steps}")
        errors = {name: getattr(metrics, name)(decoded, x_0) for name in ("ssim", "mse", "psnr")}
        if study.networks.lpips is not None:
            errors["lpips"] = study.networks.lpips(decoded, x_0)
        returned = decoded if study.is_small(len(study.chosen)) else decoded[: max(0, NUM_PICTURES - start)]
        return {**errors, "decoded": returned}

    return study.cache.load_or_compute(f"{NAME}-{method.name}-{num_steps}-{start:07d}", compute)


def decoded(study: Study, method: Method, num_steps: int) -> np.ndarray:
    """Returns all decoded images of a small data set, or the first ones of a large data set."""
    chunks = study.chunks(len(study.chosen))
    return np.concatenate([reconstruct_chunk(study, method, num_steps, *bounds)["decoded"] for bounds in chunks])


def num_calls(study: Study) -> int:
    """Returns the approximate number of UNet calls, counted per image."""
    passes = sum(2 if method.infers else 1 for method in methods(study))
    return passes * len(study.chosen) * sum(study.settings.num_steps)


def run(study: Study) -> Section:
    """Measures MSE, SSIM, PSNR and LPIPS of each image, and draws some images."""
    figures: list[Figure] = []
    has_exact = False
    rows = {"input": study.read(0, min(NUM_PICTURES, len(study.chosen)))}
    for num_steps in study.settings.num_steps:
        for method in methods(study):
            bounds = study.chunks(len(study.chosen))
            chunks = [reconstruct_chunk(study, method, num_steps, start, stop) for start, stop in bounds]
            for name, metric in METRICS.items():
                if name in chunks[0]:
                    values = np.concatenate([chunk[name] for chunk in chunks])
                    if not np.isfinite(values).all():
                        has_exact = True
                    else:
                        paper_value = paper.reconstruction(study.model.config.name, metric, method.row, num_steps)
                        figures.append(mean_figure(metric, method.row, f"T = {num_steps}", values, paper=paper_value))
            if num_steps == max(study.settings.num_steps):
                shown = np.concatenate([chunk["decoded"] for chunk in chunks])[:NUM_PICTURES]
                rows[method.row] = shown
    if is_main_process():
        save_rows(study.folder / PICTURE, rows)
    notes = ["Errors are measured on the scale [0, 1]."]
    if has_exact:
        notes.append("A PSNR is missing if an image is reconstructed exactly, because the PSNR is then infinite.")
    if any(figure.paper is not None for figure in figures):
        notes.append("The paper trained on FFHQ and measured 30,000 images of CelebA-HQ.")
    picture = Picture(PICTURE, f"Images, and their reconstructions in {max(study.settings.num_steps)} steps.")
    return Section(NAME, TITLE, tuple(figures), (picture,), (*notes, *study.networks.no_lpips))
