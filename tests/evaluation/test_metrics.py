"""Metrics against explicit sums in float64."""

import itertools

import numpy as np
import pytest
import scipy.linalg
from skimage.metrics import structural_similarity
from sklearn.metrics import average_precision_score, roc_auc_score

from diffae_jax.evaluation import metrics
from diffae_jax.evaluation.metrics import mse, psnr, ssim
from diffae_jax.evaluation.programs import labels
from diffae_jax.runtime.errors import UserError


def images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def test_mse_and_psnr_are_those_of_the_scale_from_0_to_1():
    black, white, gray = (np.full((1, 2, 2, 1), value, np.float32) for value in (-1, 1, 0))
    assert mse(black, white) == 1
    assert mse(black, gray) == 0.25
    assert psnr(black, white) == 0
    assert psnr(black, gray) == pytest.approx(10 * np.log10(4))
    assert psnr(gray, gray) == np.inf


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


def test_ssim_is_that_of_scikit_image_where_the_border_is_zero():
    """scikit-image mirrors the border and ours pads zeros, so both agree inside a zero border."""
    rng = np.random.default_rng(0)
    x, y = np.zeros((2, 40, 36)), np.zeros((2, 40, 36))
    x[:, 6:-6, 6:-6] = rng.uniform(size=(2, 28, 24))
    y[:, 6:-6, 6:-6] = np.clip(x[:, 6:-6, 6:-6] + rng.normal(0, 0.1, (2, 28, 24)), 0, 1)
    settings = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, full=True)
    expected = [structural_similarity(*pair, **settings)[1].mean() for pair in zip(x, y, strict=True)]
    assert 0.5 < min(expected) < max(expected) < 0.99
    np.testing.assert_allclose(ssim(2 * x[..., None] - 1, 2 * y[..., None] - 1), expected, rtol=1e-9)


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


@pytest.mark.parametrize(("rows", "others"), [(8, 12), (39, 5)])
def test_frechet_distance_of_fewer_rows_than_dimensions_is_that_of_their_moments(rows, others):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(rows, 40)) + 1, rng.normal(size=(others, 40)) * np.linspace(0, 3, 40)
    moments = metrics.Moments(40), metrics.Moments(40)
    for moment, values in zip(moments, (a, b), strict=True):
        moment.add(values)
    assert metrics.frechet_distance(a, b) == pytest.approx(metrics.frechet_distance(*moments), rel=1e-6)
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("bad", [np.ones((1, 3)), np.full((4, 3), np.nan)], ids=["one row", "not finite"])
def test_frechet_distance_refuses_what_has_no_gaussian(bad):
    with pytest.raises(UserError, match="at least two rows of finite features"):
        metrics.frechet_distance(np.random.default_rng(0).normal(size=(9, 3)), bad)


def test_frechet_distance_of_gaussians_known_in_closed_form():
    rng = np.random.default_rng(0)
    white = rng.normal(size=(400, 5))
    white -= white.mean(0)
    white = white @ np.linalg.inv(np.linalg.cholesky(np.cov(white, rowvar=False))).T  # its covariance is one
    axes = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    first, second = np.array([1, 2, 3, 4, 5.0]), np.array([2, 1, 0.5, 0, 7.0])
    shift = np.array([3, 0, -1, 0, 0.5])
    a, b = white * first @ axes, (white * second + shift) @ axes  # commuting covariances, one of them singular
    expected = np.square(shift).sum() + np.square(first - second).sum()
    np.testing.assert_allclose(metrics.frechet_distance(a, b), expected, rtol=1e-12)
    np.testing.assert_allclose(metrics.frechet_distance(b, a), expected, rtol=1e-7)


def in_batches(values, sizes):
    moments = metrics.Moments(values.shape[1])
    for batch in np.split(values, np.cumsum(sizes)):
        moments.add(batch)
    return moments


@pytest.mark.parametrize("offset", [0, 1e6])
def test_moments_of_batches_are_those_of_all(offset):
    values = np.random.default_rng(0).normal(size=(1000, 6)) @ np.random.default_rng(1).normal(size=(6, 6)) + offset
    moments, rest = in_batches(values[:700], [1, 0, 300, 2]), in_batches(values[700:], [200])
    moments.merge(rest)
    moments.merge(metrics.Moments(6))
    assert moments.count == 1000
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(moments.covariance, np.cov(values, rowvar=False), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(metrics.frechet_distance(moments, values + 2), 24, rtol=1e-9, atol=1e-7)
    np.testing.assert_allclose(metrics.frechet_distance(values, moments), 0, atol=1e-7)


def test_moments_of_float32_are_taken_in_float64():
    values = (np.random.default_rng(0).normal(size=(5000, 3)) + 3000).astype(np.float32)
    moments = in_batches(values, [64] * 70)
    np.testing.assert_allclose(
        moments.covariance, np.cov(values.astype(np.float64), rowvar=False), rtol=1e-10, atol=1e-12
    )


def test_moments_refuse_what_would_spoil_them():
    moments = metrics.Moments(3)
    with pytest.raises(UserError, match="2 of 4 rows contain NaN or infinity"):
        moments.add(np.array([[1, 2, 3], [1, np.nan, 3], [0, 0, 0], [np.inf, 0, np.nan]]))
    with pytest.raises(UserError, match=r"must have the shape \[N, 3\], not \(4, 2\)"):
        moments.add(np.ones((4, 2)))
    assert moments.count == 0
    moments.add(np.ones((1, 3)))
    with pytest.raises(UserError, match="at least two rows of features, not 1"):
        _ = moments.covariance
    with pytest.raises(UserError, match="at least two rows of finite features, not 1"):
        metrics.frechet_distance(moments, np.ones((3, 3)))


def test_frechet_distance_reports_what_is_wrong():
    rng = np.random.default_rng(0)
    good = rng.normal(size=(9, 3))
    broken = good.copy()
    broken[2, 1] = np.nan
    with pytest.raises(UserError, match="not 9, of which 1 contain NaN or infinity"):
        metrics.frechet_distance(good, broken)
    with pytest.raises(UserError, match="of 3 and of 2 dimensions"):
        metrics.frechet_distance(good, good[:, :2])
    for scale in (1e155, 1e300):
        with pytest.raises(UserError, match=r"distance exceeds the range of float64 \(feature means up to"):
            metrics.frechet_distance(good, good * scale)


def kernel_distance_written_out(x, y):
    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    n = len(x)
    pairs = [(i, j) for i in range(n) for j in range(n)]
    within = sum(kernel(v[i], v[j]) for v in (x, y) for i, j in pairs if i != j) / (n * (n - 1))
    return within - 2 * sum(kernel(x[i], y[j]) for i, j in pairs) / n**2


def test_kernel_distance_is_that_of_a_double_loop():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 4)), rng.normal(0.5, 2, size=(12, 4))
    found = metrics.kernel_distance(x, y)
    np.testing.assert_allclose(found, (kernel_distance_written_out(x, y), 0), rtol=1e-12)
    many = metrics.kernel_distance(x, y[:9], num_subsets=30, subset_size=5, seed=3)
    rng = np.random.default_rng(3)
    drawn = [[v[rng.choice(len(v), 5, replace=False)] for v in (x, y[:9])] for _ in range(30)]
    each = [kernel_distance_written_out(*subset) for subset in drawn]
    np.testing.assert_allclose(many, (np.mean(each), np.std(each)), rtol=1e-12)
    assert metrics.kernel_distance(x, y, subset_size=5) == metrics.kernel_distance(x, y, subset_size=5)
    assert metrics.kernel_distance(x, y[:9]).std > 0


def test_kernel_distance_has_no_bias():
    rng = np.random.default_rng(0)
    same = [metrics.kernel_distance(*rng.normal(size=(2, 20, 3))).mean for _ in range(400)]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(400)
    assert min(same) < 0


def test_kernel_distance_of_float32_is_taken_in_float64():
    x, y = (np.random.default_rng(seed).normal(50, 1, size=(40, 8)).astype(np.float32) for seed in (0, 1))
    wide = metrics.kernel_distance(x.astype(np.float64), y.astype(np.float64))
    assert metrics.kernel_distance(x, y) == wide


@pytest.mark.parametrize(
    ("sizes", "subset_size", "pattern"),
    [
        ((5, 9), 6, r"not 6 for sets of 5 and 9\. Use more images or a smaller"),
        ((5, 1), None, "not 1 for sets of 5 and 1"),
        ((5, 9), 1, "at least 2"),
    ],
)
def test_kernel_distance_refuses_too_few_images(sizes, subset_size, pattern):
    with pytest.raises(UserError, match=pattern):
        metrics.kernel_distance(*(np.ones((n, 3)) for n in sizes), subset_size=subset_size)


def test_kernel_distance_refuses_broken_features():
    broken = np.ones((5, 3))
    broken[1:3] = np.nan
    with pytest.raises(UserError, match="finite features, but 2 rows"):
        metrics.kernel_distance(np.ones((5, 3)), broken)


def test_principal_components_are_the_strongest_directions_of_the_first_images():
    first = np.random.default_rng(0).normal(size=(50, 4, 3, 1)).astype(np.float32)
    others = first[:7] + 1
    flat = first.reshape(50, -1).astype(np.float64)
    directions = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:5]
    expected = (others.reshape(7, -1) - flat.mean(0)) @ directions.T
    found = metrics.principal_components(first, 5)(others)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-3, atol=1e-4)


def test_scores_of_classes_are_those_of_scikit_learn_with_ties():
    random = np.random.default_rng(0)
    classes = random.integers(4, size=200)
    is_class = classes[:, None] == np.arange(4)
    scores = (random.normal(size=(200, 4)) + is_class).round(1)  # many ties
    for ours, theirs in ((labels.auroc, roc_auc_score), (labels.average_precision, average_precision_score)):
        expected = np.mean([theirs(*columns) for columns in zip(is_class.T, scores.T, strict=True)])
        assert ours(is_class, scores) == pytest.approx(expected, abs=1e-12)
        assert np.isnan(ours(is_class & False, scores))
        assert np.isnan(ours(is_class | True, scores))
