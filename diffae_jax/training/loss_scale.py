"""Dynamic loss scaling for float16."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

INITIAL_SCALE = 2.0**15
GROWTH_INTERVAL = 2000  # finite steps in a row before the scale is doubled
MINIMUM_SCALE = 1.0  # if gradients overflow even at this scale, training is broken


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossScale:
    """The factor on the loss that prevents underflow of float16 gradients.

    Every state contains it, so that a run can resume in a different precision. Only float16 uses
    it.
    """

    scale: Any  # float32 scalar; a shape or a sharding in trees that describe a state
    good_steps: Any  # int32 scalar: finite steps since the scale last changed

    @classmethod
    def create(cls) -> "LossScale":
        """Returns the initial loss scale."""
        return cls(jnp.asarray(INITIAL_SCALE, jnp.float32), jnp.asarray(0, jnp.int32))

    def update(self, finite: Bool[Array, ""]) -> "LossScale":
        """Halves the scale after a non-finite gradient, doubles it after 2000 finite steps."""
        grown = self.good_steps + 1 >= GROWTH_INTERVAL
        scale = jnp.where(finite, jnp.where(grown, self.scale * 2, self.scale), self.scale / 2)
        good_steps = jnp.where(finite & ~grown, self.good_steps + 1, 0)
        return LossScale(scale, good_steps)
