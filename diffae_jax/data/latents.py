"""Semantic codes of a data set: their statistics."""

import dataclasses

import numpy as np
from jaxtyping import Float

from diffae_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Mean and sample standard deviation (n - 1) of every dimension of z over a data set, float32.

    Raises UserError unless both are finite rows of one length that is not 0, and all deviations positive.
    """

    mean: Float[np.ndarray, "*d"]
    std: Float[np.ndarray, "*d"]

    def __post_init__(self):
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape or not self.mean.size:
            raise UserError(
                f"The statistics of z have shapes {self.mean.shape} and {self.std.shape}, not one row each."
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all() and (self.std > 0).all()):
            raise UserError("The statistics of z must be finite, with positive deviations.")

    def normalize(self, z: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
        """Returns z with mean 0 and standard deviation 1 in every dimension."""
        return (z - self.mean) / self.std

    def denormalize(self, z: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
        """The inverse of `normalize`."""
        return z * self.std + self.mean
