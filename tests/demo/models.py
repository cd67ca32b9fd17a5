"""A small model with everything that the page shows: never trained, with probes of each kind."""

import jax
import numpy as np

from diffae_jax import DiffAE
from diffae_jax.probes import ClassProbe, Probe
from tests.random_models import random_model


def model_with_probes(mesh: jax.sharding.Mesh, **settings) -> DiffAE:
    rng = np.random.default_rng(1)

    def probe(name: str, kind: str = "binary") -> Probe:
        return Probe(name, rng.normal(size=8).astype(np.float32), 0.1, kind)

    digit = ClassProbe("digit", {value: probe(f"digit={value}") for value in ("1", "2")})
    probes = {"digit": digit, "bold": probe("bold"), "slant": probe("slant", "continuous")}
    return random_model(mesh, **{"probes": probes} | settings)
