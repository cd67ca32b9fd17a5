"""Noise schedules in float64, and evenly spaced time steps."""

from typing import Literal

import numpy as np
from jaxtyping import Float64, Int

NUM_TIMESTEPS = 1000  # the T of training (Table 5); t is in [0, NUM_TIMESTEPS)

ScheduleName = Literal["linear", "constant", "cosine"]


def linear_betas() -> Float64[np.ndarray, "1000"]:
    """beta from 1e-4 to 0.02 (Table 5): the schedule of images."""
    return np.linspace(1e-4, 0.02, NUM_TIMESTEPS, dtype=np.float64)


def constant_betas() -> Float64[np.ndarray, "1000"]:
    """beta = 0.008 (Table 6): the schedule of the latent DDIM."""
    return np.full(NUM_TIMESTEPS, 0.008, dtype=np.float64)


def cosine_betas() -> Float64[np.ndarray, "1000"]:
    """beta of the cosine schedule [25], at most 0.999 (Appendix A)."""
    s = np.arange(NUM_TIMESTEPS + 1, dtype=np.float64) / NUM_TIMESTEPS
    abar = np.cos((s + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - abar[1:] / abar[:-1], 0.999)


def cumulative_alpha(name: ScheduleName) -> Float64[np.ndarray, "1000"]:
    """abar_t = prod_{s <= t} (1 - beta_s), the alpha_t of the paper (Sec. 2)."""
    betas = {"linear": linear_betas, "constant": constant_betas, "cosine": cosine_betas}[name]()
    return np.cumprod(1 - betas)


def timesteps(num_steps: int) -> Int[np.ndarray, "{num_steps}"]:
    """Returns `num_steps` evenly spaced time steps from 0 up: every (1000 / num_steps)-th, rounded down.

    Raises ValueError unless 1 <= num_steps <= 1000.
    """
    if not 1 <= num_steps <= NUM_TIMESTEPS:
        raise ValueError(f"num_steps must be between 1 and {NUM_TIMESTEPS}, not {num_steps}.")
    return (np.arange(num_steps) * NUM_TIMESTEPS // num_steps).astype(np.int32)
