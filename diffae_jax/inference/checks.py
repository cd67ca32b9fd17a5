"""Checks of the arguments of `DiffAE` other than images and codes, before any work starts."""

import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from diffae_jax.config import check_seed
from diffae_jax.data.latents import LatentStatistics
from diffae_jax.models.functional import Params
from diffae_jax.probes import ClassProbe, Probe
from diffae_jax.runtime.arrays import is_traced, is_tracing, refuse_traced
from diffae_jax.runtime.errors import UserError, shown

MAX_INDEX = 2**31 - 1  # the largest index of a drawn image


def check_parts(
    config: ConfigDict,
    params: Params,
    prior: Params | None,
    statistics: LatentStatistics | None,
    probes: Mapping[str, Probe | ClassProbe],
) -> None:
    """Raises UserError if the parts of a model do not fit together or its weights are traced."""
    if is_traced(*jax.tree.leaves((params, prior))):
        raise UserError(
            "The weights of DiffAE cannot be traced. To transform a function of the weights, call the functions of "
            "diffae_jax.inference.programs, which take the weights as an argument."
        )
    if prior is not None and statistics is None:
        raise UserError("A prior works on normalized z. Give the mean and standard deviation of z as `statistics`.")
    sizes = [("the statistics have", len(statistics.mean))] if statistics else []
    sizes += [(f"probe {shown(probe.name)} has", probe.z_dim) for probe in probes.values()]
    if sizes and config.model.z_dim is None:
        raise UserError(f"{shown(config.name)} is a DDIM baseline, which has no z. Leave out statistics and probes.")
    for part, size in sizes:
        if size != config.model.z_dim:
            raise UserError(f"The z of this model has {config.model.z_dim} dimensions, but {part} {size}.")


def check_seed_or_traced(seed: Any) -> None:
    """Raises UserError if the random generator does not accept a seed.

    Traced values are not checked.
    """
    if isinstance(seed, jax.Array) and (seed.shape or not jnp.issubdtype(seed.dtype, jnp.integer)):
        raise UserError(f"The seed must be one whole number, not {seed.dtype} of shape {seed.shape}.")
    if not is_traced(seed):
        check_seed(int(seed) if isinstance(seed, jax.Array) else seed)


def refuse_tracing(method: str, *values: Any, instead: str) -> None:
    """Raises UserError inside a JAX transformation, for a method that works on the host."""
    if is_traced(*jax.tree.leaves(values)) or is_tracing():
        raise UserError(f"{method} works on the host. Call it outside jit, grad and vmap, {instead}.")


def indices_of_images(first: int, count: int) -> Int[np.ndarray, "n"]:
    """Returns the indices of `count` images from `first` on.

    Raises UserError if they are out of range.
    """
    refuse_traced("The index of the first image", first)
    if not (isinstance(first, numbers.Integral) and 0 <= first <= MAX_INDEX - count):
        raise UserError(f"The index of the first image must be from 0 to {MAX_INDEX - count:,}, not {shown(first)}.")
    return np.arange(first, first + count)


def check_count(item: str, count: int) -> None:
    """Raises UserError unless at least one item is requested."""
    plural = "tries" if item == "try" else f"{item}s"
    refuse_traced(f"The number of {plural}", count)
    if not (isinstance(count, numbers.Integral) and count >= 1):
        raise UserError(f"The number of {plural} must be at least 1, not {shown(count)}.")
