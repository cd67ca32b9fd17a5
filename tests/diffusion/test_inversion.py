"""Inversions: exact ones against what decodes again, Gaussian ones against N(0, I)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffae_jax.diffusion.inversion import INVERSIONS, exact_inversion, fixed_point, report
from diffae_jax.diffusion.loop import walk
from diffae_jax.diffusion.process import Process
from diffae_jax.diffusion.samplers import DDIM, DDIM_INVERSION, HEUN

GAUSSIAN = INVERSIONS["gaussian"].sampler


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def weak(x, t):
    """A noise predictor smooth enough for steps that can be inverted."""
    return 0.3 * jnp.tanh(2 * x + jnp.roll(x, 1, -1)) + 0.1 * jnp.cos(t / 150.0)


def test_fixed_point_of_a_linear_function_is_that_of_the_linear_system():
    matrix, offset = 0.4 * normal(5, 5) / np.sqrt(5), normal(3, 5)
    expected = offset @ np.linalg.inv(np.eye(5) - matrix)
    with jax.enable_x64(True):
        found = fixed_point(lambda x: x @ matrix + offset, jnp.zeros((3, 5)), tolerance=1e-11, max_calls=60)
        found = jax.tree.map(np.asarray, found)
    np.testing.assert_allclose(found.x, expected, atol=1e-10)
    assert (found.residual <= 1e-11).all()


def test_fixed_point_in_one_unknown_needs_no_more_calls_than_the_secant_method():
    with jax.enable_x64(True):
        found = fixed_point(lambda x: jnp.cos(x), jnp.ones((1, 1)), tolerance=1e-12, max_calls=60)
    assert found.x[0, 0] == pytest.approx(0.7390851332151607, abs=1e-12)  # the Dottie number
    assert found.num_calls[0] <= 8, "plain iteration needs some seventy"


def test_samples_end_alone_and_those_without_a_solution_end_with_their_residual():
    def function(x):  # the first row has no solution, the second one is there at once, the third one needs calls
        return jnp.stack([x[0] + 1, x[1], jnp.cos(x[2])])

    x = jnp.ones((3, 4))
    together = fixed_point(function, x, tolerance=1e-5, max_calls=10)
    assert together.num_calls.tolist()[1] == 1
    assert 3 <= together.num_calls[0] <= 10
    np.testing.assert_allclose(together.residual[:2], [1, 0], atol=1e-6)
    np.testing.assert_array_equal(together.x[1], x[1])
    alone = fixed_point(jnp.cos, x[2:], tolerance=1e-5, max_calls=10)
    assert alone.num_calls[0] == together.num_calls[2]
    np.testing.assert_array_equal(alone.x[0], together.x[2])


@pytest.mark.parametrize("grid", ["even", "quadratic", "log_snr"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("parameterization", ["eps", "v"])
def test_exact_inversion_decodes_to_the_image(grid, schedule, parameterization):
    process, x_0 = Process(schedule, parameterization), np.clip(normal(3, 4, 2), -1, 1)

    def network(x, t):  # for v, the v that weak noise has
        if parameterization == "eps":
            return weak(x, t)
        abar = jnp.asarray(process.abar)[t]
        return jnp.sqrt(abar) * weak(x, t) - jnp.sqrt(1 - abar) * jnp.tanh(x)

    predict = process.predictor(network, clip=True)
    with jax.enable_x64(True):
        inverter = dataclasses.replace(exact_inversion(1e-10, 200), grid=grid)
        rows = jax.tree.map(double, inverter.rows(process.abar, 20))
        back = jax.tree.map(lambda a: a[::-1], rows)
        state = jax.jit(lambda x: walk(inverter, predict, x, rows))(jnp.asarray(x_0))
        (again,) = jax.jit(lambda x: walk(DDIM, predict, x, back))(state.x)
        inversion = jax.tree.map(np.asarray, report(inverter, 20, state))
    assert inversion.residual.max() < 1e-9
    assert inversion.num_calls.max() < 20 * 40
    assert np.linalg.norm(np.asarray(again) - x_0) < 1e-6 * np.linalg.norm(x_0)


def double(a):
    return jnp.asarray(a, jnp.float64) if a.dtype == jnp.float32 else a


def test_exact_inversion_in_float32_beats_ddim_backwards_by_far():
    process, x_0 = Process("linear"), jnp.asarray(np.clip(normal(8, 4, 2), -1, 1), jnp.float32)
    predict, errors = process.predictor(weak, clip=True), {}
    for name, inverter in (("ddim", DDIM_INVERSION), ("exact", INVERSIONS["exact"].sampler)):
        x_T = walk(inverter, predict, x_0, inverter.rows(process.abar, 10))[0]
        errors[name] = float(jnp.square(walk(DDIM, predict, x_T, DDIM.rows(process.abar, 10))[0] - x_0).mean())
    assert errors["exact"] < 1e-6
    assert errors["ddim"] > 1000 * errors["exact"]


def test_exact_inversion_works_under_vmap_and_refuses_a_gradient_in_one_sentence():
    inverter, process = INVERSIONS["exact"].sampler, Process("linear")
    predict, x_0 = process.predictor(weak, clip=True), jnp.asarray(np.clip(normal(3, 4), -1, 1), jnp.float32)
    rows = inverter.rows(process.abar, 5)
    whole = walk(inverter, predict, x_0, rows)
    each = jax.vmap(lambda x: jax.tree.map(lambda a: a[0], walk(inverter, predict, x[None], rows)))(x_0)
    np.testing.assert_allclose(each.x, whole.x, atol=1e-5)
    with pytest.raises(ValueError, match=r"^The exact inversion has no gradient\. Use .* ddim or gaussian\."):
        jax.grad(lambda x: walk(inverter, predict, x, rows)[0].sum())(x_0)


MU, S = np.array([0.4, -0.2, 0.0, 0.1]), np.array([0.5, 0.05, 0.7, 0.2])


def gaussian_eps(x_t, t):
    """E[eps | x_t] of data N(MU, S^2)."""
    abar = jnp.asarray(Process("linear").abar, jnp.float32)[t]
    return jnp.sqrt(1 - abar) * (x_t - jnp.sqrt(abar) * MU) / (abar * S**2 + 1 - abar)


def test_gaussian_inversion_gives_standard_normal_codes_that_decode_again():
    process, x_0 = Process("linear"), jnp.asarray(MU + S * normal(2000, 4), jnp.float32)
    predict, keys = process.predictor(gaussian_eps, clip=False), jax.random.split(jax.random.key(0), len(x_0))
    x_T = report(GAUSSIAN, 20, walk(GAUSSIAN, predict, x_0, GAUSSIAN.rows(process.abar, 20), keys)).x_T
    five_sigma = 5 / np.sqrt(len(x_0))
    np.testing.assert_allclose(x_T.mean(0), 0, atol=five_sigma + 0.03)  # abar is 0.001 at the last step
    np.testing.assert_allclose(x_T.std(0), 1, atol=five_sigma / np.sqrt(2) + 0.03)
    (again,) = walk(HEUN, predict, x_T, HEUN.rows(process.abar, 20))
    assert float(jnp.sqrt(jnp.square(again - x_0).mean())) < 0.02
    assert GAUSSIAN.num_calls(20) == 38


@pytest.mark.parametrize("name", INVERSIONS)
def test_an_inversion_of_one_step_is_possible(name):
    inverter, process = INVERSIONS[name].sampler, Process("cosine")
    x_0, keys = jnp.asarray(np.clip(normal(2, 3), -1, 1), jnp.float32), jax.random.split(jax.random.key(0), 2)
    predict = process.predictor(weak, clip=True)
    inversion = report(inverter, 1, walk(inverter, predict, x_0, inverter.rows(process.abar, 1), keys))
    assert np.isfinite(inversion.x_T).all()
    assert inversion.num_calls.shape == inversion.residual.shape == (2,)
    assert np.isnan(inversion.residual).all() == (name != "exact")
