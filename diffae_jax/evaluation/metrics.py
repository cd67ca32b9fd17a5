"""How close two images are, on the scale [0, 1], as the paper measures it (Table 1)."""

import numpy as np
from jaxtyping import Float, Float64
from scipy.ndimage import gaussian_filter


def _unit(images: Float[np.ndarray, "n *shape"]) -> Float64[np.ndarray, "n *shape"]:
    return (np.asarray(images, np.float64) + 1) / 2


def mse(images: Float[np.ndarray, "n *shape"], others: Float[np.ndarray, "n *shape"]) -> Float[np.ndarray, "n"]:
    """Mean squared error of each pair of images in [-1, 1]."""
    difference = _unit(images) - _unit(others)
    return np.square(difference).reshape(len(difference), -1).mean(-1)


def psnr(images: Float[np.ndarray, "n *shape"], others: Float[np.ndarray, "n *shape"]) -> Float[np.ndarray, "n"]:
    """Peak signal-to-noise ratio in decibel of each pair of images in [-1, 1]; infinite for equal ones."""
    with np.errstate(divide="ignore"):
        return -10 * np.log10(mse(images, others))


def ssim(images: Float[np.ndarray, "n *shape"], others: Float[np.ndarray, "n *shape"]) -> Float[np.ndarray, "n"]:
    """Structural similarity of each pair of images in [-1, 1], of any rank and number of channels.

    Local moments under a Gaussian window of 11 values an axis and sigma 1.5, with zeros beyond the border, as the
    official code takes them; the mean over positions and channels.
    """
    x, y = _unit(images), _unit(others)

    def local_mean(values):
        axes = tuple(range(1, values.ndim - 1))
        return gaussian_filter(values, 1.5, radius=5, mode="constant", axes=axes)

    mean_x, mean_y = local_mean(x), local_mean(y)
    variance_x, variance_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return similarity.reshape(len(similarity), -1).mean(-1)
