"""Paths between two codes (Sec. 5.2)."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def lerp(a: Float[Array, "d"], b: Float[Array, "d"], weights: Float[Array, "t"]) -> Float[Array, "t d"]:
    """Points on the straight line from a (weight 0) to b (weight 1): the path of z."""
    weights = weights[:, None]
    return (1 - weights) * a + weights * b


def slerp(a: Float[Array, "*shape"], b: Float[Array, "*shape"], weights: Float[Array, "t"]) -> Float[Array, "t *shape"]:
    """Points on the arc from a (weight 0) to b (weight 1): the path of x_T, whose norm stays that of noise.

    One angle for the pair, over all elements. Where a and b are parallel it is the straight line.
    """
    cosine = jnp.sum(a * b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b))
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    parallel = jnp.sin(angle) < 1e-6
    sine = jnp.where(parallel, 1.0, jnp.sin(angle))
    weights = weights.reshape(-1, *(1,) * a.ndim)
    of_a = jnp.where(parallel, 1 - weights, jnp.sin((1 - weights) * angle) / sine)
    of_b = jnp.where(parallel, weights, jnp.sin(weights * angle) / sine)
    return of_a * a + of_b * b
