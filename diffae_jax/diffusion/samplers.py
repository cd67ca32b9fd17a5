"""Samplers: methods that turn x_T into an image, in 20 to 30 lines each.

To add a sampler, define a `Sampler` and add it to `SAMPLERS`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Float64, Int, Key

from diffae_jax.diffusion.loop import Rows, Sampler, walk
from diffae_jax.diffusion.process import Predict, Process
from diffae_jax.diffusion.schedule import timesteps

Abar = Float64[np.ndarray, "1000"]  # of all time steps
TimeSteps = Int[np.ndarray, "steps"]  # ascending

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
    def of(cls, abar: Abar, t: TimeSteps) -> "DDIMGrid":
        """Creates the grid of some time steps.

        Args:
            abar: The cumulative alpha of all time steps, float64 [1000].
            t: Ascending time steps, int32 [steps].
        """
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


def _x_alone(x: Array, keys: Array | None) -> tuple[Array]:
    return (x,)


def _to_image(abar: Abar, t: TimeSteps) -> DDIMRows:
    return DDIMGrid.of(abar, t).to_image


def _to_noise(abar: Abar, t: TimeSteps) -> DDIMRows:
    return DDIMGrid.of(abar, t).to_noise


DDIM = Sampler(_to_image, _x_alone, ddim_step)
DDIM_INVERSION = Sampler(_to_noise, _x_alone, ddim_step)


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
    return DDIMGrid.of(Process(schedule).abar, timesteps(num_steps))


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
    return walk(DDIM, Process().predictor(eps_fn, clip), x_T, grid.to_image, remat=remat)[0]


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
    return walk(DDIM_INVERSION, Process().predictor(eps_fn, clip), x_0, grid.to_noise)[0]


# Stochastic DDIM: DDIM with fresh noise in each step. It is DDPM for eta = 1.


class StochasticRows(NamedTuple):
    """Coefficients of steps x = keep * x_0 + turn * eps + add * noise.

    Attributes:
        t: The time step, given to the network.
        abar: The cumulative alpha at t.
        keep: The factor of x_0.
        turn: The factor of eps.
        add: The factor of the fresh noise; 0 in the last step.
    """

    t: Int[Array, "steps"]
    abar: Float[Array, "steps"]
    keep: Float[Array, "steps"]
    turn: Float[Array, "steps"]
    add: Float[Array, "steps"]


def _x_and_keys(x: Array, keys: Key[Array, "n"] | None) -> tuple[Array, Array]:
    return x, keys


def _stochastic_step(predict: Predict, carried: tuple, row: StochasticRows) -> tuple[tuple, Array]:
    x, keys = carried
    x_0, eps = predict(x, row.t, row.abar)
    # the noise depends only on the sample and the time step
    noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, row.t), x.shape[1:], jnp.float32))(keys)
    return (row.keep * x_0 + row.turn * eps + row.add * noise, keys), x_0


@functools.cache  # equal samplers share a compiled function
def stochastic_ddim(eta: float) -> Sampler:
    """Returns DDIM with noise.

    Args:
        eta: The deviation of the noise of each step, relative to that of DDPM, in [0, 1]. 0: DDIM.

    Returns:
        The sampler.

    Raises:
        ValueError: eta is outside this range.

    Source: Song et al. 2021 (DDIM), Eq. 12 and 16.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be between 0 and 1, not {eta}.")

    def coefficients(abar: Abar, t: TimeSteps) -> StochasticRows:
        t = t[::-1]
        abar, abar_to = abar[t], np.append(abar[t[1:]], 1.0)
        variance = eta**2 * (1 - abar_to) / (1 - abar) * (1 - abar / abar_to)
        return _rows(StochasticRows, t, abar, np.sqrt(abar_to), np.sqrt(1 - abar_to - variance), np.sqrt(variance))

    return Sampler(coefficients, _x_and_keys, _stochastic_step, stochastic=True)


# DPM-Solver++(2M): second order with one network call a step.


class MultistepRows(NamedTuple):
    """Coefficients of steps x = keep * x + gain * (x_0 extrapolated from two predictions).

    Attributes:
        t: The time step, given to the network.
        abar: The cumulative alpha at t.
        keep: The factor of x.
        gain: The factor of x_0.
        extrapolate: The weight of the change since the previous x_0; 0 in the first and the last
            step.
    """

    t: Int[Array, "steps"]
    abar: Float[Array, "steps"]
    keep: Float[Array, "steps"]
    gain: Float[Array, "steps"]
    extrapolate: Float[Array, "steps"]


def _multistep_coefficients(abar: Abar, t: TimeSteps) -> MultistepRows:
    t = t[::-1]
    abar, abar_to = abar[t], np.append(abar[t[1:]], 1.0)
    half_log_snr = 0.5 * (np.log(abar) - np.log1p(-abar))
    h = np.diff(half_log_snr, append=np.inf)
    extrapolate = np.zeros(len(t))
    extrapolate[1:-1] = h[1:-1] / (2 * h[:-2])
    keep = np.sqrt((1 - abar_to) / (1 - abar))
    return _rows(MultistepRows, t, abar, keep, np.sqrt(abar_to) * -np.expm1(-h), extrapolate)


def _x_and_x_0(x: Array, keys: Array | None) -> tuple[Array, Array]:
    return x, jnp.zeros_like(x)


def _multistep_step(predict: Predict, carried: tuple, row: MultistepRows) -> tuple[tuple, Array]:
    """Takes one step of Algorithm 2 of Lu et al. 2022 (DPM-Solver++)."""
    x, previous = carried
    x_0, _ = predict(x, row.t, row.abar)
    extrapolated = x_0 + row.extrapolate * (x_0 - previous)
    return (row.keep * x + row.gain * extrapolated, x_0), x_0


DPMPP_2M = Sampler(_multistep_coefficients, _x_and_x_0, _multistep_step, "log_snr", poor_grids=("even",))


# Heun: second order with two network calls a step.


class HeunRows(NamedTuple):
    """Coefficients of Heun steps.

    Attributes:
        t: The time step, given to the network.
        abar: The cumulative alpha at t.
        t_to: The time step after the step; that of the step itself if it is not in the grid.
        abar_to: The cumulative alpha after the step.
        is_euler: Whether the step ends outside the grid, so that it has no second network call.
    """

    t: Int[Array, "steps"]
    abar: Float[Array, "steps"]
    t_to: Int[Array, "steps"]
    abar_to: Float[Array, "steps"]
    is_euler: Bool[Array, "steps"]


def heun_rows(
    t: TimeSteps,
    abar: Float64[np.ndarray, "steps"],
    t_to: TimeSteps,
    abar_to: Float64[np.ndarray, "steps"],
    is_euler: Bool[np.ndarray, "steps"],
) -> HeunRows:
    """Returns coefficients of Heun steps from host arrays."""
    return HeunRows(*map(jnp.asarray, (t, np.float32(abar), t_to, np.float32(abar_to), is_euler)))


def _heun_coefficients(abar: Abar, t: TimeSteps) -> HeunRows:
    t = t[::-1]
    is_last = np.arange(len(t)) == len(t) - 1
    return heun_rows(t, abar[t], np.append(t[1:], t[-1]), np.append(abar[t[1:]], 1.0), is_euler=is_last)


def heun_step(predict: Predict, carried: tuple[Array], row: HeunRows) -> tuple[tuple[Array], Array]:
    """Takes one DDIM step, then repeats it with the mean of the predictions at both ends.

    x turns by an angle from x_0 to eps (Salimans and Ho 2022, Appendix D). Only the part of the
    mean prediction that is the velocity of this turn is used. So the step is of second order, and
    bounded for every abar.

    Args:
        predict: A function (x_t, t, abar) -> (x_0, eps).
        carried: (x_t,).
        row: The coefficients of the step.

    Returns:
        ((x at the next step,), predicted x_0).

    Source: Karras et al. 2022, Algorithm 1.
    """
    (x,) = carried
    alpha, sigma = jnp.sqrt(row.abar), jnp.sqrt(1 - row.abar)
    alpha_to, sigma_to = jnp.sqrt(row.abar_to), jnp.sqrt(1 - row.abar_to)
    x_0, eps = predict(x, row.t, row.abar)
    euler = alpha_to * x_0 + sigma_to * eps

    def correct() -> Array:
        x_0_to, eps_to = predict(euler, row.t_to, row.abar_to)
        velocity = (alpha * (eps + eps_to) - sigma * (x_0 + x_0_to)) / 2
        return alpha_to * (alpha * x - sigma * velocity) + sigma_to * (sigma * x + alpha * velocity)

    return (lax.cond(row.is_euler, lambda: euler, correct),), x_0


def _twice_a_step(num_steps: int) -> int:
    return 2 * num_steps - 1


HEUN = Sampler(_heun_coefficients, _x_alone, heun_step, "quadratic", num_calls=_twice_a_step)


def _rows(kind: type, t: TimeSteps, *coefficients: Float64[np.ndarray, "steps"]) -> Rows:
    return kind(jnp.asarray(t), *(jnp.asarray(a, jnp.float32) for a in coefficients))


SAMPLERS = {"ddim": DDIM, "stochastic_ddim": stochastic_ddim(1.0), "dpmpp_2m": DPMPP_2M, "heun": HEUN}
