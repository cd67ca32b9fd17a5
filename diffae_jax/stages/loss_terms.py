"""Additional terms in the loss of the autoencoder, such as a penalty on z or a contrastive term.

A term is a function `(z, batch, keys) -> loss` that returns one number per sample [N], or a
scalar:

- z: the latent codes [N, D]. Gradients flow through z to the encoder.
- batch["image"]: the images [N, *shape] as loaded, uint8 in [0, 255] or float32 in [-1, 1].
- keys: one random key per sample [N]; each term has its own keys.

N is the size of a microbatch over all devices: `train.batch_size / execution.num_microbatches`.
The result of a term that compares samples therefore depends on the number of microbatches.

The term includes its own weight. Its mean is added to the loss and logged under its name. The
metric `loss` does not include it.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.training.step import STEP_METRICS

LossTerm = Callable[[Float[Array, "n d"], Any, Key[Array, "n"]], Float[Array, "*n"]]

# columns of metrics.jsonl
RESERVED = ("loss", "loss_spikes", *STEP_METRICS, "stage", "step", "images", "images_per_second")


def check_terms(config: ConfigDict, terms: Mapping[str, LossTerm]) -> None:
    """Checks the names of the loss terms.

    Args:
        config: The config of the run; `train.loss_terms` lists the names of its terms.
        terms: The functions by name.

    Raises:
        UserError: A listed term has no function, the model has no z, or a name is already used by
            another metric.
    """
    missing = set(config.train.loss_terms) - terms.keys()
    if missing:
        raise UserError(
            f"config.train.loss_terms names {list_some(missing)}, but a config cannot hold the code: pass the function "
            f"in Python, as in run_stages(config, loss_terms={{...}})."
        )
    if terms and config.model.z_dim is None:
        raise UserError("A loss term is a function of z, but a DDIM baseline has no z: remove loss_terms.")
    for name in terms:
        if name in RESERVED or "/" in name or not name:
            raise UserError(
                f"{shown(name)} cannot be the name of a loss term: it is empty, contains / or is already a metric. "
                f"Rename it."
            )


def evaluate(
    terms: Mapping[str, LossTerm], z: Float[Array, "n d"], batch: Any, keys: Key[Array, "n"]
) -> dict[str, Float[Array, "*n"]]:
    """Computes all loss terms.

    Args:
        terms: The functions by name.
        z: Latent codes [N, D].
        batch: The microbatch, with the images [N, *shape] under "image".
        keys: One random key per sample [N].

    Returns:
        The value of each term by name: [N] or a scalar.

    Raises:
        UserError: A term returns a different shape.
    """
    values = {}
    for name, term in terms.items():
        number = zlib.crc32(name.encode())  # makes the keys of each term independent
        values[name] = term(z, batch, jax.vmap(jax.random.fold_in, (0, None))(keys, number))
        shape = jax.numpy.shape(values[name])
        if shape not in ((), (len(z),)):
            raise UserError(f"The loss term {shown(name)} has shape {shape}: it must be {(len(z),)}, or one number.")
    return values
