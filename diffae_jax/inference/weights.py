"""The weights of a config's networks: their shapes, checks, and placement on the devices."""

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
    """Returns shapes, types and shardings of a config's weights: "autoencoder" and "prior".

    A DDIM baseline has no "prior". Raises UserError if the networks cannot be built.
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
    except Exception as error:  # a custom encoder may raise anything
        if not has_z or encoder in ENCODERS:
            raise
        raise UserError(
            f"The encoder {shown(encoder)} cannot be used ({type(error).__name__}: {shown(str(error))}). Its "
            f"constructor must take image_shape, z_dim, dtype, rngs and **_, and a call must turn images [N, *shape] "
            f"into z."
        ) from error
    whole = replicated(mesh)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), shapes)


def check_weights(weights: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raises UserError, with the first names, if the dotted names, shapes or types differ."""
    have, need = ({k: (v.shape, str(v.dtype)) for k, v in flat.items()} for flat in (weights, expected))
    differing = {k for k in have.keys() & need.keys() if have[k] != need[k]}
    for problem, names in (
        ("lacks {}, which its config describes", need.keys() - have.keys()),
        ("has {}, which its config does not describe", have.keys() - need.keys()),
        ("has {} in another shape or type than its config describes", differing),
    ):
        if names:
            raise UserError(f"The model {problem.format(list_some(names))}. Use the config that it was trained with.")


def count_parameters(weights: dict[str, Any]) -> dict[str, int]:
    """Returns the number of parameters of encoder, UNet and prior, without those of size 0.

    `weights` holds arrays by dotted name.
    """
    sizes = {"encoder": 0, "UNet": 0, "prior": 0}
    for name, array in weights.items():
        part = "prior" if name.startswith("prior.") else "encoder" if ".encoder." in name else "UNet"
        sizes[part] += array.size
    return {part: size for part, size in sizes.items() if size}


def placed(params: Params, mesh: Mesh) -> Params:
    """Copies weights to every device. Weights that are already sharded stay as they are."""
    whole = replicated(mesh)
    return jax.tree.map(
        lambda a: a if isinstance(getattr(a, "sharding", None), NamedSharding) else shard_array(a, whole), params
    )
