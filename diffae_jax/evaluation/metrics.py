"""Distances between pairs of images on the scale [0, 1] (Table 1), and between sets of images."""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from diffae_jax.runtime.errors import UserError

ROWS = 8192  # rows of features that are converted to float64 at a time


def _unit(images: Float[np.ndarray, "n *shape"]) -> Float64[np.ndarray, "n *shape"]:
    return (np.asarray(images, np.float64) + 1) / 2


def mse(images: Float[np.ndarray, "n *shape"], others: Float[np.ndarray, "n *shape"]) -> Float[np.ndarray, "n"]:
    """Returns the mean squared error of each pair of images.

    Args:
        images: Images [N, *spatial, C] in [-1, 1].
        others: The images to compare with, of the same shape and range.

    Returns:
        The errors [N] in float64, on the scale [0, 1].

    Source: Table 1.
    """
    difference = _unit(images) - _unit(others)
    return np.square(difference).reshape(len(difference), -1).mean(-1)


def psnr(images: Float[np.ndarray, "n *shape"], others: Float[np.ndarray, "n *shape"]) -> Float[np.ndarray, "n"]:
    """Returns the peak signal-to-noise ratio of each pair of images.

    Args:
        images: Images [N, *spatial, C] in [-1, 1].
        others: The images to compare with, of the same shape and range.

    Returns:
        The ratios [N] in decibels; infinity for equal images.
    """
    with np.errstate(divide="ignore"):
        return -10 * np.log10(mse(images, others))


def ssim(images: Float[np.ndarray, "n *shape"], others: Float[np.ndarray, "n *shape"]) -> Float[np.ndarray, "n"]:
    """Returns the structural similarity of each pair of images.

    Local moments use a Gaussian window of 11 values per axis with sigma 1.5, and zeros beyond the
    border, as in the official code. The similarity is averaged over positions and channels.

    Args:
        images: Images [N, *spatial, C] in [-1, 1], with any number of spatial axes and channels.
        others: The images to compare with, of the same shape and range.

    Returns:
        The similarities [N]; 1 for equal images.

    Source: Table 1.
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
    """Fits principal components to the pixels of images.

    Args:
        images: The images [N, *spatial, C] that the components are fitted to.
        num_components: The number of components, reduced if there are fewer images or pixels.

    Returns:
        A function that maps images [M, *spatial, C] to their components [M, D].
    """
    from sklearn.decomposition import PCA

    pixels = images.reshape(len(images), -1)
    pca = PCA(min(num_components, *pixels.shape), random_state=0).fit(pixels)
    return lambda others: pca.transform(others.reshape(len(others), -1))


class Moments:
    """Count, mean and covariance of features that are added in batches, in float64.

    The features need not fit into memory together. Batches are merged by the formula for the
    covariance of a union, so a mean far from zero loses no digits.

    Args:
        dim: The number of dimensions of a feature vector.
    """

    def __init__(self, dim: int):
        self.count = 0
        self.mean = np.zeros(dim)
        self.scatter = np.zeros((dim, dim))  # sum of outer products of deviations from the mean

    def add(self, features: Float[np.ndarray, "n d"]) -> None:
        """Adds a batch of features.

        Args:
            features: Feature vectors [N, D]; N may be 0.

        Raises:
            UserError: If a value is not finite, or the features have a different dimension.
        """
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise UserError(f"Features must have the shape [N, {len(self.mean)}], not {features.shape}.")
        broken = _broken_rows(features)
        if broken:
            raise UserError(f"Features must be finite: {broken:,} of {len(features):,} rows contain NaN or infinity.")
        if not len(features):
            return
        batch = Moments(features.shape[1])
        with np.errstate(over="ignore", invalid="ignore"):  # frechet_distance reports an overflow
            batch.count, batch.mean = len(features), features.mean(0)
            batch.scatter = (features - batch.mean).T @ (features - batch.mean)
            self.merge(batch)

    def merge(self, other: "Moments") -> None:
        """Adds all features of another `Moments`.

        Args:
            other: Moments of the same dimension.
        """
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
        """The sample covariance, with divisor N - 1.

        Raises:
            UserError: If there are fewer than two rows of features.
        """
        if self.count < 2:
            raise UserError(f"A covariance needs at least two rows of features, not {self.count}.")
        return self.scatter / (self.count - 1)


def _broken_rows(features: Float[np.ndarray, "n d"]) -> int:
    """Returns how many rows contain NaN or infinity."""
    return int((~np.isfinite(features).all(1)).sum())


def _moments(features: Float[np.ndarray, "n d"] | Moments) -> Moments:
    moments, broken = features, 0
    if not isinstance(features, Moments):
        moments, broken = Moments(features.shape[1]), _broken_rows(features)
        for start in range(0, 0 if broken else len(features), ROWS):
            moments.add(features[start : start + ROWS])
    if broken or moments.count < 2:
        given = f"{len(features):,}, of which {broken:,} contain NaN or infinity" if broken else f"{moments.count}"
        fix = "Check the network that computed them" if broken else "Use more images"
        raise UserError(f"A Frechet distance needs at least two rows of finite features, not {given}. {fix}.")
    return moments


def frechet_distance(
    features: Float[np.ndarray, "n d"] | Moments, others: Float[np.ndarray, "m other"] | Moments
) -> float:
    """Returns the squared Frechet distance between Gaussians fitted to two sets of features.

    The distance is |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)), in float64. Matrix roots are only
    taken of symmetric matrices, so the result is real.

    Args:
        features: Feature vectors [N, D], or their moments.
        others: Feature vectors [M, D] of the other set, or their moments.

    Returns:
        The distance. In the features of the original Inception network it is the FID.

    Raises:
        UserError: If features are not finite, have different dimensions or are fewer than two, or
            if the distance exceeds the range of float64.

    Source: Heusel et al., 2017.
    """
    first, second = _moments(features), _moments(others)
    if len(first.mean) != len(second.mean):
        raise UserError(f"Features of {len(first.mean)} and of {len(second.mean)} dimensions cannot be compared.")
    distance = np.nan
    with np.errstate(over="ignore", invalid="ignore"), contextlib.suppress(np.linalg.LinAlgError):
        covariance, other_covariance = first.covariance, second.covariance
        has_few_rows = max(first.count, second.count) < len(first.mean)
        if has_few_rows and not isinstance(features, Moments) and not isinstance(others, Moments):
            root_trace = _root_trace_of_few(_centered(features, first), _centered(others, second))
        else:
            root_trace = _root_trace(covariance, other_covariance)
        distance = np.square(first.mean - second.mean).sum() - 2 * root_trace
        distance += np.trace(covariance) + np.trace(other_covariance)
    if not np.isfinite(distance):
        largest = max(np.abs(moments.mean).max() for moments in (first, second))
        raise UserError(
            f"The Frechet distance exceeds the range of float64 (feature means up to {largest:.1e}). Check whether a "
            f"network diverged."
        )
    return float(distance)


def _root_trace(covariance: Float64[np.ndarray, "d d"], other: Float64[np.ndarray, "d d"]) -> float:
    """Returns tr((C C')^(1/2))."""
    scale, axes = np.linalg.eigh(covariance)
    root = axes * np.sqrt(np.maximum(scale, 0)) @ axes.T
    return np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other @ root), 0)).sum()


def _root_trace_of_few(rows: Float64[np.ndarray, "n d"], others: Float64[np.ndarray, "m d"]) -> float:
    """Returns tr((C C')^(1/2)) for C = rows^T rows and C' = others^T others.

    It is the sum of the singular values of an n x m matrix: the nonzero eigenvalues of a product
    do not depend on the order of its factors.
    """
    return np.linalg.svd(rows @ others.T, compute_uv=False).sum()


def _centered(features: Float[np.ndarray, "n d"], moments: Moments) -> Float64[np.ndarray, "n d"]:
    return (np.asarray(features, np.float64) - moments.mean) / np.sqrt(moments.count - 1)


class KernelDistance(NamedTuple):
    """Mean and standard deviation of the kernel distance over random subsets."""

    mean: float
    std: float


def kernel_distance(
    features: Float[np.ndarray, "n d"],
    others: Float[np.ndarray, "m d"],
    *,
    num_subsets: int = 100,
    subset_size: int | None = None,
    seed: int = 0,
) -> KernelDistance:
    """Returns the unbiased squared maximum mean discrepancy of two sets of features.

    It is averaged over random subsets. The kernel is (x.y / d + 1)^3, in float64.

    Args:
        features: Feature vectors [N, D].
        others: Feature vectors [M, D] of the other set.
        num_subsets: The number of subsets. If a subset contains all rows, only one is used.
        subset_size: The number of rows in a subset. By default 1,000, or all rows if fewer.
        seed: The seed that selects the subsets.

    Returns:
        Mean and standard deviation over the subsets. In the features of the original Inception
        network the mean is the KID.

    Raises:
        UserError: If features are not finite, if a subset has fewer than two rows, or if
            `subset_size` exceeds the number of rows.

    Source: Binkowski et al., 2018.
    """
    sets = [np.asarray(values, np.float64) for values in (features, others)]
    broken = sum(map(_broken_rows, sets))
    if broken:
        raise UserError(
            f"A kernel distance needs finite features, but {broken:,} rows contain NaN or infinity. Check the network "
            f"that computed them."
        )
    smallest = min(map(len, sets))
    size = min(1000, smallest) if subset_size is None else subset_size
    if not 2 <= size <= smallest:
        counts = " and ".join(f"{len(values):,}" for values in sets)
        raise UserError(
            f"subset_size must be at least 2 and at most the number of images in each set, not {size:,} for sets of "
            f"{counts}. Use more images or a smaller subset_size."
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
    """Returns the unbiased squared maximum mean discrepancy, which compares no row with itself."""
    n, d = x.shape

    def kernel(a, b):
        return (a @ b.T / d + 1) ** 3

    within = sum(k.sum() - np.trace(k) for k in (kernel(x, x), kernel(y, y)))
    return within / (n * (n - 1)) - 2 * kernel(x, y).mean()
