"""NumPy and JAX arrays, and checks whether JAX is tracing them."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffae_jax.runtime.errors import UserError, shown
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


def plain(value: Any) -> Any:
    """Returns a scalar of NumPy, JAX, PyTorch or pandas as a Python value, and others unchanged.

    A missing value of pandas becomes None. It can be neither compared nor converted.
    """
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    try:
        return value.item() if hasattr(value, "item") else value
    except (ValueError, TypeError, RuntimeError):  # an array of several values
        return value


def is_finite(number: Any) -> bool:
    """Returns whether a real number is finite as a float. `math.isfinite` raises for 10**400."""
    return abs(number) <= sys.float_info.max


def plain_column(name: str, values: Iterable[Any]) -> list[Any]:
    """Returns a column of labels as Python values.

    Args:
        name: The name of the label, for messages.
        values: A value for each image: a list, an array [N] or [N, 1], a tensor, or a column of a
            table.

    Returns:
        The values. Missing ones are None or NaN.

    Raises:
        UserError: These are not N values.
    """
    if isinstance(values, str | Mapping):
        raise UserError(f"The labels of {shown(name)} are {shown(values)}: give a list with one value for each image.")
    if not hasattr(values, "__array__"):
        return list(map(plain, values))
    array = values if isinstance(values, np.ma.MaskedArray) else np.asarray(values)  # lists of it have None
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise UserError(
            f"The labels of {shown(name)} have the shape {array.shape}: give one value for each image, such as a "
            f"single column."
        )
    return list(map(plain, array.tolist()))
