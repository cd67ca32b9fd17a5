"""Arrays of numpy and of JAX, and whether a transformation of JAX is tracing them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.process import forbid_forks

AnyArray = np.ndarray | jax.Array  # of the host, or traced by a transformation


def is_traced(*values: Any) -> bool:
    """Whether any of these values is known to JAX by its shape and type alone."""
    return any(isinstance(value, jax.core.Tracer) for value in values)


def is_tracing() -> bool:
    """Whether even constants give traced results here, as within `jax.jit` and the body of a `lax.scan`."""
    forbid_forks()
    return is_traced(jnp.zeros(()) + 0)


def to_host(array: AnyArray) -> AnyArray:
    """Returns an array as one of numpy, unless it is traced."""
    return array if is_traced(array) else np.asarray(array)


def refuse_traced(what: str, value: Any) -> None:
    """Raises UserError for a traced value where the program to compile depends on the value itself."""
    if is_traced(value):
        raise UserError(
            f"{what} must be known before JAX compiles, and is traced: fix its value with functools.partial, or name "
            f"its argument in static_argnames of jax.jit."
        )
