"""Grids: which time steps a sampler visits. Each is a function of abar and the number of steps.

To add a grid, add a function to `GRIDS`.
"""

import numpy as np
from jaxtyping import Float, Float64, Int

from diffae_jax.diffusion.schedule import NUM_TIMESTEPS, check_num_steps, timesteps

# Time steps with a smaller abar are only used if the others are fewer than the steps. x_t is
# almost pure noise there and says little of x_0. The cosine schedule goes down to 2e-9.
MIN_ABAR = 1e-3


def even(abar: Float64[np.ndarray, "1000"], num_steps: int) -> Int[np.ndarray, "steps"]:
    """Returns evenly spaced time steps, as in the paper: multiples of 1000 / num_steps.

    Args:
        abar: The cumulative alpha of all time steps, [1000]; not used.
        num_steps: Number of steps, 1 to 1000.

    Returns:
        Distinct ascending time steps, int32 [steps].

    Raises:
        ValueError: num_steps is outside this range.
    """
    return timesteps(num_steps)


def quadratic(abar: Float64[np.ndarray, "1000"], num_steps: int) -> Int[np.ndarray, "steps"]:
    """Returns time steps whose spacing grows linearly from the image to the noise.

    Args:
        abar: The cumulative alpha of all time steps, [1000].
        num_steps: Number of steps, 1 to 1000.

    Returns:
        Distinct ascending time steps, int32 [steps].

    Raises:
        ValueError: num_steps is outside this range.

    Source: Song et al. 2021 (DDIM), Appendix D.2.
    """
    last = _last(abar, num_steps)
    return _distinct(last * _from_0_to_1(num_steps) ** 2, last)


def log_snr(abar: Float64[np.ndarray, "1000"], num_steps: int) -> Int[np.ndarray, "steps"]:
    """Returns time steps that are evenly spaced in the logarithm of abar / (1 - abar).

    Args:
        abar: The cumulative alpha of all time steps, [1000].
        num_steps: Number of steps, 1 to 1000.

    Returns:
        Distinct ascending time steps, int32 [steps].

    Raises:
        ValueError: num_steps is outside this range.

    Source: Lu et al. 2022 (DPM-Solver), Sec. 3.4.
    """
    last = _last(abar, num_steps)
    fall = np.log1p(-abar) - np.log(abar)
    targets = fall[0] + (fall[last] - fall[0]) * _from_0_to_1(num_steps)
    return _distinct(np.interp(targets, fall, np.arange(NUM_TIMESTEPS)), last)


def _last(abar: Float64[np.ndarray, "1000"], num_steps: int) -> int:
    check_num_steps(num_steps)
    return max(int(np.flatnonzero(abar >= MIN_ABAR)[-1]), num_steps - 1)


def _from_0_to_1(num_steps: int) -> Float64[np.ndarray, "steps"]:
    """Returns even positions. A single step is at 1, the noise."""
    return np.arange(num_steps) / (num_steps - 1) if num_steps > 1 else np.ones(1)


def _distinct(t: Float[np.ndarray, "steps"], last: int) -> Int[np.ndarray, "steps"]:
    """Rounds ascending time steps to distinct whole numbers of at most `last`."""
    places = np.arange(len(t))
    t = np.maximum.accumulate(np.round(t).astype(int) - places) + places
    return np.minimum(t, last - places[::-1]).astype(np.int32)


GRIDS = {"even": even, "quadratic": quadratic, "log_snr": log_snr}
