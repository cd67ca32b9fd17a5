"""How hard it is to tell samples from real images (Appendix K)."""

import numpy as np

from diffae_jax.data.sources import Source, choose
from diffae_jax.data.transforms import to_uint8
from diffae_jax.evaluation.chunk_cache import Arrays
from diffae_jax.evaluation.intervals import share_figure
from diffae_jax.evaluation.networks.detector import detect, splits
from diffae_jax.evaluation.results import Figure, Section
from diffae_jax.evaluation.study import Study, as_float

NAME = "detection"
TITLE = "Detection of generated images (Appendix K)"
NEEDS: tuple[str, ...] = ("prior", "many")
PICTURE = ""
METRIC = "accuracy of a small classifier of real against generated"
FEWEST, MOST = 40, 10_000  # real images; the paper took 10,000


def real_images(study: Study) -> tuple[Source, np.ndarray]:
    """Returns training images where they are at hand, at most as many as there are samples."""
    source = study.training if study.training is not None else study.images
    return source, choose(len(source), min(study.settings.num_samples, MOST), study.seed)


def calls(study: Study) -> int:
    """Returns how many times the UNet is called, once for each image."""
    return len(real_images(study)[1]) * sum(study.settings.num_sample_steps)


def run(study: Study) -> Section:
    """Trains a small convolutional network on real and generated images for each number of steps, and tests it."""
    real = to_uint8(as_float(*real_images(study)))  # all with 8 bits, for rounding must not tell them apart
    figures: list[Figure] = []
    for num_steps in study.settings.num_sample_steps:

        def compute(num_steps=num_steps) -> Arrays:
            drawn = [_drawn(study, num_steps, *chunk)["images"] for chunk in study.chunks(len(real))]
            return {"right": detect(*splits(real, np.concatenate(drawn), study.seed), study.seed)}

        right = study.cache.keep(f"{NAME}-{num_steps}", compute)["right"]
        figures.append(share_figure(METRIC, "samples", f"T = {num_steps}", right))
    notes = (
        f"Trained on {len(real):,} real and as many generated images, less what is tested. The paper trained a "
        f"ResNet50 on FFHQ at 256x256: 0.955 for T = 100, 0.948 for T = 200, 0.931 for T = 500.",
    )
    return Section(NAME, TITLE, tuple(figures), (), notes)


def _drawn(study: Study, num_steps: int, start: int, stop: int) -> Arrays:
    def compute() -> Arrays:
        drawn = study.model.sample(stop - start, study.seed, num_steps, num_steps, first=start)
        return {"images": to_uint8(drawn)}

    return study.cache.keep(f"{NAME}-{num_steps}-{start:07d}", compute)
