"""How close images come back (Sec. 5.4, Tables 1 and 2)."""

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
from diffae_jax.runtime.cluster import is_main_process

NAME = "reconstruction"
TITLE = "Reconstruction (Sec. 5.4, Tables 1 and 2)"
NEEDS: tuple[str, ...] = ()
INFERRED, RANDOM = "inferred x_T", "random x_T"
BASELINE = "DDIM baseline, inferred x_T"
METRICS = {"ssim": "SSIM", "mse": "MSE", "psnr": "PSNR in dB", "lpips": "LPIPS"}
PICTURE = "reconstructions.png"


class Method(NamedTuple):
    """A way from images to images."""

    row: str
    name: str  # of its parts
    model: DiffAE
    infers: bool  # x_T, which is random otherwise


def of_size(model: DiffAE) -> str:
    """Returns the row of a model with a z of another size."""
    return f"z of {model.config.model.z_dim}, {RANDOM}"


def methods(study: Study) -> list[Method]:
    """Returns what is compared: inferred and random x_T, the DDIM baseline, models with a z of another size."""
    found = [Method(INFERRED if study.has_z else BASELINE, "inferred", study.model, True)]
    if study.has_z:
        found.append(Method(RANDOM, "random", study.model, False))
    if study.baseline is not None:
        found.append(Method(BASELINE, "baseline", study.baseline, True))
    sizes = sorted(study.others, key=lambda model: -model.config.model.z_dim)
    return found + [Method(of_size(model), f"z{model.config.model.z_dim}", model, False) for model in sizes]


def part(study: Study, method: Method, num_steps: int, start: int, stop: int) -> Arrays:
    """Returns the errors of the images from one number to another, and what was decoded of those that are shown.

    Of a small data set all that was decoded is kept, for other programs.
    """

    def compute() -> Arrays:
        x_0 = study.read(start, stop)
        z = encoded(method.model, x_0)
        x_T = (
            method.model.invert(x_0, z, num_steps)
            if method.infers
            else method.model.noise(np.arange(start, stop), study.seed)
        )
        decoded = method.model.decode(z, x_T, num_steps)
        study.keep_images(start, decoded, NAME, f"{method.name}-{num_steps}")
        errors = {name: getattr(metrics, name)(decoded, x_0) for name in ("ssim", "mse", "psnr")}
        if study.networks.lpips is not None:
            errors["lpips"] = study.networks.lpips(decoded, x_0)
        kept = decoded if study.is_small(len(study.chosen)) else decoded[: max(0, NUM_PICTURES - start)]
        return {**errors, "decoded": kept}

    return study.cache.keep(f"{NAME}-{method.name}-{num_steps}-{start:07d}", compute)


def decoded(study: Study, method: Method, num_steps: int) -> np.ndarray:
    """Returns what was decoded, of as many images as are kept."""
    kept = [part(study, method, num_steps, *chunk)["decoded"] for chunk in study.chunks(len(study.chosen))]
    return np.concatenate(kept)


def calls(study: Study) -> int:
    """Returns about how many times the UNet is called, once for each image."""
    passes = sum(2 if method.infers else 1 for method in methods(study))
    return passes * len(study.chosen) * sum(study.settings.num_steps)


def run(study: Study) -> Section:
    """Measures MSE, SSIM, PSNR and LPIPS of each image, and draws some."""
    figures: list[Figure] = []
    exact: set[str] = set()
    rows = {"input": study.read(0, min(NUM_PICTURES, len(study.chosen)))}
    for num_steps in study.settings.num_steps:
        for method in methods(study):
            parts = [part(study, method, num_steps, *chunk) for chunk in study.chunks(len(study.chosen))]
            for name, metric in METRICS.items():
                if name in parts[0]:
                    values = np.concatenate([each[name] for each in parts])
                    if not np.isfinite(values).all():
                        exact.add("PSNR is left out where an image comes back exactly.")
                    else:
                        of_paper = paper.reconstruction(study.model.config.name, metric, method.row, num_steps)
                        figures.append(mean_figure(metric, method.row, f"T = {num_steps}", values, paper=of_paper))
            if num_steps == max(study.settings.num_steps):
                shown = np.concatenate([each["decoded"] for each in parts])[:NUM_PICTURES]
                rows[method.row.replace("x_T", "$x_T$").replace(", ", ",\n")] = shown
    if is_main_process():
        save_rows(study.folder / PICTURE, rows)
    notes = ["Errors are those of images in [0, 1].", *exact]
    if any(figure.paper is not None for figure in figures):
        notes.append("The paper measured 30,000 images of CelebA-HQ, after training on FFHQ.")
    picture = Picture(PICTURE, f"Images and what comes back of them in {max(study.settings.num_steps)} steps.")
    return Section(NAME, TITLE, tuple(figures), (picture,), (*notes, *study.networks.no_lpips))
