"""Builds the networks that a config describes."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from diffae_jax.models.autoencoder import DiffusionAutoencoder
from diffae_jax.models.encoders import find_encoder
from diffae_jax.models.latent_mlp import LatentMLP


def builder(config: Any, precision: str) -> Callable[[nnx.Rngs], DiffusionAutoencoder]:
    """Returns a function that builds the autoencoder of a config.

    Args:
        config: A config with the sections `model` and `execution`.
        precision: Type of the activations: "float32", "bfloat16" or "float16".

    Returns:
        A function rngs -> autoencoder.

    Raises:
        ValueError: The encoder does not exist or its module is not imported: see `find_encoder`.
    """
    settings = dict(image_shape=config.image_shape, remat=config.execution.remat, dtype=getattr(jnp, precision))
    sizes = {key: value for key, value in config.model.items() if key != "encoder"}
    if config.model.z_dim is not None:
        settings["encoder"] = find_encoder(config.model.encoder.kind)
    return lambda rngs: DiffusionAutoencoder(**settings, **sizes, rngs=rngs)


def prior_builder(config: Any, precision: str) -> Callable[[nnx.Rngs], LatentMLP]:
    """Returns a function that builds the network of the prior of a config.

    Args:
        config: A config with the sections `model` and `prior`.
        precision: Type of the activations: "float32", "bfloat16" or "float16".

    Returns:
        A function rngs -> network.
    """
    settings = dict(z_dim=config.model.z_dim, num_layers=config.prior.num_layers, width=config.prior.width)
    return lambda rngs: LatentMLP(**settings, dtype=getattr(jnp, precision), rngs=rngs)
