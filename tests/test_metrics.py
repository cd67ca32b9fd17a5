"""Metrics against sums written out, in float64."""

import itertools

import numpy as np
import pytest
import scipy.linalg

from diffae_jax.data.transforms import to_uint8
from diffae_jax.errors import UserError
from diffae_jax.evaluation import metrics
from diffae_jax.evaluation.figures import image_grid, to_pil
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


def test_frechet_distance_is_that_of_the_general_matrix_root():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6)) + 2, rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6))
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(sum(covariances) - 2 * root)
    np.testing.assert_allclose(metrics.frechet_distance(a, b), expected, rtol=1e-9)
    np.testing.assert_allclose(metrics.frechet_distance(a, a + 3), 6 * 9, rtol=1e-9)
    np.testing.assert_allclose(metrics.frechet_distance(a - a.mean(0), 2 * (a - a.mean(0))), np.trace(covariances[0]))


@pytest.mark.parametrize("bad", [np.ones((1, 3)), np.full((4, 3), np.nan)], ids=["one row", "not finite"])
def test_frechet_distance_refuses_what_has_no_gaussian(bad):
    with pytest.raises(UserError, match="at least two rows of finite features"):
        metrics.frechet_distance(np.random.default_rng(0).normal(size=(9, 3)), bad)


def test_principal_components_are_the_strongest_directions_of_the_first_images():
    first = np.random.default_rng(0).normal(size=(50, 4, 3, 1)).astype(np.float32)
    others = first[:7] + 1
    flat = first.reshape(50, -1).astype(np.float64)
    directions = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:5]
    expected = (others.reshape(7, -1) - flat.mean(0)) @ directions.T
    found = metrics.principal_components(first, 5)(others)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-3, atol=1e-4)


def test_image_grid_lays_images_out_in_rows():
    grid = np.asarray(image_grid(np.stack([np.full((2, 2, 1), value, np.float32) for value in (-1, 0, 1, -1, 1)])))
    assert grid.shape == (5, 8)  # two rows of three, a pixel between
    assert [grid[0, 0], grid[0, 3], grid[0, 6], grid[3, 0], grid[3, 3]] == [0, 128, 255, 0, 255]
    assert (grid[2] == 255).all()
    assert (grid[3:, 6:] == 255).all(), "places left over are white"


@pytest.mark.parametrize(
    ("shape", "mode", "size"),
    [((4, 6, 1), "L", (6, 4)), ((4, 6, 3), "RGB", (6, 4)), ((9, 4, 6, 1), "L", (6, 4)), ((8, 2), "L", (8, 2))],
)
def test_to_pil_shows_images_of_every_rank(shape, mode, size):
    images = np.linspace(-1, 1, 2 * np.prod(shape)).reshape(2, *shape).astype(np.float32)
    pictures = to_pil(images)
    assert [(picture.mode, picture.size) for picture in pictures] == [(mode, size)] * 2
    if len(shape) == 3:
        np.testing.assert_array_equal(np.asarray(pictures[1]).reshape(shape), to_uint8(images[1]))
