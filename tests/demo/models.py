"""A small model with everything that the page shows: never trained, with probes of each kind."""

import jax
import numpy as np

from diffae_jax import DiffAE
from diffae_jax.demo.images import ImageSet
from diffae_jax.demo.snippets import Origin
from diffae_jax.probes import ClassProbe, Probe
from tests.random_models import random_model


def model_with_probes(mesh: jax.sharding.Mesh, **settings) -> DiffAE:
    rng = np.random.default_rng(1)

    def probe(name: str, kind: str = "binary") -> Probe:
        return Probe(name, rng.normal(size=8).astype(np.float32), 0.1, kind)

    digit = ClassProbe("digit", {value: probe(f"digit={value}") for value in ("1", "2")})
    probes = {"digit": digit, "bold": probe("bold"), "slant": probe("slant", "continuous")}
    return random_model(mesh, **{"probes": probes} | settings)


def volumes(mesh: jax.sharding.Mesh) -> tuple[DiffAE, ImageSet]:
    """A model of volumes, and two of them."""
    model = random_model(mesh, image_shape=(4, 4, 4, 1))
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 4, 1), np.uint8)
    return model, ImageSet(images, ["a", "b"], [Origin("a"), Origin("b")], {}, model.encode(images), Origin("[a, b]"))
