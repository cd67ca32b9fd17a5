"""DDIM from noise to image (Eq. 1) and back (Eq. 8), as scans over a grid of steps."""

import math
from collections.abc import Callable

import jax
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


def _ddim(
    eps_fn: EpsFn,
    x: Array,
    t: Array,
    abar: Array,
    abar_to: Array,
    *,
    clip: bool,
    reverse: bool,
    remat: bool = False,
    progress: bool = False,
) -> tuple[Array, Array | None]:
    """Returns where the loop ends and, with `progress`, the predicted x_0 of every step, in the order of the grid."""

    def step(x, at):
        t, abar, abar_to = at
        x_0, eps = predict_x_0(x, eps_fn(x, t), abar, clip)
        return jnp.sqrt(abar_to) * x_0 + jnp.sqrt(1 - abar_to) * eps, x_0 if progress else None

    loop = _checkpointed_scan if remat else lax.scan
    return loop(step, x, (t, abar, abar_to), reverse=reverse)


def _checkpointed_scan(step: Callable, x: Array, steps: tuple[Array, ...], *, reverse: bool) -> tuple[Array, None]:
    """A scan whose backward pass keeps x at some 2 sqrt(T) of T steps, and computes each step a second and third time.

    Steps are grouped into sqrt(T) segments of sqrt(T) steps: the pass over the segments keeps x at the start of each,
    and that within one, made anew when it is needed, x at each of its steps. Steps left over, the last of the grid,
    are a segment of their own. Only where the scan ends is returned.
    """
    num_steps = len(steps[0])
    length = math.isqrt(num_steps)
    whole = num_steps - num_steps % length

    @jax.checkpoint
    def segment(x, steps):
        return lax.scan(jax.checkpoint(step), x, steps, reverse=reverse)

    def segments(x):
        grouped = jax.tree.map(lambda a: a[:whole].reshape(-1, length), steps)
        return lax.scan(segment, x, grouped, reverse=reverse)[0]

    def rest(x):
        return segment(x, jax.tree.map(lambda a: a[whole:], steps))[0] if whole < num_steps else x

    return (segments(rest(x)) if reverse else rest(segments(x))), None


def ddim_decode(
    eps_fn: EpsFn, x_T: Float[Array, "n *shape"], grid: DDIMGrid, clip: bool = True, remat: bool = False
) -> Float[Array, "n *shape"]:
    """Decodes noise maps to images (Eq. 1).

    `clip`: limit every predicted x_0 to [-1, 1] (images, not latents). `remat`: let the memory of a gradient grow with
    the square root of the steps, for two more passes through the network.
    """
    return _ddim(eps_fn, x_T, grid.t, grid.abar, grid.abar_prev, clip=clip, reverse=True, remat=remat)[0]


def ddim_progress(
    eps_fn: EpsFn, x_T: Float[Array, "n *shape"], grid: DDIMGrid, clip: bool = True
) -> Float[Array, "steps n *shape"]:
    """Returns the x_0 that every step of decoding predicts, from the first (t = T) to the last, the image (Fig. 6)."""
    _, x_0 = _ddim(eps_fn, x_T, grid.t, grid.abar, grid.abar_prev, clip=clip, reverse=True, progress=True)
    return x_0[::-1]


def ddim_encode(
    eps_fn: EpsFn, x_0: Float[Array, "n *shape"], grid: DDIMGrid, clip: bool = True
) -> Float[Array, "n *shape"]:
    """Encodes images to the noise maps x_T that decode to them (Eq. 8), the last step reaching abar = 0."""
    return _ddim(eps_fn, x_0, grid.t, grid.abar, grid.abar_next, clip=clip, reverse=False)[0]
