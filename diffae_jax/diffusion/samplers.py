"""Samplers: methods that turn x_T into an image. Each is a `lax.scan` over coefficients.

To add a sampler, define a `Sampler` and add it to `SAMPLERS`.
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

Rows = Any  # a NamedTuple of arrays [steps, ...] in the order of the steps, with a field `t`; `step` gets one row


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A method that moves x from one time step to the next.

    It is frozen and hashable, so it can be a static argument of a compiled function. The loop
    carries a tuple: first x_t, then anything that a multistep method needs from earlier steps.

    Attributes:
        grid: A function (abar of all time steps [1000], number of steps) -> the coefficients of
            each step, as a NamedTuple of arrays [steps, ...] with a field `t`.
        init: A function x -> the carried tuple at the start.
        step: A function (predict, carried tuple, one row of the grid) -> (new carried tuple,
            predicted x_0). `predict` is the result of `Process.predictor`.
    """

    grid: Callable[[Float64[np.ndarray, "1000"], int], Rows]
    init: Callable[[Array], tuple]
    step: Callable[[Predict, tuple, Rows], tuple[tuple, Array]]


def walk(sampler: Sampler, predict: Predict, x: Float[Array, "n *shape"], rows: Rows, *, remat: bool = False) -> Array:
    """Runs all steps of a sampler.

    Args:
        sampler: The sampler.
        predict: A function (x_t, t, abar) -> (x_0, eps): see `Process.predictor`.
        x: The array at the first step, [N, *shape].
        rows: The coefficients of all steps: the result of `sampler.grid`.
        remat: Whether to recompute steps in the backward pass. The memory that a gradient
            needs then grows with the square root of the number of steps, at the price of two more
            forward passes.

    Returns:
        The array after the last step, [N, *shape].
    """

    def step(carried, row):
        return sampler.step(predict, carried, row)[0], None

    loop = _checkpointed_scan if remat else lax.scan
    return loop(step, sampler.init(x), rows)[0][0]


def walk_with_progress(
    sampler: Sampler, predict: Predict, x: Float[Array, "n *shape"], rows: Rows
) -> Float[Array, "steps n *shape"]:
    """Runs all steps of a sampler and returns the x_0 that each step predicts (Fig. 6).

    Args:
        sampler: The sampler.
        predict: A function (x_t, t, abar) -> (x_0, eps): see `Process.predictor`.
        x: The array at the first step, [N, *shape].
        rows: The coefficients of all steps: the result of `sampler.grid`.

    Returns:
        The predicted x_0 of each step, [steps, N, *shape].
    """
    return lax.scan(lambda carried, row: sampler.step(predict, carried, row), sampler.init(x), rows)[1]


def _checkpointed_scan(step: Callable, carried: tuple, rows: Rows) -> tuple[tuple, None]:
    """Runs a scan whose backward pass stores x at about 2 sqrt(T) of T steps.

    The steps are grouped into about sqrt(T) segments of sqrt(T) steps. The forward pass stores x
    at the start of each segment. The backward pass recomputes one segment at a time and stores x
    at its steps. Each step therefore runs three times. If sqrt(T) does not divide T, the first
    segment is shorter. Only the final carried tuple is returned.
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


# DDIM (Eq. 1), and its inversion (Eq. 8).


class DDIMRows(NamedTuple):
    """Coefficients of DDIM steps.

    Attributes:
        t: The time step, given to the network.
        abar: The cumulative alpha at t.
        abar_to: The cumulative alpha after the step.
    """

    t: Int[Array, "steps"]
    abar: Float[Array, "steps"]
    abar_to: Float[Array, "steps"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DDIMGrid:
    """The time steps of DDIM in ascending order, with abar at each step and at its neighbors.

    Decoding ends at abar = 1, inversion at abar = 0.

    Attributes:
        t: Time steps, int32 [steps].
        abar: The cumulative alpha at t.
        abar_prev: abar one step closer to the image.
        abar_next: abar one step closer to the noise.
    """

    t: Int[Array, "steps"]
    abar: Float[Array, "steps"]
    abar_prev: Float[Array, "steps"]
    abar_next: Float[Array, "steps"]

    @classmethod
    def of(cls, abar: Float64[np.ndarray, "1000"], num_steps: int) -> "DDIMGrid":
        """Creates a grid of evenly spaced time steps.

        Args:
            abar: The cumulative alpha of all time steps, float64 [1000].
            num_steps: Number of steps, 1 to 1000.

        Raises:
            ValueError: num_steps is outside this range.
        """
        t = timesteps(num_steps)
        abar = abar[t]
        ends = np.concatenate([[1.0], abar, [0.0]])
        return cls(jnp.asarray(t), *(jnp.asarray(a, jnp.float32) for a in (abar, ends[:-2], ends[2:])))

    @property
    def to_image(self) -> DDIMRows:
        """The steps from the noise to the image, in this order."""
        return DDIMRows(self.t[::-1], self.abar[::-1], self.abar_prev[::-1])

    @property
    def to_noise(self) -> DDIMRows:
        """The steps from the image to the noise, in this order."""
        return DDIMRows(self.t, self.abar, self.abar_next)


def ddim_step(predict: Predict, carried: tuple[Array], row: DDIMRows) -> tuple[tuple[Array], Array]:
    """Takes one DDIM step: combines the predicted x_0 and noise at abar of the next step.

    Args:
        predict: A function (x_t, t, abar) -> (x_0, eps).
        carried: (x_t,).
        row: The coefficients of the step.

    Returns:
        ((x at the next step,), predicted x_0).

    Source: Eq. 2 with Eq. 4; Eq. 8 for inversion.
    """
    (x,) = carried
    x_0, eps = predict(x, row.t, row.abar)
    return (jnp.sqrt(row.abar_to) * x_0 + jnp.sqrt(1 - row.abar_to) * eps,), x_0


def _carry_x(x: Array) -> tuple[Array]:
    return (x,)


def _to_image(abar: Float64[np.ndarray, "1000"], num_steps: int) -> DDIMRows:
    return DDIMGrid.of(abar, num_steps).to_image


def _to_noise(abar: Float64[np.ndarray, "1000"], num_steps: int) -> DDIMRows:
    return DDIMGrid.of(abar, num_steps).to_noise


DDIM = Sampler(_to_image, _carry_x, ddim_step)
DDIM_INVERSION = Sampler(_to_noise, _carry_x, ddim_step)
SAMPLERS = {"ddim": DDIM}


def ddim_grid(schedule: str, num_steps: int) -> DDIMGrid:
    """Creates the DDIM grid of a noise schedule.

    Args:
        schedule: Name of the schedule: "linear", "constant" or "cosine".
        num_steps: Number of steps, 1 to 1000. If it does not divide 1000, the spacing is rounded.

    Returns:
        The grid.

    Raises:
        ValueError: num_steps is outside this range.
    """
    return DDIMGrid.of(Process(schedule).abar, num_steps)


def ddim_decode(
    eps_fn: Callable[[Array, Array], Array],
    x_T: Float[Array, "n *shape"],
    grid: DDIMGrid,
    clip: bool = True,
    remat: bool = False,
) -> Float[Array, "n *shape"]:
    """Decodes stochastic codes to images with DDIM.

    The function is differentiable with respect to x_T and to values that eps_fn uses.

    Args:
        eps_fn: Predicts the noise: a function (x_t [N, *shape], t []) -> eps [N, *shape].
        x_T: Stochastic codes, [N, *shape].
        grid: The time steps: see `ddim_grid`.
        clip: Whether to clip each predicted x_0 to [-1, 1]. True for images, False for z.
        remat: Whether to save memory in the backward pass: see `walk`.

    Returns:
        The images, [N, *shape].

    Source: Eq. 1.
    """
    return walk(DDIM, Process().predictor(eps_fn, clip), x_T, grid.to_image, remat=remat)


def ddim_encode(
    eps_fn: Callable[[Array, Array], Array], x_0: Float[Array, "n *shape"], grid: DDIMGrid, clip: bool = True
) -> Float[Array, "n *shape"]:
    """Inverts images: computes the codes x_T that decode to them. Inversion ends at abar = 0.

    Args:
        eps_fn: Predicts the noise: a function (x_t [N, *shape], t []) -> eps [N, *shape].
        x_0: Images in [-1, 1], [N, *shape].
        grid: The time steps: see `ddim_grid`.
        clip: Whether to clip each predicted x_0 to [-1, 1]. True for images, False for z.

    Returns:
        The stochastic codes x_T, [N, *shape].

    Source: Eq. 8.
    """
    return walk(DDIM_INVERSION, Process().predictor(eps_fn, clip), x_0, grid.to_noise)
