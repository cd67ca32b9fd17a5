"""The diffusion process: how x_t is made, what a network is asked for, and what its answer says of x_0 and the noise.

A `Process` is all that losses, samplers and inversion know of the objective. A new parameterization is one entry of
`PARAMETERIZATIONS`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from diffae_jax.diffusion.schedule import cumulative_alpha

Network = Callable[[Array, Array], Array]  # (x_t [N, ...], t [N] or []) -> what it is asked for [N, ...]
Predict = Callable[[Array, Array, Array], tuple[Array, Array]]  # (x_t [N, ...], t [], abar []) -> (x_0, eps)


class Parameterization(NamedTuple):
    """What a network predicts, by abar of each sample, shaped to broadcast."""

    target: Callable[[Array, Array, Array], Array]  # (x_0, eps, abar) -> what the network is asked for
    x_0_and_eps: Callable[[Array, Array, Array], tuple[Array, Array]]  # (x_t, output, abar) -> (x_0, eps)


def _eps_target(x_0: Array, eps: Array, abar: Array) -> Array:
    return eps


def _from_eps(x_t: Array, eps: Array, abar: Array) -> tuple[Array, Array]:
    """f_theta of Eq. 5."""
    return (x_t - jnp.sqrt(1 - abar) * eps) / jnp.sqrt(abar), eps


def _v_target(x_0: Array, eps: Array, abar: Array) -> Array:
    return jnp.sqrt(abar) * eps - jnp.sqrt(1 - abar) * x_0


def _from_v(x_t: Array, v: Array, abar: Array) -> tuple[Array, Array]:
    """The rotation that undoes x_t and v; it divides by nothing, so it is exact where abar is nearly 0, too."""
    return jnp.sqrt(abar) * x_t - jnp.sqrt(1 - abar) * v, jnp.sqrt(1 - abar) * x_t + jnp.sqrt(abar) * v


PARAMETERIZATIONS = {
    "eps": Parameterization(_eps_target, _from_eps),  # the noise: the paper
    "v": Parameterization(_v_target, _from_v),  # Salimans and Ho 2022, Appendix D
}
ERRORS = {"mse": jnp.square, "l1": jnp.abs}  # of each element (Eq. 6, Eq. 9)
WEIGHTINGS = {"uniform": jnp.ones_like}  # of the error at a time step, by abar there


@dataclasses.dataclass(frozen=True)
class Process:
    """Schedule, parameterization and loss of a diffusion model. Hashable, so it is a static argument of programs.

    Raises ValueError for a name that its table has not.
    """

    schedule: Literal["linear", "constant", "cosine"] = "linear"
    parameterization: str = "eps"  # a key of PARAMETERIZATIONS
    error: str = "mse"  # a key of ERRORS
    weighting: str = "uniform"  # a key of WEIGHTINGS

    def __post_init__(self):
        choices = (self.parameterization, PARAMETERIZATIONS), (self.error, ERRORS), (self.weighting, WEIGHTINGS)
        for name, table in choices:
            if name not in table:
                raise ValueError(f"There is no {name!r}: choose one of {', '.join(table)}.")

    @property
    def abar(self) -> Float64[np.ndarray, "1000"]:
        """The cumulative alpha of every time step."""
        return cumulative_alpha(self.schedule)

    @property
    def name(self) -> str:
        """What sampling depends on, in words: the schedule and, unless it is the noise, what is predicted."""
        return self.schedule if self.parameterization == "eps" else f"{self.schedule}, {self.parameterization}"

    def abar_at(self, t: Int[Array, "n"], like: Float[Array, "n *shape"]) -> Float[Array, "n *ones"]:
        """Returns abar of each sample's time step, shaped so that it broadcasts against `like`."""
        return jnp.asarray(self.abar, jnp.float32)[t].reshape(-1, *(1,) * (like.ndim - 1))

    def predictor(self, network: Network, clip: bool) -> Predict:
        """Returns what says (x_0, eps) of x_t, by the network's output; see `limit` for `clip`."""
        convert = PARAMETERIZATIONS[self.parameterization].x_0_and_eps

        def predict(x_t, t, abar):
            x_0, eps = convert(x_t, network(x_t, t), abar)
            return limit(x_0, eps, abar) if clip else (x_0, eps)

        return predict


def limit(x_0: Array, eps: Array, abar: Array) -> tuple[Array, Array]:
    """Limits x_0 to [-1, 1] and returns with it the noise that leads from there to the same x_t.

    That noise is written as a correction of eps, not as a quotient of small differences: near abar = 1 this would cost
    digits.
    """
    limited = jnp.clip(x_0, -1, 1)
    return limited, eps + jnp.sqrt(abar / (1 - abar)) * (x_0 - limited)


def image_process(config: Any) -> Process:
    """Returns the process of a config's images."""
    return Process(config.train.schedule, config.train.parameterization, weighting=config.train.weighting)


def latent_process(config: Any) -> Process:
    """Returns the process of a config's latent DDIM (Table 6)."""
    return Process(config.prior.schedule, config.prior.parameterization, config.prior.loss)
