"""Semantic codes of a data set: their statistics."""

import dataclasses

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Mean and sample standard deviation (n - 1) of every dimension of z over a data set, float32."""

    mean: Float[np.ndarray, "d"]
    std: Float[np.ndarray, "d"]

    def normalize(self, z: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
        """Returns z with mean 0 and standard deviation 1 in every dimension."""
        return (z - self.mean) / self.std

    def denormalize(self, z: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
        """The inverse of `normalize`."""
        return z * self.std + self.mean
