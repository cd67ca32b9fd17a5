"""The networks that a config describes."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from diffae_jax.models.autoencoder import DiffusionAutoencoder
from diffae_jax.models.latent_mlp import LatentMLP


def builder(config: Any, precision: str) -> Callable[[nnx.Rngs], DiffusionAutoencoder]:
    """Returns the function that makes the model of a config, computing in that precision."""
    settings = dict(image_shape=config.image_shape, remat=config.execution.remat, dtype=getattr(jnp, precision))
    return lambda rngs: DiffusionAutoencoder(**settings, **config.model, rngs=rngs)


def prior_builder(config: Any, precision: str) -> Callable[[nnx.Rngs], LatentMLP]:
    """Returns the function that makes the latent DDIM's network of a config, computing in that precision."""
    settings = dict(z_dim=config.model.z_dim, num_layers=config.prior.num_layers, width=config.prior.width)
    return lambda rngs: LatentMLP(**settings, dtype=getattr(jnp, precision), rngs=rngs)
