"""Spaces in which sets of images are compared."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

INCEPTION = "Inception"


class FeatureSpace(NamedTuple):
    """A space."""

    name: str
    dim: int
    features: Callable[[Float[np.ndarray, "n *shape"]], Float[np.ndarray, "n d"]]
