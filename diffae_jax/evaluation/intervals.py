"""95 % intervals: how far a number would vary with a different set of images of the same kind."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from diffae_jax.evaluation.results import Figure

RESAMPLES = 1000
MIN_ROWS = 2  # fewer images give no interval
NORMAL = 1.959964  # 95 % of a normal distribution lie within this many standard deviations


def mean_figure(metric: str, row: str, column: str, values: Float[np.ndarray, "n"], **more: Any) -> Figure:
    """Returns the mean of one number per image, with its bootstrap interval over the images."""
    values = np.asarray(values, np.float64)
    low, high = percentiles(np.mean, values)
    return Figure(metric, row, column, float(values.mean()), len(values), low, high, **more)


def share_figure(metric: str, row: str, column: str, hits: Bool[np.ndarray, "n"], **more: Any) -> Figure:
    """Returns the share of images that are hits, with its Wilson interval.

    With 0 or 100 % hits a bootstrap interval would collapse to a point.
    """
    from scipy.stats import binomtest

    count = len(hits)
    interval = binomtest(int(hits.sum()), count).proportion_ci(0.95, method="wilson")
    return Figure(metric, row, column, float(hits.mean()), count, float(interval.low), float(interval.high), **more)


def percentiles(
    statistic: Callable[..., float], *arrays: np.ndarray, resamples: int = RESAMPLES
) -> tuple[float | None, float | None]:
    """Returns the bootstrap interval of a statistic. Rows of all arrays are drawn together.

    Returns (None, None) for fewer than two rows. Resamples with an undefined statistic are
    skipped: AUROC is NaN if only one class is drawn.
    """
    count = len(arrays[0])
    if count < MIN_ROWS:
        return None, None
    random = np.random.default_rng(0)
    drawn = (random.integers(count, size=count) for _ in range(resamples))
    values = np.array([statistic(*(array[rows] for array in arrays)) for rows in drawn])
    if np.isnan(values).all():
        return None, None
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def spread_of_distance(
    distance: Callable[[np.ndarray, np.ndarray], float], features: np.ndarray, others: np.ndarray, resamples: int
) -> float:
    """Returns the standard deviation of a distance between two sets over bootstrap resamples.

    Resampled sets have fewer distinct images, so their distances are biased upward. Their standard
    deviation can be used, but their percentiles cannot.
    """
    random = np.random.default_rng(0)
    values = [
        distance(*(rows[random.integers(len(rows), size=len(rows))] for rows in (features, others)))
        for _ in range(resamples)
    ]
    return float(np.std(values, ddof=1))
