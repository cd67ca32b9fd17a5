"""Noise schedules in float64, and evenly spaced time steps."""

from typing import Literal

import numpy as np
from jaxtyping import Float64, Int

NUM_TIMESTEPS = 1000  # T during training (Table 5); t is in [0, NUM_TIMESTEPS)

ScheduleName = Literal["linear", "constant", "cosine"]


def linear_betas() -> Float64[np.ndarray, "1000"]:
    """Returns beta from 1e-4 to 0.02, the schedule of images (Table 5)."""
    return np.linspace(1e-4, 0.02, NUM_TIMESTEPS, dtype=np.float64)


def constant_betas() -> Float64[np.ndarray, "1000"]:
    """Returns beta = 0.008, the schedule of the prior (Table 6)."""
    return np.full(NUM_TIMESTEPS, 0.008, dtype=np.float64)


def cosine_betas() -> Float64[np.ndarray, "1000"]:
    """Returns beta of the cosine schedule, at most 0.999 (Appendix A)."""
    s = np.arange(NUM_TIMESTEPS + 1, dtype=np.float64) / NUM_TIMESTEPS
    abar = np.cos((s + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - abar[1:] / abar[:-1], 0.999)


def cumulative_alpha(name: ScheduleName) -> Float64[np.ndarray, "1000"]:
    """Computes the cumulative alpha: abar_t = prod_{s <= t} (1 - beta_s).

    Args:
        name: Name of the schedule: "linear", "constant" or "cosine".

    Returns:
        abar of all time steps, float64 [1000].

    Source: Sec. 2, where it is called alpha_t.
    """
    betas = {"linear": linear_betas, "constant": constant_betas, "cosine": cosine_betas}[name]()
    return np.cumprod(1 - betas)


def timesteps(num_steps: int) -> Int[np.ndarray, "{num_steps}"]:
    """Returns evenly spaced time steps from 0 up: multiples of 1000 / num_steps, rounded down.

    Args:
        num_steps: Number of steps, 1 to 1000.

    Returns:
        Ascending time steps, int32 [num_steps].

    Raises:
        ValueError: num_steps is outside this range.
    """
    check_num_steps(num_steps)
    return (np.arange(num_steps) * NUM_TIMESTEPS // num_steps).astype(np.int32)


def check_num_steps(num_steps: int) -> None:
    """Raises ValueError if a number of steps is not from 1 to 1000."""
    if not 1 <= num_steps <= NUM_TIMESTEPS:
        raise ValueError(f"num_steps must be between 1 and {NUM_TIMESTEPS}, not {num_steps}.")
