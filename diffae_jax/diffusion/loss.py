"""The training loss (Eq. 6, Eq. 9). It is deterministic: noise and time steps are arguments."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffae_jax.diffusion.process import ERRORS, PARAMETERIZATIONS, WEIGHTINGS, Network, Process
from diffae_jax.diffusion.schedule import NUM_TIMESTEPS


def draw_t_and_eps(
    keys: Key[Array, "n"], x_0: Float[Array, "n *shape"]
) -> tuple[Int[Array, "n"], Float[Array, "n *shape"]]:
    """Draws a time step and noise for each sample, from the key of the sample.

    Args:
        keys: One random key per sample, [N].
        x_0: Samples, [N, *shape]; only their shape is used.

    Returns:
        (t, eps): time steps [N], uniform in [0, 1000), and standard normal noise [N, *shape].
    """
    t_keys, eps_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    t = jax.vmap(lambda key: jax.random.randint(key, (), 0, NUM_TIMESTEPS, jnp.int32))(t_keys)
    return t, jax.vmap(lambda key: jax.random.normal(key, x_0.shape[1:], jnp.float32))(eps_keys)


def q_sample(
    x_0: Float[Array, "n *shape"], eps: Float[Array, "n *shape"], abar: Float[Array, "n *ones"]
) -> Float[Array, "n *shape"]:
    """Adds noise: x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps.

    Args:
        x_0: Samples without noise, [N, *shape].
        eps: Standard normal noise, [N, *shape].
        abar: The cumulative alpha at the time step of each sample, in [0, 1], shaped [N, 1, ...,
            1].

    Returns:
        The noisy samples x_t, [N, *shape].

    Source: Sec. 2.
    """
    return jnp.sqrt(abar) * x_0 + jnp.sqrt(1 - abar) * eps


def diffusion_loss(
    process: Process,
    network: Network,
    x_0: Float[Array, "n *shape"],
    t: Int[Array, "n"],
    eps: Float[Array, "n *shape"],
) -> Float[Array, "n"]:
    """Computes the loss of each sample: the weighted mean error of the prediction.

    If the network predicts the noise, this is L_simple for the squared error and L_latent for the
    absolute error.

    Args:
        process: The diffusion process, which defines schedule, target, error and weighting.
        network: A function (x_t [N, *shape], t [N]) -> prediction [N, *shape].
        x_0: Samples, [N, *shape]; images in [-1, 1].
        t: Time steps in [0, 1000), [N].
        eps: Standard normal noise, [N, *shape].

    Returns:
        The loss of each sample, [N].

    Source: Eq. 6 and Eq. 9.
    """
    abar = process.abar_at(t, x_0)
    target = PARAMETERIZATIONS[process.parameterization].target(x_0, eps, abar)
    error = ERRORS[process.error](network(q_sample(x_0, eps, abar), t) - target)
    return (WEIGHTINGS[process.weighting](abar) * error).mean(range(1, x_0.ndim))
