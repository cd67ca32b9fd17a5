"""The training objective (Eq. 6). Noise and time steps are arguments, so it is deterministic."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffae_jax.diffusion.schedule import NUM_TIMESTEPS

EpsFn = Callable[[Array, Array], Array]


def over_samples(values: Float[Array, "n"], like: Float[Array, "n *shape"]) -> Array:
    """Shapes one value a sample so that it broadcasts against `like`."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def draw_t_and_eps(
    keys: Key[Array, "n"], x_0: Float[Array, "n *shape"]
) -> tuple[Int[Array, "n"], Float[Array, "n *shape"]]:
    """Draws what the objective of each sample is measured at, from a key of its own: t uniformly and eps ~ N(0, I)."""
    t_keys, eps_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    t = jax.vmap(lambda key: jax.random.randint(key, (), 0, NUM_TIMESTEPS, jnp.int32))(t_keys)
    return t, jax.vmap(lambda key: jax.random.normal(key, x_0.shape[1:], jnp.float32))(eps_keys)


def q_sample(
    x_0: Float[Array, "n *shape"], eps: Float[Array, "n *shape"], abar: Float[Array, "n"]
) -> Float[Array, "n *shape"]:
    """x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps (Sec. 2), with abar of each sample's time step."""
    abar = over_samples(abar, x_0)
    return jnp.sqrt(abar) * x_0 + jnp.sqrt(1 - abar) * eps


def noise_error(
    eps_fn: EpsFn,
    x_0: Float[Array, "n *shape"],
    t: Int[Array, "n"],
    eps: Float[Array, "n *shape"],
    abar: Float[Array, "1000"],
) -> Float[Array, "n *shape"]:
    """eps_fn(x_t, t) - eps, with `abar` of all steps."""
    return eps_fn(q_sample(x_0, eps, abar[t]), t) - eps


def l_simple(
    eps_fn: EpsFn,
    x_0: Float[Array, "n *shape"],
    t: Int[Array, "n"],
    eps: Float[Array, "n *shape"],
    abar: Float[Array, "1000"],
) -> Float[Array, "n"]:
    """L_simple of each sample (Eq. 6): the mean over its elements of the squared error of the noise."""
    return jnp.square(noise_error(eps_fn, x_0, t, eps, abar)).mean(range(1, x_0.ndim))


def l_latent(
    eps_fn: EpsFn,
    z_0: Float[Array, "n d"],
    t: Int[Array, "n"],
    eps: Float[Array, "n d"],
    abar: Float[Array, "1000"],
) -> Float[Array, "n"]:
    """L_latent of each code (Eq. 9): the mean over its dimensions of the absolute error of the noise."""
    return jnp.abs(noise_error(eps_fn, z_0, t, eps, abar)).mean(-1)
