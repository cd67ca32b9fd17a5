"""The weights that the networks of a config have, and whether others are such."""

from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffae_jax.models import abstract_model
from diffae_jax.models.build import builder, prior_builder
from diffae_jax.models.functional import Params
from diffae_jax.runtime.errors import UserError, name_some
from diffae_jax.runtime.sharding import replicated


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
