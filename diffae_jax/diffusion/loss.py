"""The training loss (Eq. 6, Eq. 9). Noise and time steps are arguments, so it is deterministic."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffae_jax.diffusion.process import ERRORS, PARAMETERIZATIONS, WEIGHTINGS, Network, Process
from diffae_jax.diffusion.schedule import NUM_TIMESTEPS


def draw_t_and_eps(
    keys: Key[Array, "n"], x_0: Float[Array, "n *shape"]
) -> tuple[Int[Array, "n"], Float[Array, "n *shape"]]:
    """Draws what the loss of each sample is measured at, from a key of its own: t uniformly and eps ~ N(0, I)."""
    t_keys, eps_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    t = jax.vmap(lambda key: jax.random.randint(key, (), 0, NUM_TIMESTEPS, jnp.int32))(t_keys)
    return t, jax.vmap(lambda key: jax.random.normal(key, x_0.shape[1:], jnp.float32))(eps_keys)


def q_sample(
    x_0: Float[Array, "n *shape"], eps: Float[Array, "n *shape"], abar: Float[Array, "n *ones"]
) -> Float[Array, "n *shape"]:
    """x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps (Sec. 2), with abar of each sample's time step."""
    return jnp.sqrt(abar) * x_0 + jnp.sqrt(1 - abar) * eps


def diffusion_loss(
    process: Process,
    network: Network,
    x_0: Float[Array, "n *shape"],
    t: Int[Array, "n"],
    eps: Float[Array, "n *shape"],
) -> Float[Array, "n"]:
    """Returns the loss of each sample: the mean over its elements of the error of what the network is asked for,
    weighted by its time step.

    With the noise as target it is L_simple (Eq. 6) for the squared error and L_latent (Eq. 9) for the absolute one.
    """
    abar = process.abar_at(t, x_0)
    target = PARAMETERIZATIONS[process.parameterization].target(x_0, eps, abar)
    error = ERRORS[process.error](network(q_sample(x_0, eps, abar), t) - target)
    return (WEIGHTINGS[process.weighting](abar) * error).mean(range(1, x_0.ndim))
