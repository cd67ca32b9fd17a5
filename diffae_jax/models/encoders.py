"""Semantic encoders by name: those of the package, and your own.

An encoder is a Flax NNX module that turns images [N, *shape], float32 in [-1, 1], into z [N, D]. It is made with the
keyword arguments `image_shape`, `z_dim`, `dtype` (of activations) and `rngs`, and with the sizes of the config, which
an encoder built in another way swallows with `**_`: `base_channels`, `channel_mults` (those of the encoder),
`attention_resolutions`, `num_heads` and `remat`.

z depends on the image and the parameters alone, and on each image by itself: batches are cut and filled up at will.
So the module is put into evaluation mode and its random state is dropped (an `nnx.Dropout` does nothing), and one with
any other state, such as the running statistics of `nnx.BatchNorm`, is refused. Parameters are float32.

A config and a bundle name an encoder, "unet" or "package.module:Class". Nothing is imported here because of a name: it
is looked up among the modules that the program has imported already.
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
    """Returns the class of a name. Raises ValueError for one that there is not, or that nobody has imported."""
    if kind in ENCODERS:
        return ENCODERS[kind]
    module, colon, name = kind.partition(":")
    if not colon:
        raise ValueError(f"There is no encoder {kind}: it is {', '.join(ENCODERS)} or your own, package.module:Class.")
    if module not in sys.modules:
        raise ValueError(
            f"The encoder {kind} is code that the model does not hold and that nobody has imported: if you trust it, "
            f"import {module} first (in the shell: --import {module}), which must be installed or on PYTHONPATH, or "
            f"give the class itself: DiffAE.load(path, encoder={name})."
        )
    found = _named(module, name)
    if not _is_encoder(found):
        raise ValueError(
            f"The encoder {kind} is not there: {module} has no class {name} that is a Flax nnx.Module; give the class "
            f"itself where it has moved: DiffAE.load(path, encoder={name})."
        )
    return found


def encoder_name(encoder: Any) -> str:
    """Returns the name of a class, for `config.model.encoder.kind`.

    Raises ValueError for anything but a class that can be found by its name, for then no bundle could ask for it.
    """
    for name, known in ENCODERS.items():
        if encoder is known:
            return name
    module, name = getattr(encoder, "__module__", ""), getattr(encoder, "__qualname__", "")
    if not _is_encoder(encoder) or _named(module, name) is not encoder:
        raise ValueError(
            f"An encoder is a class, a Flax nnx.Module that is defined at the top of a module so that a bundle can ask "
            f"for it by name, not {name or type(encoder).__name__}."
        )
    return f"{module}:{name}"


def check_encoder(graphdef: nnx.GraphDef, params: Params, image_shape: tuple[int, ...], z_dim: int) -> None:
    """Raises ValueError unless the encoder of an autoencoder does what is asked of one; it is traced, not run.

    `params` are those of the autoencoder, or their shapes. What the encoder's own code raises passes through.
    """
    hash(graphdef)  # a compiled function is known by it
    own = params.get("encoder")
    if not own:
        raise ValueError("The encoder has no parameters to train: keep its weights in nnx.Param.")
    wrong = sorted(name for name, leaf in flatten(own).items() if leaf.dtype != jnp.float32)
    if wrong:
        raise ValueError(f"{wrong[0]} of the encoder is not float32, as parameters must be: leave param_dtype alone.")
    if jax.tree.structure(unflatten(flatten(own))) != jax.tree.structure(own):
        raise ValueError("The encoder has a parameter whose name holds a dot or is a number: use words or nnx.List.")
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    z = jax.eval_shape(lambda params, images: nnx.merge(graphdef, params).encode(images), params, images)
    if z.shape != (2, z_dim):
        raise ValueError(f"The encoder turns two images into z of shape {z.shape}: it must be {(2, z_dim)}.")


def _named(module: str, name: str) -> object:
    """Returns what a module that was imported has under a name; without getattr, which may run code of the module."""
    return getattr(sys.modules.get(module), "__dict__", {}).get(name)


def _is_encoder(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, nnx.Module)
