"""How close two images are, on the scale [0, 1], as the paper measures it (Table 1), and two sets of images."""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from diffae_jax.runtime.errors import UserError


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
    from scipy.ndimage import gaussian_filter

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
    from sklearn.decomposition import PCA

    pixels = images.reshape(len(images), -1)
    pca = PCA(min(num_components, *pixels.shape), random_state=0).fit(pixels)
    return lambda others: pca.transform(others.reshape(len(others), -1))


ROWS = 8192  # of features that are in float64 at a time


class Moments:
    """Number, mean and covariance of features that come in batches, in float64: they need not fit into memory.

    Batches are merged by the formula for the covariance of a union, so that a mean far from zero costs no digits.
    """

    def __init__(self, dim: int):
        self.count = 0
        self.mean = np.zeros(dim)
        self.scatter = np.zeros((dim, dim))  # sum of the outer products of what deviates from the mean

    def add(self, features: Float[np.ndarray, "n d"]) -> None:
        """Takes in some more features. Raises UserError where some are not finite or of another dimension."""
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise UserError(f"Features of {len(self.mean)} dimensions are [N, {len(self.mean)}], not {features.shape}.")
        broken = _broken_rows(features)
        if broken:
            raise UserError(f"Features have to be finite: {broken:,} of {len(features):,} rows hold NaN or infinity.")
        if not len(features):
            return
        batch = Moments(features.shape[1])
        with np.errstate(over="ignore", invalid="ignore"):  # told where a distance is taken
            batch.count, batch.mean = len(features), features.mean(0)
            batch.scatter = (features - batch.mean).T @ (features - batch.mean)
            self.merge(batch)

    def merge(self, other: "Moments") -> None:
        """Takes in all that another has taken in."""
        count = self.count + other.count
        if not count:
            return
        difference = other.mean - self.mean
        share = other.count / count
        self.scatter = self.scatter + other.scatter + np.outer(difference, difference) * (self.count * share)
        self.mean = self.mean + difference * share
        self.count = count

    @property
    def covariance(self) -> Float64[np.ndarray, "d d"]:
        """The sample covariance, as of n - 1; of fewer than two there is none."""
        if self.count < 2:
            raise UserError(f"A covariance takes at least two rows of features, not {self.count}.")
        return self.scatter / (self.count - 1)


def _broken_rows(features: Float[np.ndarray, "n d"]) -> int:
    """Returns how many rows hold NaN or infinity."""
    return int((~np.isfinite(features).all(1)).sum())


def _moments(features: Float[np.ndarray, "n d"] | Moments) -> Moments:
    moments, broken = features, 0
    if not isinstance(features, Moments):
        moments, broken = Moments(features.shape[1]), _broken_rows(features)
        for start in range(0, 0 if broken else len(features), ROWS):
            moments.add(features[start : start + ROWS])
    if broken or moments.count < 2:
        told = f"{len(features):,}, of which {broken:,} hold NaN or infinity" if broken else f"{moments.count}"
        raise UserError(f"A Frechet distance takes at least two rows of finite features, not {told}.")
    return moments


def frechet_distance(
    features: Float[np.ndarray, "n d"] | Moments, others: Float[np.ndarray, "m other"] | Moments
) -> float:
    """Returns the squared Frechet distance |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of Gaussians fitted to two sets.

    In float64; the root is taken of symmetric matrices alone, so that it is real. In the features of the original
    Inception this is FID (Heusel et al., 2017). Raises UserError for features that are not finite, are of other
    dimensions or fewer than two, and for a distance beyond what float64 holds.
    """
    first, second = _moments(features), _moments(others)
    if len(first.mean) != len(second.mean):
        raise UserError(f"Features of {len(first.mean)} and of {len(second.mean)} dimensions cannot be compared.")
    distance = np.nan
    with np.errstate(over="ignore", invalid="ignore"), contextlib.suppress(np.linalg.LinAlgError):
        covariance, other_covariance = first.covariance, second.covariance
        scale, axes = np.linalg.eigh(covariance)
        root = axes * np.sqrt(np.maximum(scale, 0)) @ axes.T
        overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other_covariance @ root), 0)).sum()
        distance = np.square(first.mean - second.mean).sum() - 2 * overlap
        distance += np.trace(covariance) + np.trace(other_covariance)
    if not np.isfinite(distance):
        largest = max(np.abs(moments.mean).max() for moments in (first, second))
        raise UserError(
            f"The Frechet distance is {distance}: features with means up to {largest:.1e} and such variances are more "
            f"than float64 holds, so look for a network that has diverged."
        )
    return float(distance)


class KernelDistance(NamedTuple):
    """Mean and standard deviation over subsets."""

    mean: float
    std: float


def kernel_distance(
    features: Float[np.ndarray, "n d"],
    others: Float[np.ndarray, "m d"],
    *,
    num_subsets: int = 100,
    subset_size: int | None = None,  # by default 1,000, or all where there are fewer
    seed: int = 0,
) -> KernelDistance:
    """Returns the unbiased squared maximum mean discrepancy of subsets, with the kernel (x.y / d + 1)^3, in float64.

    In the features of the original Inception this is KID (Binkowski et al., 2018). Where a subset is all of both sets
    there is one alone, and no deviation. Raises UserError for features that are not finite, for a subset of fewer than
    two, and for fewer features than a subset takes.
    """
    sets = [np.asarray(values, np.float64) for values in (features, others)]
    broken = sum(map(_broken_rows, sets))
    if broken:
        raise UserError(f"A kernel distance takes finite features: {broken:,} rows hold NaN or infinity.")
    fewest = min(map(len, sets))
    size = min(1000, fewest) if subset_size is None else subset_size
    if not 2 <= size <= fewest:
        counts = " and ".join(f"{len(values):,}" for values in sets)
        raise UserError(
            f"A kernel distance takes subsets of at least 2 and at most as many images as there are, "
            f"not {size:,} of {counts}: give more images or a smaller subset_size."
        )
    if size == max(map(len, sets)):
        num_subsets = 1
    rng = np.random.default_rng(seed)
    distances = [
        _squared_discrepancy(*(values[rng.choice(len(values), size, replace=False)] for values in sets))
        for _ in range(num_subsets)
    ]
    return KernelDistance(float(np.mean(distances)), float(np.std(distances)))


def _squared_discrepancy(x: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, "n d"]) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy: no value is compared with itself."""
    n, d = x.shape

    def kernel(a, b):
        return (a @ b.T / d + 1) ** 3

    within = sum(k.sum() - np.trace(k) for k in (kernel(x, x), kernel(y, y)))
    return within / (n * (n - 1)) - 2 * kernel(x, y).mean()
