"""Linear probes: an attribute of images as a direction of z (Sec. 5.3, Appendix A.2)."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from diffae_jax.errors import UserError, shown

GREATEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier of one attribute over normalised z: its logit is `z @ weights + bias`.

    Raises UserError unless the weights are one row of finite numbers that has a direction, and the bias is finite.
    """

    name: str
    weights: Float[np.ndarray, "*d"]
    bias: float

    def __post_init__(self):
        if not self.name:
            raise UserError("A probe needs a name, that of its attribute.")
        if self.weights.ndim != 1 or not np.isfinite([*self.weights, self.bias]).all():
            raise UserError(f"The weights of probe {shown(self.name)} must be one row of finite numbers.")
        with np.errstate(over="ignore"):
            norm = np.linalg.norm(self.weights)  # `move` divides by it
        if not 0 < norm < np.inf:
            raise UserError(
                f"The weights of probe {shown(self.name)} have no direction: they are too small or too great."
            )

    def logits(self, z: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n"]:
        """Returns the logit of the attribute for each normalised z."""
        return z @ self.weights + np.float32(self.bias)

    def move(self, z: Float[np.ndarray, "n d"], strength: float) -> Float[np.ndarray, "n d"]:
        """Moves each normalised z by `strength * sqrt(D)` along the attribute's direction."""
        direction = self.weights / np.linalg.norm(self.weights)
        return z + np.float32(strength * np.sqrt(len(direction))) * direction

    def as_json(self) -> dict[str, Any]:
        """Returns plain values that `from_json` takes."""
        return {"name": self.name, "weights": [float(w) for w in self.weights], "bias": self.bias}

    @classmethod
    def from_json(cls, values: Any) -> "Probe":
        """Raises UserError for values that are not those of a probe."""
        name, weights, bias = (
            values.get(key) if isinstance(values, dict) else None for key in ("name", "weights", "bias")
        )
        if not isinstance(name, str) or not isinstance(weights, list) or not all(map(_is_number, [*weights, bias])):
            raise UserError(
                f"A probe holds name, weights and bias, finite numbers of 32 bits; that of name {shown(name)} does not."
            )
        return cls(name, np.asarray(weights, np.float32), float(bias))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= GREATEST
