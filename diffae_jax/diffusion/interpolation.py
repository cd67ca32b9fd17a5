"""Interpolation between two latent codes or two stochastic codes (Sec. 5.2)."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def lerp(a: Float[Array, "d"], b: Float[Array, "d"], weights: Float[Array, "t"]) -> Float[Array, "t d"]:
    """Interpolates linearly between two vectors, such as latent codes z.

    Args:
        a: The vector at weight 0, [D].
        b: The vector at weight 1, [D].
        weights: Positions on the line, [T]; usually in [0, 1].

    Returns:
        The points on the line, [T, D].

    Source: Sec. 5.2.
    """
    weights = weights[:, None]
    return (1 - weights) * a + weights * b


def slerp(a: Float[Array, "*shape"], b: Float[Array, "*shape"], weights: Float[Array, "t"]) -> Float[Array, "t *shape"]:
    """Interpolates spherically between two stochastic codes x_T, which keeps their norm.

    The angle is computed once, over all elements. If a and b are parallel, the path is a straight
    line.

    Args:
        a: The array at weight 0, [*shape].
        b: The array at weight 1, [*shape].
        weights: Positions on the arc, [T]; usually in [0, 1].

    Returns:
        The points on the arc, [T, *shape].

    Source: Sec. 5.2.
    """
    cosine = jnp.sum(a * b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b))
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    parallel = jnp.sin(angle) < 1e-6
    sine = jnp.where(parallel, 1.0, jnp.sin(angle))
    weights = weights.reshape(-1, *(1,) * a.ndim)
    weight_a = jnp.where(parallel, 1 - weights, jnp.sin((1 - weights) * angle) / sine)
    weight_b = jnp.where(parallel, weights, jnp.sin(weights * angle) / sine)
    return weight_a * a + weight_b * b
