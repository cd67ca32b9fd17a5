"""Noise schedules in float64, and the step grids that the samplers walk."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

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


def ddim_grid(name: ScheduleName, num_steps: int) -> DDIMGrid:
    """Returns the grid of `num_steps` steps of the named schedule. Raises ValueError as `timesteps` does."""
    t = timesteps(num_steps)
    abar = cumulative_alpha(name)[t]
    ends = np.concatenate([[1.0], abar, [0.0]])
    as_float = [jnp.asarray(a, jnp.float32) for a in (abar, ends[:-2], ends[2:])]
    return DDIMGrid(jnp.asarray(t), *as_float)
