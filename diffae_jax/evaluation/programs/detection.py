"""How well a small classifier distinguishes samples from real images (Appendix K)."""

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
REQUIREMENTS: tuple[str, ...] = ("prior", "enough to detect")
PICTURE = ""
METRIC = "accuracy of a small classifier of real and generated images"
MIN_IMAGES, MAX_IMAGES = 40, 10_000  # real images; the paper used 10,000


def real_images(study: Study) -> tuple[Source, np.ndarray]:
    """Returns a source and the indices of its real images: at most `num_samples` of them.

    The source holds the training images, or the measured images if those are not available.
    """
    source = study.training if study.training is not None else study.images
    return source, choose(len(source), min(study.settings.num_samples, MAX_IMAGES), study.seed)


def num_calls(study: Study) -> int:
    """Returns the number of UNet calls, counted per image."""
    return len(real_images(study)[1]) * sum(study.settings.num_sample_steps)


def run(study: Study) -> Section:
    """Trains and tests a small convolutional classifier for each number of steps."""
    real = to_uint8(as_float(*real_images(study)))  # both kinds as 8 bit, so rounding does not reveal the kind
    figures: list[Figure] = []
    for num_steps in study.settings.num_sample_steps:

        def compute(num_steps=num_steps) -> Arrays:
            generated = [_generated(study, num_steps, *bounds)["images"] for bounds in study.chunks(len(real))]
            return {"right": detect(*splits(real, np.concatenate(generated), study.seed), study.seed)}

        correct = study.cache.load_or_compute(f"{NAME}-{num_steps}", compute)["right"]
        figures.append(share_figure(METRIC, "samples", f"T = {num_steps}", correct))
    notes = (
        f"The classifier is trained and tested on {len(real):,} real and {len(real):,} generated images: 70 % for "
        f"training, 10 % for validation, 20 % for testing. 0.5 is chance. The paper trained a ResNet50 on FFHQ at "
        f"256x256, with an accuracy of 0.955 for T = 100, 0.948 for T = 200 and 0.931 for T = 500.",
    )
    return Section(NAME, TITLE, tuple(figures), (), notes)


def _generated(study: Study, num_steps: int, start: int, stop: int) -> Arrays:
    def compute() -> Arrays:
        images = study.model.sample(stop - start, study.seed, num_steps, num_steps, first=start)
        return {"images": to_uint8(images)}

    return study.cache.load_or_compute(f"{NAME}-{num_steps}-{start:07d}", compute)
