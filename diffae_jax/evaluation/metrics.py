"""How close two images are."""

import numpy as np
from jaxtyping import Float


def mse(images: Float[np.ndarray, "n *shape"], others: Float[np.ndarray, "n *shape"]) -> Float[np.ndarray, "n"]:
    """Mean squared error of each pair of images in [-1, 1], measured on the scale [0, 1] as in Table 1."""
    difference = (np.asarray(images, np.float64) - np.asarray(others, np.float64)) / 2
    return np.square(difference).reshape(len(difference), -1).mean(-1)
