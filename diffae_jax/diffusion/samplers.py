"""Samplers: methods from x_T to an image, each one `lax.scan` of (init, step) over a grid of coefficients.

A new sampler is a `Sampler` and one entry of `SAMPLERS`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float64, Int

from diffae_jax.diffusion.process import Predict, Process
from diffae_jax.diffusion.schedule import timesteps

Rows = Any  # a NamedTuple of arrays [steps, ...] in the order walked, among them `t`; within a step, of one row


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A way from one end of the diffusion to the other. Hashable, so it is a static argument of programs.

    The loop carries a tuple that begins with x_t and may hold more: what a multistep method remembers.
    """

    grid: Callable[[Float64[np.ndarray, "1000"], int], Rows]  # (abar of all time steps, number of steps) -> rows
    init: Callable[[Array], tuple]  # x at the start -> what the loop carries
    step: Callable[[Predict, tuple, Rows], tuple[tuple, Array]]  # -> what it carries next, and the predicted x_0


def walk(sampler: Sampler, predict: Predict, x: Float[Array, "n *shape"], rows: Rows, *, remat: bool = False) -> Array:
    """Returns where the walk ends that starts at x.

    `remat` lets the memory of a gradient grow with the square root of the steps, for two more passes of the network.
    """

    def step(carried, row):
        return sampler.step(predict, carried, row)[0], None

    loop = _checkpointed_scan if remat else lax.scan
    return loop(step, sampler.init(x), rows)[0][0]


def walk_with_progress(
    sampler: Sampler, predict: Predict, x: Float[Array, "n *shape"], rows: Rows
) -> Float[Array, "steps n *shape"]:
    """Returns the x_0 that every step of the walk predicts, from the first to the last (Fig. 6)."""
    return lax.scan(lambda carried, row: sampler.step(predict, carried, row), sampler.init(x), rows)[1]


def _checkpointed_scan(step: Callable, carried: tuple, rows: Rows) -> tuple[tuple, None]:
    """A scan whose backward pass keeps x at some 2 sqrt(T) of T steps, and computes each step a second and third time.

    Steps are grouped into sqrt(T) segments of sqrt(T) steps: the pass over the segments keeps x at the start of each,
    and that within one, made anew when it is needed, x at each of its steps. Steps left over come first, as a segment
    of their own. Only where the scan ends is returned.
    """
    num_steps = len(rows.t)
    length = math.isqrt(num_steps)
    rest = num_steps % length

    @jax.checkpoint
    def segment(carried, rows):
        return lax.scan(jax.checkpoint(step), carried, rows)

    if rest:
        carried, _ = segment(carried, jax.tree.map(lambda a: a[:rest], rows))
    grouped = jax.tree.map(lambda a: a[rest:].reshape(-1, length, *a.shape[1:]), rows)
    return lax.scan(segment, carried, grouped)


# DDIM (Eq. 1), and the same steps the other way (Eq. 8).


class DDIMRows(NamedTuple):
    """Coefficients of DDIM steps: the time step, abar there, and abar where the step leads."""

    t: Int[Array, "steps"]
    abar: Float[Array, "steps"]
    abar_to: Float[Array, "steps"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DDIMGrid:
    """The time steps of a DDIM loop, ascending, with abar at each, one step nearer to the image and one further.

    The last step towards the image ends at abar = 1, the last towards the noise at abar = 0.
    """

    t: Int[Array, "steps"]
    abar: Float[Array, "steps"]
    abar_prev: Float[Array, "steps"]
    abar_next: Float[Array, "steps"]

    @classmethod
    def of(cls, abar: Float64[np.ndarray, "1000"], num_steps: int) -> "DDIMGrid":
        """Returns the grid of evenly spaced time steps. Raises ValueError as `timesteps` does."""
        t = timesteps(num_steps)
        abar = abar[t]
        ends = np.concatenate([[1.0], abar, [0.0]])
        return cls(jnp.asarray(t), *(jnp.asarray(a, jnp.float32) for a in (abar, ends[:-2], ends[2:])))

    @property
    def to_image(self) -> DDIMRows:
        """The steps from the noise to the image."""
        return DDIMRows(self.t[::-1], self.abar[::-1], self.abar_prev[::-1])

    @property
    def to_noise(self) -> DDIMRows:
        """The steps from the image to the noise."""
        return DDIMRows(self.t, self.abar, self.abar_next)


def ddim_step(predict: Predict, carried: tuple[Array], row: DDIMRows) -> tuple[tuple[Array], Array]:
    """Eq. 2 with Eq. 4: to the predicted x_0 and from there, along the predicted noise, to abar of the next step."""
    (x,) = carried
    x_0, eps = predict(x, row.t, row.abar)
    return (jnp.sqrt(row.abar_to) * x_0 + jnp.sqrt(1 - row.abar_to) * eps,), x_0


def _alone(x: Array) -> tuple[Array]:
    return (x,)


def _to_image(abar: Float64[np.ndarray, "1000"], num_steps: int) -> DDIMRows:
    return DDIMGrid.of(abar, num_steps).to_image


def _to_noise(abar: Float64[np.ndarray, "1000"], num_steps: int) -> DDIMRows:
    return DDIMGrid.of(abar, num_steps).to_noise


DDIM = Sampler(_to_image, _alone, ddim_step)
DDIM_INVERSION = Sampler(_to_noise, _alone, ddim_step)
SAMPLERS = {"ddim": DDIM}


def ddim_grid(schedule: str, num_steps: int) -> DDIMGrid:
    """Returns the grid of `num_steps` steps of the named schedule. Raises ValueError as `timesteps` does."""
    return DDIMGrid.of(Process(schedule).abar, num_steps)


def ddim_decode(
    eps_fn: Callable[[Array, Array], Array],  # (x_t [N, ...], t []) -> eps [N, ...]
    x_T: Float[Array, "n *shape"],
    grid: DDIMGrid,
    clip: bool = True,
    remat: bool = False,
) -> Float[Array, "n *shape"]:
    """Decodes noise maps to images (Eq. 1), by a noise predictor.

    `clip` limits every predicted x_0 to [-1, 1] (images, not latents). `remat`: see `walk`.
    """
    return walk(DDIM, Process().predictor(eps_fn, clip), x_T, grid.to_image, remat=remat)


def ddim_encode(
    eps_fn: Callable[[Array, Array], Array], x_0: Float[Array, "n *shape"], grid: DDIMGrid, clip: bool = True
) -> Float[Array, "n *shape"]:
    """Encodes images to the noise maps x_T that decode to them (Eq. 8), the last step reaching abar = 0."""
    return walk(DDIM_INVERSION, Process().predictor(eps_fn, clip), x_0, grid.to_noise)
