"""A model that was never trained."""

from functools import partial

import jax
import numpy as np

from diffae_jax import DiffAE
from diffae_jax.data.latents import LatentStatistics
from diffae_jax.models.build import builder, prior_builder
from diffae_jax.models.functional import init_params
from diffae_jax.probes import Probe
from tests.tiny import get_config

BUILDERS = (builder, prior_builder)


def initial(build, seed: int = 0):
    """The initial weights of a network, from one compiled function, which takes less time."""
    return jax.jit(partial(init_params, build))(jax.random.key(seed))


def random_model(mesh: jax.sharding.Mesh, seed: int = 0, image_shape=(8, 8, 1), **settings) -> DiffAE:
    """A model with random weights everywhere, because output layers would otherwise be zero.

    Its z differ from image to image, and its statistics are those of the z of noise. `settings`
    take the place of what it would have been made with.
    """
    config = get_config()
    config.image_shape = image_shape
    config.prior.update(num_layers=3, width=16)
    rng = np.random.default_rng(seed)
    autoencoder, prior = (initial(make(config, "float32"), i) for i, make in enumerate(BUILDERS))
    autoencoder = jax.tree.map(lambda a: a + rng.normal(scale=0.1, size=a.shape).astype(np.float32), autoencoder)
    noise = rng.uniform(-1, 1, (100, *config.image_shape)).astype(np.float32)
    z = DiffAE(config, autoencoder, mesh=mesh).encode(noise)
    usual = dict(
        statistics=LatentStatistics.of([z]),
        prior=prior,
        probes={"hair/color é": Probe("hair/color é", rng.normal(size=8).astype(np.float32), 0.1)},
        origin={"made": "here"},
    )
    return DiffAE(config, autoencoder, **usual | settings, mesh=mesh)
