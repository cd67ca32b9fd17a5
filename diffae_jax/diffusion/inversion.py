"""Inversion: methods that turn an image into the x_T that decodes to it.

A method is a sampler that moves from the image to the noise. To add one, add it to `INVERSIONS`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from diffae_jax.diffusion.loop import Sampler
from diffae_jax.diffusion.process import Predict
from diffae_jax.diffusion.samplers import (
    DDIM_INVERSION,
    HEUN,
    Abar,
    DDIMGrid,
    DDIMRows,
    HeunRows,
    TimeSteps,
    heun_rows,
    heun_step,
)

MAX_CALLS = 10  # network calls that one step of an exact inversion may take
TOLERANCE = 1e-5  # of x_t, as a root mean square: about ten times the rounding error in float32
STALLED = 3  # calls without a smaller residual after which a step ends, as in lower precisions


class Inversion(NamedTuple):
    """The result of an inversion.

    Attributes:
        x_T: The stochastic codes, [N, *shape].
        num_calls: The network calls that each sample took, [N].
        residual: The root mean square of the largest difference that a step of the decoder leaves
            to the x_t that it should reach, [N]; NaN for methods that do not compute it.
    """

    x_T: Float[Array, "n *shape"]
    num_calls: Int[Array, "n"]
    residual: Float[Array, "n"]


class Method(NamedTuple):
    """A method of inversion.

    Attributes:
        sampler: The steps from the image to the noise.
        decoders: The names of the samplers that decode its x_T, the best one first; empty: all.
    """

    sampler: Sampler
    decoders: tuple[str, ...] = ()


# Exact inversion: each DDIM step is solved for the x_t from which the decoder comes.


class Solution(NamedTuple):
    """The state of `fixed_point`.

    Attributes:
        x: The best solution so far, [N, *shape].
        residual: The root mean square of function(x) - x before the last update of x, [N].
        num_calls: The calls that each sample took, [N].
        since_best: The calls since the best residual, [N].
        point: The next point, [N, *shape].
        value: The function at the previous point, [N, *shape].
        change: value - point at the previous point, [N, *shape].
    """

    x: Array
    residual: Array
    num_calls: Array
    since_best: Array
    point: Array
    value: Array
    change: Array


def fixed_point(
    function: Callable[[Array], Array], x: Float[Array, "n *shape"], *, tolerance: float, max_calls: int
) -> Solution:
    """Solves x = function(x) for each sample, by Anderson acceleration of depth 1.

    A sample is finished when its residual is at most the tolerance, when the residual does not
    shrink any more, or after `max_calls`. Finished samples stay as they are, so a result does not
    depend on the other samples.

    Args:
        function: A function [N, *shape] -> [N, *shape] that acts on each sample alone.
        x: The first guess, [N, *shape].
        tolerance: The residual that is small enough, as a root mean square.
        max_calls: The calls that a sample may take.

    Returns:
        The solution. x has the smallest residual that was found, and has then been moved once
        more.

    Source: Walker and Ni 2011.
    """

    def inner(a: Array, b: Array) -> Array:
        return (a * b).sum(range(1, x.ndim), keepdims=True)

    def is_running(state: Solution) -> Array:
        return (state.residual > tolerance) & (state.num_calls < max_calls) & (state.since_best < STALLED)

    def update(state: Solution) -> Solution:
        value = function(state.point)
        change = value - state.point
        residual = jnp.sqrt(jnp.square(change).mean(range(1, x.ndim)))
        difference = change - state.change
        length = inner(difference, difference)
        weight = jnp.where(length > 0, inner(change, difference) / jnp.where(length > 0, length, 1), 0)
        # the first call has no previous one; a residual that grows a lot ends the extrapolation
        plain = (state.num_calls == 0) | (residual > 2 * state.residual)
        point = value - jnp.where(column(plain), 0, weight) * (value - state.value)
        better = residual < state.residual
        new = Solution(
            jnp.where(column(better), point, state.x),
            jnp.where(better, residual, state.residual),
            state.num_calls + 1,
            jnp.where(better, 0, state.since_best + 1),
            point,
            value,
            change,
        )
        running = is_running(state)
        return jax.tree.map(lambda a, b: jnp.where(running if a.ndim == 1 else column(running), a, b), new, state)

    def column(a: Array) -> Array:
        return a.reshape(-1, *(1,) * (x.ndim - 1))

    count = jnp.zeros(len(x), jnp.int32)
    start = Solution(x, jnp.full(len(x), jnp.inf, x.dtype), count, count, x, x, x)
    return lax.while_loop(lambda state: is_running(state).any(), update, start)


def _exact_coefficients(abar: Abar, t: TimeSteps) -> DDIMRows:
    return jax.tree.map(lambda a: a[::-1], DDIMGrid.of(abar, t).to_image)


class ExactState(NamedTuple):
    """What the loop of an exact inversion carries.

    Attributes:
        x: x_t, [N, *shape].
        eps: The predicted noise there, [N, *shape].
        num_calls: The network calls of each sample so far, [N].
        residual: The largest residual of a step so far, [N].
    """

    x: Array
    eps: Array
    num_calls: Array
    residual: Array


def _exact_init(x: Array, keys: Array | None) -> ExactState:
    return ExactState(x, jnp.zeros_like(x), jnp.zeros(len(x), jnp.int32), jnp.zeros(len(x), x.dtype))


@jax.custom_jvp
def _without_gradient(x: Array) -> Array:
    return x


@_without_gradient.defjvp
def _refuse_gradient(primals: tuple, tangents: tuple) -> tuple:
    raise ValueError("The exact inversion has no gradient. Use the inversion ddim or gaussian.")


@functools.cache  # equal samplers share a compiled function
def exact_inversion(tolerance: float = TOLERANCE, max_calls: int = MAX_CALLS) -> Sampler:
    """Returns the inversion that solves each step of DDIM for the x_t where the step starts.

    The equation is x_t = sqrt(abar / abar_to) x_to + factor * eps(x_t), with the eps of the
    decoder. The first guess takes eps from the previous solution. It has no gradient: the calls
    of a step end when the residual is small enough.

    Args:
        tolerance: The largest difference in a step, as the root mean square of a sample.
        max_calls: The network calls that a step may take.

    Returns:
        The sampler, from the image to the noise. Its loop carries an `ExactState`.

    Source: Eq. 2 with Eq. 4, solved for x_t.
    """

    def step(predict: Predict, carried: ExactState, row: DDIMRows) -> tuple[ExactState, Array]:
        scale = jnp.sqrt(row.abar / row.abar_to)
        factor = jnp.sqrt(1 - row.abar) - scale * jnp.sqrt(1 - row.abar_to)

        def function(x: Array) -> Array:
            return scale * carried.x + factor * predict(x, row.t, row.abar)[1]

        guess = scale * carried.x + factor * carried.eps
        solution = fixed_point(function, guess, tolerance=tolerance, max_calls=max_calls)
        x = _without_gradient(solution.x)
        eps = (x - scale * carried.x) / factor
        num_calls, residual = carried.num_calls + solution.num_calls, jnp.maximum(carried.residual, solution.residual)
        state = ExactState(x, eps, num_calls, residual)
        return state, (x - jnp.sqrt(1 - row.abar) * eps) / jnp.sqrt(row.abar)

    return Sampler(_exact_coefficients, _exact_init, step)


# Gaussian inversion: the image gets the noise of the first time step, so that it is a sample of
# x_t there. Heun then follows the probability flow, which turns such samples into N(0, I).


class GaussianRows(NamedTuple):
    """Coefficients of the steps: x = keep * x + add * noise, then a Heun step.

    Attributes:
        keep: The factor of x.
        add: The factor of the noise; 0 except in the first step.
        heun: The coefficients of the Heun steps.
    """

    keep: Float[Array, "steps"]
    add: Float[Array, "steps"]
    heun: HeunRows

    @property
    def t(self) -> Int[Array, "steps"]:
        """The time step, given to the network."""
        return self.heun.t


def _gaussian_coefficients(abar: Abar, t: TimeSteps) -> GaussianRows:
    """Returns the steps from the first time step to the last one."""
    start, end = (t[:-1], t[1:]) if len(t) > 1 else (t, t)
    is_first = np.arange(len(start)) == 0
    keep, add = (np.where(is_first, np.sqrt(part), rest) for part, rest in ((abar[t[0]], 1.0), (1 - abar[t[0]], 0.0)))
    heun = heun_rows(start, abar[start], end, abar[end], is_euler=start == end)
    return GaussianRows(jnp.asarray(keep, jnp.float32), jnp.asarray(add, jnp.float32), heun)


def _gaussian_step(predict: Predict, carried: tuple[Array, Array], row: GaussianRows) -> tuple[tuple, Array]:
    x, keys = carried
    noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], jnp.float32))(keys)
    (x,), x_0 = heun_step(predict, (row.keep * x + row.add * noise,), row.heun)
    return (x, keys), x_0


GAUSSIAN_INVERSION = Sampler(
    _gaussian_coefficients,
    lambda x, keys: (x, keys),
    _gaussian_step,
    HEUN.grid,
    stochastic=True,
    num_calls=lambda num_steps: max(1, 2 * num_steps - 2),
)

INVERSIONS = {
    "ddim": Method(DDIM_INVERSION),
    "exact": Method(exact_inversion(), decoders=("ddim",)),
    "gaussian": Method(GAUSSIAN_INVERSION, decoders=("heun", "dpmpp_2m")),
}


def report(sampler: Sampler, num_steps: int, carried: tuple) -> Inversion:
    """Returns the result of an inversion from the last tuple that its loop carried."""
    if isinstance(carried, ExactState):
        return Inversion(carried.x, carried.num_calls, carried.residual)
    count = len(carried[0])
    return Inversion(carried[0], jnp.full(count, sampler.num_calls(num_steps)), jnp.full(count, jnp.nan))
