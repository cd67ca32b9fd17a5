"""Operations with a gradient of their own, where the compiler's takes too much memory traffic."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

NUM_GROUPS = 32  # groups of each group normalization, as in the official networks
EPSILON = 1e-5


def group_statistics(
    h: Float[Array, "n *spatial c"],
) -> tuple[Float[Array, "n c"], Float[Array, "n c"]]:
    """Returns mean and 1 / standard deviation of the group of each channel, float32.

    They are computed in one pass over the input. The difference mean(h^2) - mean(h)^2 loses
    precision if the mean is large. A typical value of the group, its mean at the first position,
    is therefore subtracted first.
    """
    n, channels = h.shape[0], h.shape[-1]
    over_space = tuple(range(1, h.ndim - 1))
    h = h.astype(jnp.float32)
    typical = lax.stop_gradient(group_mean(h.reshape(n, -1, channels)[:, 0]))
    offset = h - everywhere(typical, h)
    # together, because each of these tiny operations costs as much as a large one to start
    mean, square = group_mean(jnp.stack([offset.mean(over_space), jnp.square(offset).mean(over_space)]))
    variance = square - jnp.square(mean)
    return typical + mean, lax.rsqrt(jnp.maximum(variance, 0) + EPSILON)


def group_mean(values: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
    """Returns for each channel the mean over the channels of its group."""
    means = values.reshape(*values.shape[:-1], NUM_GROUPS, -1).mean(-1)
    return jnp.repeat(means, values.shape[-1] // NUM_GROUPS, axis=-1)


def everywhere(values: Float[Array, "n c"], h: Float[Array, "n *spatial c"]) -> Float[Array, "n *one c"]:
    """Adds spatial axes to values per channel, for arithmetic with h."""
    return values[(slice(None), *(None,) * (h.ndim - 2), slice(None))]


@jax.custom_vjp
def norm_silu(
    h: Float[Array, "n *spatial c"], scale: Float[Array, "n c"], shift: Float[Array, "n c"]
) -> Float[Array, "n *spatial c"]:
    """Returns silu(GroupNorm(h) * scale + shift) in the type of h, computed in float32.

    The gradient keeps h alone of all arrays of its size.
    """
    return _forward(h, scale, shift)[0]


def _forward(h, scale, shift):
    mean, inverse = group_statistics(h)
    a = inverse * scale
    u = h * everywhere(a, h) + everywhere(shift - mean * a, h)
    return (u * jax.nn.sigmoid(u)).astype(h.dtype), (h, scale, shift, mean, inverse)


def _backward(kept, gradient):
    """Takes two passes on a CPU. For a GPU, the compiler's gradient moves 4 % fewer bytes."""
    return lax.platform_dependent(*kept, gradient, cpu=_two_passes, default=_derived)


def _derived(h, scale, shift, mean, inverse, gradient):
    del mean, inverse
    return jax.vjp(lambda *inputs: _forward(*inputs)[0], h, scale, shift)[1](gradient)


def _two_passes(h, scale, shift, mean, inverse, gradient):
    """Reads h and gradient for two sums per channel, and then for the result.

    The compiler for CPUs instead puts the derivatives of up to 46 arrays into one loop, and
    computes them again for each use.
    """
    over_space = tuple(range(1, h.ndim - 1))
    normalized = (h - everywhere(mean, h)) * everywhere(inverse, h)
    u = normalized * everywhere(scale, h) + everywhere(shift, h)
    sigmoid = jax.nn.sigmoid(u)
    of_u = gradient * (sigmoid * (1 + u * (1 - sigmoid)))
    of_shift, of_scale = of_u.sum(over_space), (of_u * normalized).sum(over_space)
    # the result depends neither on the mean of a group nor on the scale of its values
    size = h.size // (h.shape[0] * h.shape[-1])
    along_one, along_h = group_mean(jnp.stack([of_shift, of_scale]) * scale / size)
    of_h = of_u * everywhere(scale, h) - everywhere(along_one, h) - normalized * everywhere(along_h, h)
    return (of_h * everywhere(inverse, h)).astype(h.dtype), of_scale, of_shift


norm_silu.defvjp(_forward, _backward)
