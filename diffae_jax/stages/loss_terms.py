"""Terms of your own in the loss of the autoencoder: a penalty on z, a contrastive term.

A term is a function `(z, batch, keys) -> [N]`, or a scalar. z is [N, D] with its gradient; `batch["image"]` are the
images [N, *shape] as they came to the devices, uint8 or float; `keys` hold a random key a sample, which is the term's
own. It sees one micro-batch, on all devices together: N is `train.batch_size / execution.num_microbatches`. A term of
each sample does not depend on that; one that compares samples does.

The term is weighted by whoever writes it. Its mean is added to the loss and logged under its name; the metric `loss`
stays that of the objective alone.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.training.step import OWN_METRICS

LossTerm = Callable[[Float[Array, "n d"], Any, Key[Array, "n"]], Float[Array, "*n"]]

RESERVED = ("loss", *OWN_METRICS, "stage", "step", "images", "images_per_second")  # other columns of metrics.jsonl


def check_terms(config: ConfigDict, terms: Mapping[str, LossTerm]) -> None:
    """Raises UserError unless the terms are those that the config names, and can be called so."""
    missing = set(config.train.loss_terms) - terms.keys()
    if missing:
        raise UserError(
            f"config.train.loss_terms names {list_some(missing)}, whose code no config holds: give the function in "
            f"Python, as in run_stages(config, loss_terms={{...}})."
        )
    if terms and config.model.z_dim is None:
        raise UserError("A loss term is a function of z, and a DDIM baseline has none: leave loss_terms off.")
    for name in terms:
        if name in RESERVED or "/" in name or not name:
            raise UserError(f"A loss term cannot be called {shown(name)}, as another metric is: give it another name.")


def evaluate(
    terms: Mapping[str, LossTerm], z: Float[Array, "n d"], batch: Any, keys: Key[Array, "n"]
) -> dict[str, Float[Array, "*n"]]:
    """Returns each term by its name. Raises UserError for one that is neither a number a sample nor one for all."""
    values = {}
    for name, term in terms.items():
        number = zlib.crc32(name.encode())  # so that no term draws what another one or the objective does
        values[name] = term(z, batch, jax.vmap(jax.random.fold_in, (0, None))(keys, number))
        shape = jax.numpy.shape(values[name])
        if shape not in ((), (len(z),)):
            raise UserError(f"The loss term {shown(name)} is of shape {shape}: it must be {(len(z),)}, or one number.")
    return values
