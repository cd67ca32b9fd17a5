"""The dynamic loss scale that float16 needs."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

INITIAL_SCALE = 2.0**15
GROWTH_INTERVAL = 2000  # good steps before the scale is doubled
MINIMUM_SCALE = 1.0  # gradients that overflow even here are not overflowing: they are broken


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossScale:
    """The factor on the loss that keeps float16 gradients above underflow, and the good steps since it changed.

    It is part of every state, so that a run can go on in another precision; types with more range leave it alone.
    """

    scale: Any  # float32 scalar; Any, for it is a shape or a sharding in the trees that describe a state
    good_steps: Any  # int32 scalar

    @classmethod
    def create(cls) -> "LossScale":
        """Returns the initial loss scale."""
        return cls(jnp.asarray(INITIAL_SCALE, jnp.float32), jnp.asarray(0, jnp.int32))

    def update(self, finite: Bool[Array, ""]) -> "LossScale":
        """Halves the scale after a non-finite gradient; doubles it after 2000 good steps in a row."""
        grown = self.good_steps + 1 >= GROWTH_INTERVAL
        scale = jnp.where(finite, jnp.where(grown, self.scale * 2, self.scale), self.scale / 2)
        good_steps = jnp.where(finite & ~grown, self.good_steps + 1, 0)
        return LossScale(scale, good_steps)
