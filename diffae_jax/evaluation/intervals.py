"""95 % intervals by the bootstrap: how far a number would move with other images of the same kind."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from diffae_jax.evaluation.results import Figure

RESAMPLES = 1000
FEWEST = 2  # images, below which nothing can be said
NORMAL = 1.959964  # deviations to either side that hold 95 % of a normal distribution


def mean_figure(metric: str, row: str, column: str, values: Float[np.ndarray, "n"], **more: Any) -> Figure:
    """Returns the mean of a number per image, with the percentiles of the means of resampled images."""
    values = np.asarray(values, np.float64)
    low, high = percentiles(np.mean, values)
    return Figure(metric, row, column, float(values.mean()), len(values), low, high, **more)


def share_figure(metric: str, row: str, column: str, hits: Bool[np.ndarray, "n"], **more: Any) -> Figure:
    """Returns the share of images of which something is true, with the interval of Wilson.

    The bootstrap of nothing, or of all, has no width, however few images there are.
    """
    from scipy.stats import binomtest

    count = len(hits)
    interval = binomtest(int(hits.sum()), count).proportion_ci(0.95, method="wilson")
    return Figure(metric, row, column, float(hits.mean()), count, float(interval.low), float(interval.high), **more)


def percentiles(
    statistic: Callable[..., float], *arrays: np.ndarray, resamples: int = RESAMPLES
) -> tuple[float | None, float | None]:
    """Returns the interval of a statistic of arrays whose rows belong together; none for fewer than two rows.

    Resamples for which the statistic is not defined (NaN, as AUROC of one class) are left out.
    """
    count = len(arrays[0])
    if count < FEWEST:
        return None, None
    random = np.random.default_rng(0)
    chosen = (random.integers(count, size=count) for _ in range(resamples))
    values = np.array([statistic(*(array[rows] for array in arrays)) for rows in chosen])
    if np.isnan(values).all():
        return None, None
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def spread_of_distance(
    distance: Callable[[np.ndarray, np.ndarray], float], features: np.ndarray, others: np.ndarray, resamples: int
) -> float:
    """Returns the deviation of a distance between two sets over resampled sets.

    The distance of resampled sets is greater than that of the sets, for they have fewer different images: so their
    deviation tells something, and their percentiles do not.
    """
    random = np.random.default_rng(0)
    values = [
        distance(*(rows[random.integers(len(rows), size=len(rows))] for rows in (features, others)))
        for _ in range(resamples)
    ]
    return float(np.std(values, ddof=1))
