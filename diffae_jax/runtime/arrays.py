"""NumPy and JAX arrays, and checks whether JAX is tracing them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.process import forbid_forks

AnyArray = np.ndarray | jax.Array  # a host array, or one that JAX traces


def is_traced(*values: Any) -> bool:
    """Returns whether any of the values is a tracer: JAX has its shape and type, but no data."""
    return any(isinstance(value, jax.core.Tracer) for value in values)


def is_tracing() -> bool:
    """Returns whether JAX is tracing the current code, as in `jax.jit` or a `lax.scan` body."""
    forbid_forks()
    return is_traced(jnp.zeros(()) + 0)


def to_host(array: AnyArray) -> AnyArray:
    """Converts an array to NumPy, unless it is traced."""
    return array if is_traced(array) else np.asarray(array)


def refuse_traced(name: str, value: Any) -> None:
    """Raises UserError if a value is traced, although it must be known at compile time."""
    if is_traced(value):
        raise UserError(
            f"{name} must be known before JAX compiles, but is traced: bind its value with functools.partial, or list "
            f"its argument in static_argnames of jax.jit."
        )
