"""The diffusion process: noise schedule, what the network predicts, and how the loss is weighted.

Losses, samplers and inversion get schedule, parameterization and weighting only from a `Process`.
To add a parameterization, add an entry to `PARAMETERIZATIONS`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from diffae_jax.diffusion.schedule import cumulative_alpha

Network = Callable[[Array, Array], Array]  # (x_t [N, ...], t [N] or []) -> prediction [N, ...]
Predict = Callable[[Array, Array, Array], tuple[Array, Array]]  # (x_t [N, ...], t [], abar []) -> (x_0, eps)


class Parameterization(NamedTuple):
    """What a network predicts. abar is shaped to broadcast against the other arrays.

    Attributes:
        target: A function (x_0, eps, abar) -> the value that the network should predict.
        x_0_and_eps: A function (x_t, prediction, abar) -> (x_0, eps).
    """

    target: Callable[[Array, Array, Array], Array]
    x_0_and_eps: Callable[[Array, Array, Array], tuple[Array, Array]]


def _eps_target(x_0: Array, eps: Array, abar: Array) -> Array:
    return eps


def _from_eps(x_t: Array, eps: Array, abar: Array) -> tuple[Array, Array]:
    """Returns (x_0, eps) from predicted noise: f_theta of Eq. 5."""
    return (x_t - jnp.sqrt(1 - abar) * eps) / jnp.sqrt(abar), eps


def _v_target(x_0: Array, eps: Array, abar: Array) -> Array:
    return jnp.sqrt(abar) * eps - jnp.sqrt(1 - abar) * x_0


def _from_v(x_t: Array, v: Array, abar: Array) -> tuple[Array, Array]:
    """Returns (x_0, eps) from v by a rotation, which is exact even for abar near 0."""
    return jnp.sqrt(abar) * x_t - jnp.sqrt(1 - abar) * v, jnp.sqrt(1 - abar) * x_t + jnp.sqrt(abar) * v


PARAMETERIZATIONS = {
    "eps": Parameterization(_eps_target, _from_eps),  # the noise, as in the paper
    "v": Parameterization(_v_target, _from_v),  # Salimans and Ho 2022, Appendix D
}
ERRORS = {"mse": jnp.square, "l1": jnp.abs}  # error of each element (Eq. 6, Eq. 9)
WEIGHTINGS = {"uniform": jnp.ones_like}  # abar at a time step -> weight of the error there


@dataclasses.dataclass(frozen=True)
class Process:
    """Schedule, parameterization and loss of a diffusion model.

    It is frozen and hashable, so it can be a static argument of a compiled function.

    Args:
        schedule: Name of the noise schedule: "linear", "constant" or "cosine".
        parameterization: What the network predicts: a key of `PARAMETERIZATIONS`.
        error: The error of the prediction: a key of `ERRORS`.
        weighting: The weight of each time step in the loss: a key of `WEIGHTINGS`.

    Raises:
        ValueError: `parameterization`, `error` or `weighting` is not in its table.
    """

    schedule: Literal["linear", "constant", "cosine"] = "linear"
    parameterization: str = "eps"
    error: str = "mse"
    weighting: str = "uniform"

    def __post_init__(self):
        choices = {"parameterization": PARAMETERIZATIONS, "error": ERRORS, "weighting": WEIGHTINGS}
        for field, table in choices.items():
            if getattr(self, field) not in table:
                raise ValueError(f"There is no {field} {getattr(self, field)!r}. Choose one of {', '.join(table)}.")

    @property
    def abar(self) -> Float64[np.ndarray, "1000"]:
        """The cumulative alpha of each time step, float64 [1000]."""
        return cumulative_alpha(self.schedule)

    @property
    def name(self) -> str:
        """The schedule and, unless it is eps, the parameterization, such as "linear, v"."""
        return self.schedule if self.parameterization == "eps" else f"{self.schedule}, {self.parameterization}"

    def abar_at(self, t: Int[Array, "n"], like: Float[Array, "n *shape"]) -> Float[Array, "n *ones"]:
        """Looks up abar at the time step of each sample.

        Args:
            t: Time steps in [0, 1000), [N].
            like: An array [N, *shape], against which the result must broadcast.

        Returns:
            abar, float32 [N, 1, ..., 1].
        """
        return jnp.asarray(self.abar, jnp.float32)[t].reshape(-1, *(1,) * (like.ndim - 1))

    def predictor(self, network: Network, clip: bool) -> Predict:
        """Turns a network into a function that predicts x_0 and the noise.

        Args:
            network: A function (x_t [N, ...], t) -> prediction [N, ...].
            clip: Whether to clip x_0 to [-1, 1]: see `limit`. True for images, False for z.

        Returns:
            A function (x_t [N, ...], t [], abar []) -> (x_0 [N, ...], eps [N, ...]).
        """
        convert = PARAMETERIZATIONS[self.parameterization].x_0_and_eps

        def predict(x_t, t, abar):
            x_0, eps = convert(x_t, network(x_t, t), abar)
            return limit(x_0, eps, abar) if clip else (x_0, eps)

        return predict


def limit(x_0: Array, eps: Array, abar: Array) -> tuple[Array, Array]:
    """Clips a predicted x_0 to [-1, 1], and adjusts eps so that both still give the same x_t.

    The new eps is computed as a correction of the old one. Computing it from x_t and x_0 would
    lose precision near abar = 1.

    Args:
        x_0: The predicted image, [N, ...].
        eps: The predicted noise, [N, ...].
        abar: The cumulative alpha of the time step, shaped to broadcast.

    Returns:
        (x_0, eps), clipped and adjusted.
    """
    limited = jnp.clip(x_0, -1, 1)
    return limited, eps + jnp.sqrt(abar / (1 - abar)) * (x_0 - limited)


def image_process(config: Any) -> Process:
    """Returns the diffusion process of images that a config describes (section `train`)."""
    return Process(config.train.schedule, config.train.parameterization, weighting=config.train.weighting)


def latent_process(config: Any) -> Process:
    """Returns the diffusion process of z that a config describes (section `prior`, Table 6)."""
    return Process(config.prior.schedule, config.prior.parameterization, config.prior.loss)
