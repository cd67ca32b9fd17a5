"""Builds the networks that a config describes."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx

from diffae_jax.models.autoencoder import DiffusionAutoencoder
from diffae_jax.models.encoders import find_encoder
from diffae_jax.models.latent_mlp import LatentMLP


@dataclasses.dataclass(frozen=True)
class Builder:
    """A function rngs -> network. Builders with the same network and settings are equal.

    Args:
        network: The class of the network.
        settings: The names and values of its arguments.
    """

    network: type[nnx.Module]
    settings: tuple[tuple[str, Any], ...]

    def __call__(self, rngs: nnx.Rngs) -> nnx.Module:
        """Builds the network with initial parameters from `rngs`."""
        return self.network(**dict(self.settings), rngs=rngs)


def builder(config: Any, precision: str) -> Builder:
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
    return Builder(DiffusionAutoencoder, (*settings.items(), *sizes.items()))


def prior_builder(config: Any, precision: str) -> Builder:
    """Returns a function that builds the network of the prior of a config.

    Args:
        config: A config with the sections `model` and `prior`.
        precision: Type of the activations: "float32", "bfloat16" or "float16".

    Returns:
        A function rngs -> network.
    """
    settings = dict(z_dim=config.model.z_dim, num_layers=config.prior.num_layers, width=config.prior.width)
    return Builder(LatentMLP, (*settings.items(), ("dtype", getattr(jnp, precision))))
