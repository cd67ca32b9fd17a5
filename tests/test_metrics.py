"""Metrics against sums written out, in float64."""

import itertools

import numpy as np
import pytest

from diffae_jax.evaluation.metrics import mse, psnr, ssim


def images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def test_mse_and_psnr_are_those_of_the_scale_from_0_to_1():
    black, white, grey = (np.full((1, 2, 2, 1), value, np.float32) for value in (-1, 1, 0))
    assert mse(black, white) == 1
    assert mse(black, grey) == 0.25
    assert psnr(black, white) == 0
    assert psnr(black, grey) == pytest.approx(10 * np.log10(4))
    assert psnr(grey, grey) == np.inf


def ssim_written_out(x, y):
    """One channel of one image, position by position."""
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()
    values = []
    for position in itertools.product(*map(range, x.shape)):
        sums = np.zeros(5)
        for offset in itertools.product(range(11), repeat=x.ndim):
            place = tuple(p + o - 5 for p, o in zip(position, offset, strict=True))
            if all(0 <= p < n for p, n in zip(place, x.shape, strict=True)):
                a, b = x[place], y[place]
                sums += np.prod(taps[list(offset)]) * np.array([a, b, a * a, b * b, a * b])
        mean_x, mean_y, xx, yy, xy = sums
        c1, c2 = 0.01**2, 0.03**2
        numerator = (2 * mean_x * mean_y + c1) * (2 * (xy - mean_x * mean_y) + c2)
        values.append(numerator / (mean_x**2 + mean_y**2 + c1) / (xx - mean_x**2 + yy - mean_y**2 + c2))
    return np.mean(values)


@pytest.mark.parametrize("shape", [(9, 1), (7, 6, 2), (3, 4, 3, 1)])
def test_ssim_of_any_rank_and_channels(shape):
    x, y = images(2, *shape), images(2, *shape, seed=1)
    unit_x, unit_y = (x.astype(np.float64) + 1) / 2, (y.astype(np.float64) + 1) / 2
    expected = [
        np.mean([ssim_written_out(unit_x[i, ..., c], unit_y[i, ..., c]) for c in range(shape[-1])]) for i in range(2)
    ]
    np.testing.assert_allclose(ssim(x, y), expected, rtol=1e-9)
    np.testing.assert_allclose(ssim(x, x), 1)
