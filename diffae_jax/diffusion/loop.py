"""What a sampler is, and the loop that runs it: a `lax.scan` over coefficients."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float64, Int, Key

from diffae_jax.diffusion.grids import GRIDS
from diffae_jax.diffusion.process import Predict

Rows = Any  # a NamedTuple of arrays [steps, ...] in the order of the steps, with a field `t`; `step` gets one row


def _once_a_step(num_steps: int) -> int:
    return num_steps


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A method that moves x from one time step to the next.

    It is frozen and hashable, so it can be a static argument of a compiled function. The loop
    carries a tuple: first x_t, then anything that a method needs from earlier steps.

    Attributes:
        coefficients: A function (abar of all time steps [1000], ascending time steps [steps]) ->
            the coefficients of each step, as a NamedTuple of arrays [steps, ...] in the order of
            the steps, with a field `t`.
        init: A function (x, keys) -> the carried tuple at the start. `keys` has one random key
            per sample, [N]; None if the sampler is not `stochastic`.
        step: A function (predict, carried tuple, one row of the coefficients) -> (new carried
            tuple, predicted x_0). `predict` is the result of `Process.predictor`.
        grid: The name of its time steps in `GRIDS`.
        poor_grids: Names of grids that do not suit the sampler.
        stochastic: Whether the steps add random noise.
        num_calls: A function: number of steps -> number of network calls.
    """

    coefficients: Callable[[Float64[np.ndarray, "1000"], Int[np.ndarray, "steps"]], Rows]
    init: Callable[[Array, Array | None], tuple]
    step: Callable[[Predict, tuple, Rows], tuple[tuple, Array]]
    grid: str = "even"
    poor_grids: tuple[str, ...] = ()
    stochastic: bool = False
    num_calls: Callable[[int], int] = _once_a_step

    def timesteps(self, abar: Float64[np.ndarray, "1000"], num_steps: int) -> Int[np.ndarray, "steps"]:
        """Returns the time steps of the sampler's grid, ascending, for which it calls the network.

        Args:
            abar: The cumulative alpha of all time steps, float64 [1000].
            num_steps: Number of steps, 1 to 1000.

        Raises:
            ValueError: num_steps is outside this range.
        """
        return GRIDS[self.grid](abar, num_steps)

    def rows(self, abar: Float64[np.ndarray, "1000"], num_steps: int) -> Rows:
        """Returns the coefficients of all steps on the sampler's grid.

        Args:
            abar: The cumulative alpha of all time steps, float64 [1000].
            num_steps: Number of steps, 1 to 1000.

        Raises:
            ValueError: num_steps is outside this range.
        """
        return self.coefficients(abar, self.timesteps(abar, num_steps))


def walk(
    sampler: Sampler,
    predict: Predict,
    x: Float[Array, "n *shape"],
    rows: Rows,
    keys: Key[Array, "n"] | None = None,
    *,
    remat: bool = False,
) -> tuple:
    """Runs all steps of a sampler.

    Args:
        sampler: The sampler.
        predict: A function (x_t, t, abar) -> (x_0, eps): see `Process.predictor`.
        x: The array at the first step, [N, *shape].
        rows: The coefficients of all steps: the result of `Sampler.rows`.
        keys: One random key per sample, [N]; only needed by a stochastic sampler.
        remat: Whether to recompute steps in the backward pass. The memory that a gradient
            needs then grows with the square root of the number of steps, at the price of two more
            forward passes.

    Returns:
        The carried tuple after the last step: first x, [N, *shape].
    """

    def step(carried, row):
        return sampler.step(predict, carried, row)[0], None

    loop = _checkpointed_scan if remat else lax.scan
    return loop(step, sampler.init(x, keys), rows)[0]


def walk_with_progress(
    sampler: Sampler,
    predict: Predict,
    x: Float[Array, "n *shape"],
    rows: Rows,
    keys: Key[Array, "n"] | None = None,
) -> Float[Array, "steps n *shape"]:
    """Runs all steps of a sampler and returns the x_0 that each step predicts (Fig. 6).

    Args:
        sampler: The sampler.
        predict: A function (x_t, t, abar) -> (x_0, eps): see `Process.predictor`.
        x: The array at the first step, [N, *shape].
        rows: The coefficients of all steps: the result of `Sampler.rows`.
        keys: One random key per sample, [N]; only needed by a stochastic sampler.

    Returns:
        The predicted x_0 of each step, [steps, N, *shape].
    """
    return lax.scan(lambda carried, row: sampler.step(predict, carried, row), sampler.init(x, keys), rows)[1]


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
