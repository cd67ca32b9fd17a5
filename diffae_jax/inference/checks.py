"""What the methods of `DiffAE` are given beside images and codes, checked before any work."""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from diffae_jax.config import check_sampler, check_seed
from diffae_jax.diffusion.samplers import SAMPLERS, Sampler
from diffae_jax.runtime.arrays import is_traced, is_tracing, refuse_traced
from diffae_jax.runtime.errors import UserError, shown

MAX_NUMBER = 2**31 - 1  # of an image that is drawn


def as_sampler(sampler: Any) -> Sampler:
    """Returns a sampler that is given itself or by its name. Raises UserError for a name that there is not."""
    if isinstance(sampler, Sampler):
        return sampler
    check_sampler(sampler)
    return SAMPLERS[sampler]


def check_seed_or_traced(seed: Any) -> None:
    """Raises UserError for a seed that the random generator does not take; of a traced one its value is not known."""
    if isinstance(seed, jax.Array) and (seed.shape or not jnp.issubdtype(seed.dtype, jnp.integer)):
        raise UserError(f"The seed must be one whole number, not {seed.dtype} of shape {seed.shape}.")
    if not is_traced(seed):
        check_seed(int(seed) if isinstance(seed, jax.Array) else seed)


def refuse_tracing(method: str, *values: Any, instead: str) -> None:
    """Raises UserError within a transformation of JAX, for a method that works on the host."""
    if is_traced(*jax.tree.leaves(values)) or is_tracing():
        raise UserError(f"{method} works on the host: call it outside of jit, grad and vmap, {instead}.")


def numbers_of_images(first: int, count: int) -> Int[np.ndarray, "n"]:
    """Returns the numbers of so many images. Raises UserError for a first one that there is not."""
    refuse_traced("The number of the first image", first)
    if not (isinstance(first, numbers.Integral) and 0 <= first <= MAX_NUMBER - count):
        raise UserError(f"The first image has a number from 0 to {MAX_NUMBER:,}, not {shown(first)}.")
    return np.arange(first, first + count)


def check_count(what: str, count: int) -> None:
    """Raises UserError unless something is to be made at least once."""
    refuse_traced(f"How often a {what} is made", count)
    if not (isinstance(count, numbers.Integral) and count >= 1):
        raise UserError(f"At least one {what} has to be made, not {shown(count)}.")
