"""The weights that the networks of a config have, whether others are such, and how they are placed on the devices."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from diffae_jax.models import abstract_model
from diffae_jax.models.build import builder, prior_builder
from diffae_jax.models.encoders import ENCODERS, check_encoder
from diffae_jax.models.functional import Params
from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.sharding import replicated, shard_array


def abstract_weights(config: ConfigDict, mesh: Mesh) -> dict[str, Params]:
    """Returns shapes, types and places of the weights of a config: "autoencoder" and, unless it has no z, "prior".

    Raises UserError where its networks cannot be built.
    """
    has_z, encoder = config.model.z_dim is not None, config.model.encoder.kind
    try:
        graphdef, autoencoder = abstract_model(builder(config, "float32"))
        shapes = {"autoencoder": autoencoder}
        if has_z:
            shapes["prior"] = abstract_model(prior_builder(config, "float32"))[1]
        if has_z and encoder not in ENCODERS:
            check_encoder(graphdef, autoencoder, tuple(config.image_shape), config.model.z_dim)
    except ValueError as error:
        raise UserError(str(error)) from error
    except Exception as error:  # the code of an encoder of somebody's own may raise anything
        if not has_z or encoder in ENCODERS:
            raise
        raise UserError(
            f"The encoder {shown(encoder)} cannot be used ({type(error).__name__}: {shown(str(error))}): it is made "
            f"with image_shape, z_dim, dtype, rngs and, for **_, other sizes, and turns images [N, *shape] into z."
        ) from error
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
            raise UserError(f"The model {problem} {list_some(names)}.")


def placed(params: Params, mesh: Mesh) -> Params:
    """Puts weights on every device; those that a run has laid out over its mesh stay as they are."""
    whole = replicated(mesh)
    return jax.tree.map(
        lambda a: a if isinstance(getattr(a, "sharding", None), NamedSharding) else shard_array(a, whole), params
    )
