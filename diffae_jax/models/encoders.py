"""Finds semantic encoders by name: those of the package, and your own.

An encoder is a Flax NNX module that turns images [N, *shape], float32 in [-1, 1], into z [N, D].
It is constructed with the keyword arguments `image_shape`, `z_dim`, `dtype` (the type of
activations) and `rngs`. It also gets the sizes of the config: `base_channels`, `channel_mults`
(those of the encoder), `attention_resolutions`, `num_heads`, `num_res_blocks` and `remat`. An
encoder that does not use them accepts them as `**_`.

z must depend only on the image and the parameters, not on the other images of the batch, because
batches are split and padded. Therefore the module is put into evaluation mode and its random state
is removed: an `nnx.Dropout` has no effect. A module with other state, such as the running
statistics of `nnx.BatchNorm`, is refused. Parameters must be float32.

A config or a bundle refers to an encoder by name: "unet" or "package.module:Class". This module
imports nothing; it searches the modules that the program has already imported.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from diffae_jax.models.encoder import SemanticEncoder
from diffae_jax.models.functional import Params, flatten, unflatten

ENCODERS: dict[str, type[nnx.Module]] = {
    "unet": SemanticEncoder,
}


def find_encoder(kind: str) -> type[nnx.Module]:
    """Returns the class of an encoder.

    Args:
        kind: A key of `ENCODERS`, such as "unet", or "package.module:Class".

    Returns:
        The class.

    Raises:
        ValueError: There is no such encoder, or its module is not imported.
    """
    if kind in ENCODERS:
        return ENCODERS[kind]
    module, colon, name = kind.partition(":")
    if not colon:
        raise ValueError(f"There is no encoder {kind}: use {', '.join(ENCODERS)}, or package.module:Class of your own.")
    if module not in sys.modules:
        raise ValueError(
            f"The encoder {kind} is not imported. If you trust its code, import {module} (in the shell: --import "
            f"{module}), or pass the class: DiffAE.load(path, encoder={name})."
        )
    encoder = _lookup(module, name)
    if not _is_encoder(encoder):
        raise ValueError(
            f"The encoder {kind} is missing: {module} has no Flax nnx.Module class {name}. If the class has moved, "
            f"pass it: DiffAE.load(path, encoder={name})."
        )
    return encoder


def encoder_name(encoder: Any) -> str:
    """Returns the name of an encoder class, for `config.model.encoder.kind`.

    Args:
        encoder: A class in `ENCODERS`, or a Flax `nnx.Module` defined at the top level of a
            module.

    Returns:
        A key of `ENCODERS`, or "package.module:Class".

    Raises:
        ValueError: The class cannot be found by its name, so a bundle could not refer to it.
    """
    for name, known in ENCODERS.items():
        if encoder is known:
            return name
    module, name = getattr(encoder, "__module__", ""), getattr(encoder, "__qualname__", "")
    if not _is_encoder(encoder) or _lookup(module, name) is not encoder:
        raise ValueError(
            f"{name or type(encoder).__name__} cannot be an encoder. Define a Flax nnx.Module class at the top level "
            f"of a module, so that a bundle can refer to it by name."
        )
    return f"{module}:{name}"


def check_encoder(graphdef: nnx.GraphDef, params: Params, image_shape: tuple[int, ...], z_dim: int) -> None:
    """Checks the parameters and the output shape of the encoder. It is traced, but not run.

    Args:
        graphdef: The structure of the autoencoder.
        params: The parameters of the autoencoder, or their shapes.
        image_shape: Shape of an image, (*spatial, channels).
        z_dim: Dimensions of z.

    Raises:
        ValueError: The encoder has no parameters, has a parameter with a wrong type or name, or
            returns z of a wrong shape. Exceptions of its own code are passed on.
    """
    hash(graphdef)  # the cache of compiled functions needs this hash; fail now
    encoder_params = params.get("encoder")
    if not encoder_params:
        raise ValueError("The encoder has no parameters to train: keep its weights in nnx.Param.")
    wrong = sorted(name for name, leaf in flatten(encoder_params).items() if leaf.dtype != jnp.float32)
    if wrong:
        raise ValueError(f"The parameter {wrong[0]} of the encoder must be float32: do not set param_dtype.")
    if jax.tree.structure(unflatten(flatten(encoder_params))) != jax.tree.structure(encoder_params):
        raise ValueError("The encoder has a parameter whose name contains a dot or is a number: use words or nnx.List.")
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    z = jax.eval_shape(lambda params, images: nnx.merge(graphdef, params).encode(images), params, images)
    if z.shape != (2, z_dim):
        raise ValueError(f"The encoder turns two images into z of shape {z.shape}: it must be {(2, z_dim)}.")


def _lookup(module: str, name: str) -> object:
    """Returns an attribute of an imported module, without getattr, which may run its code."""
    return getattr(sys.modules.get(module), "__dict__", {}).get(name)


def _is_encoder(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, nnx.Module)
