"""The networks that a config describes, and whether weights are theirs."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffae_jax.errors import UserError, name_some
from diffae_jax.models import DiffusionAutoencoder, LatentMLP, abstract_model
from diffae_jax.models.functional import Params
from diffae_jax.training.precision import COMPUTE_DTYPES
from diffae_jax.training.sharding import replicated


def builder(config: ConfigDict, precision: str) -> Callable[[nnx.Rngs], DiffusionAutoencoder]:
    """Returns the function that makes the model of a config, computing in that precision."""
    settings = dict(image_shape=config.image_shape, remat=config.execution.remat, dtype=COMPUTE_DTYPES[precision])
    return lambda rngs: DiffusionAutoencoder(**settings, **config.model, rngs=rngs)


def prior_builder(config: ConfigDict, precision: str) -> Callable[[nnx.Rngs], LatentMLP]:
    """Returns the function that makes the latent DDIM's network of a config, computing in that precision."""
    settings = dict(z_dim=config.model.z_dim, num_layers=config.prior.num_layers, width=config.prior.width)
    return lambda rngs: LatentMLP(**settings, dtype=COMPUTE_DTYPES[precision], rngs=rngs)


def abstract_weights(config: ConfigDict, mesh: Mesh) -> dict[str, Params]:
    """Returns shapes, types and places of the weights of a config: "autoencoder" and, unless it has no z, "prior".

    Raises UserError where its networks cannot be built.
    """
    builders = {"autoencoder": builder} | ({} if config.model.z_dim is None else {"prior": prior_builder})
    try:
        shapes = {name: abstract_model(make(config, "float32"))[1] for name, make in builders.items()}
    except ValueError as error:
        raise UserError(str(error)) from error
    whole = replicated(mesh)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), shapes)


def check_weights(weights: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raises UserError, with the first names, unless both have the same flat names, shapes and types."""
    found, wanted = ({k: (v.shape, str(v.dtype)) for k, v in flat.items()} for flat in (weights, expected))
    for problem, names in (
        ("lacks", wanted.keys() - found.keys()),
        ("has, beyond what the config describes,", found.keys() - wanted.keys()),
        ("has in another shape or type", {k for k in found.keys() & wanted.keys() if found[k] != wanted[k]}),
    ):
        if names:
            raise UserError(f"The model {problem} {name_some(names)}.")
