"""Compute types, and the dynamic loss scale that float16 needs."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}

INITIAL_SCALE = 2.0**15
GROWTH_INTERVAL = 2000  # good steps before the scale is doubled
MINIMUM_SCALE = 1.0  # gradients that overflow even here are not overflowing: they are broken


def resolve_precision(name: str) -> str:
    """Turns "auto" into the fastest type that the first device computes well; other names pass unchanged.

    bfloat16 on TPU and on GPUs since Ampere, float16 on older GPUs (V100), float32 on CPU.
    """
    if name != "auto":
        return name
    device = jax.devices()[0]
    if device.platform == "tpu":
        return "bfloat16"
    if device.platform == "gpu":
        capability = float(getattr(device, "compute_capability", "8.0"))
        return "bfloat16" if capability >= 8 else "float16"
    return "float32"


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
