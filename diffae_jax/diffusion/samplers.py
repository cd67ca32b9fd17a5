"""DDIM from noise to image (Eq. 1) and back (Eq. 8), as scans over a grid of steps."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from diffae_jax.diffusion.schedule import DDIMGrid

EpsFn = Callable[[Array, Array], Array]  # (x_t [N, ...], t []) -> eps [N, ...]


def predict_x_0(x_t: Array, eps: Array, abar: Array, clip: bool) -> tuple[Array, Array]:
    """f_theta of Eq. 5, and the noise that goes with it.

    With `clip`, x_0 is limited to [-1, 1] and the noise is the one that leads from the limited x_0 to x_t. It is
    written as a correction of eps, not as a quotient of small differences: near abar = 1 that would cost digits.
    """
    x_0 = (x_t - jnp.sqrt(1 - abar) * eps) / jnp.sqrt(abar)
    if not clip:
        return x_0, eps
    limited = jnp.clip(x_0, -1, 1)
    return limited, eps + jnp.sqrt(abar / (1 - abar)) * (x_0 - limited)


def _ddim(eps_fn: EpsFn, x: Array, t: Array, abar: Array, abar_to: Array, *, clip: bool, reverse: bool) -> Array:
    def step(x, at):
        t, abar, abar_to = at
        x_0, eps = predict_x_0(x, eps_fn(x, t), abar, clip)
        return jnp.sqrt(abar_to) * x_0 + jnp.sqrt(1 - abar_to) * eps, None

    return lax.scan(step, x, (t, abar, abar_to), reverse=reverse)[0]


def ddim_decode(
    eps_fn: EpsFn, x_T: Float[Array, "n *shape"], grid: DDIMGrid, clip: bool = True
) -> Float[Array, "n *shape"]:
    """Decodes noise maps to images (Eq. 1). `clip`: limit every predicted x_0 to [-1, 1] (images, not latents)."""
    return _ddim(eps_fn, x_T, grid.t, grid.abar, grid.abar_prev, clip=clip, reverse=True)


def ddim_encode(
    eps_fn: EpsFn, x_0: Float[Array, "n *shape"], grid: DDIMGrid, clip: bool = True
) -> Float[Array, "n *shape"]:
    """Encodes images to the noise maps x_T that decode to them (Eq. 8), the last step reaching abar = 0."""
    return _ddim(eps_fn, x_0, grid.t, grid.abar, grid.abar_next, clip=clip, reverse=False)
