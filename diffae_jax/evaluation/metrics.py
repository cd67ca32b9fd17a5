"""How close two images are, on the scale [0, 1], as the paper measures it (Table 1), and two sets of images."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float64
from scipy.ndimage import gaussian_filter
from sklearn.decomposition import PCA

from diffae_jax.errors import UserError


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


def principal_components(
    images: Float[np.ndarray, "n *shape"], num_components: int
) -> Callable[[Float[np.ndarray, "m *shape"]], Float[np.ndarray, "m d"]]:
    """Returns what maps images to their first principal components, those of the images given here.

    There are fewer components where there are fewer images or values.
    """
    pixels = images.reshape(len(images), -1)
    pca = PCA(min(num_components, *pixels.shape), random_state=0).fit(pixels)
    return lambda others: pca.transform(others.reshape(len(others), -1))


def frechet_distance(features: Float[np.ndarray, "n d"], others: Float[np.ndarray, "m d"]) -> float:
    """Returns the squared Frechet distance |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of Gaussians fitted to two sets.

    In float64; the root is taken of symmetric matrices alone, so that it is real. Raises UserError for features that
    are not finite and for sets of fewer than two.
    """
    moments = []
    for values in (features, others):
        values = np.asarray(values, np.float64)
        if len(values) < 2 or not np.isfinite(values).all():
            raise UserError(f"A Frechet distance takes at least two rows of finite features, not {values.shape}.")
        moments.append((values.mean(0), np.atleast_2d(np.cov(values, rowvar=False))))
    (mean, covariance), (other_mean, other_covariance) = moments
    scale, axes = np.linalg.eigh(covariance)
    root = axes * np.sqrt(np.maximum(scale, 0)) @ axes.T
    overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other_covariance @ root), 0)).sum()
    distance = np.square(mean - other_mean).sum() + np.trace(covariance) + np.trace(other_covariance) - 2 * overlap
    return float(distance)
