"""Schedules, loss and samplers against float64 loops, closed forms and exact solutions."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffae_jax.diffusion.interpolation import lerp, slerp
from diffae_jax.diffusion.loop import Sampler, walk, walk_with_progress
from diffae_jax.diffusion.loss import diffusion_loss, q_sample
from diffae_jax.diffusion.process import PARAMETERIZATIONS, WEIGHTINGS, Process
from diffae_jax.diffusion.samplers import (
    DDIM,
    DDIM_INVERSION,
    ddim_decode,
    ddim_encode,
    ddim_grid,
)
from diffae_jax.diffusion.schedule import cumulative_alpha, timesteps
from tests.jaxprs import equations

SCHEDULES = ("linear", "constant", "cosine")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Schedules and grids.


def abar_of(name):
    """abar of the 1000 steps by the products of the definition, in float64."""
    abar, product = np.empty(1000), 1.0
    for t in range(1000):
        if name == "linear":
            beta = 1e-4 + (0.02 - 1e-4) * t / 999
        elif name == "constant":
            beta = 0.008
        else:
            f0, f1 = (np.cos((s / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2 for s in (t, t + 1))
            beta = min(1 - f1 / f0, 0.999)
        product *= 1 - beta
        abar[t] = product
    return abar


@pytest.mark.parametrize("name", SCHEDULES)
def test_cumulative_alpha_equals_its_definition_in_float64(name):
    abar = cumulative_alpha(name)
    assert abar.dtype == np.float64
    np.testing.assert_allclose(abar, abar_of(name), rtol=1e-12)
    assert (np.diff(abar) < 0).all()
    assert abar[0] < 1
    assert abar[-1] > 0


def test_cumulative_alpha_ends_where_known():
    linear, constant, cosine = (cumulative_alpha(name) for name in SCHEDULES)
    assert linear[0] == 1 - 1e-4
    assert linear[-1] == pytest.approx(4.0358e-5, rel=1e-4)  # the value of DDPM's schedule
    assert constant[-1] == pytest.approx(0.992**1000, rel=1e-12)
    before_the_last = np.cos((0.999 + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    assert cosine[-1] == pytest.approx(0.001 * before_the_last, rel=1e-9)  # the last beta is limited to 0.999


@pytest.mark.parametrize("num_steps", [n for n in range(1, 1001) if 1000 % n == 0])
def test_timesteps_of_a_divisor_are_the_official_range(num_steps):
    assert timesteps(num_steps).tolist() == list(range(0, 1000, 1000 // num_steps))


def test_timesteps_of_any_number_ascend_evenly_from_zero():
    for num_steps in range(1, 1001):
        t = timesteps(num_steps)
        assert t.dtype == np.int32
        assert t.shape == (num_steps,)
        assert t[0] == 0
        assert t[-1] < 1000
        gaps = np.diff([*t, 1000])
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("num_steps", [-1, 0, 1001])
def test_impossible_numbers_of_steps_are_refused_with_the_numbers(num_steps):
    for function in (timesteps, partial(ddim_grid, "linear")):
        with pytest.raises(ValueError, match=rf"^[^.]* 1 and 1000, not {num_steps}\.$"):
            function(num_steps)


@pytest.mark.parametrize("num_steps", [1, 10, 7])
def test_grid_reaches_from_the_image_to_the_noise(num_steps):
    grid = ddim_grid("linear", num_steps)
    abar = abar_of("linear")[[index * 1000 // num_steps for index in range(num_steps)]]
    np.testing.assert_allclose(grid.abar, abar, rtol=1e-6)
    np.testing.assert_allclose(grid.abar_prev, [1, *abar[:-1]], rtol=1e-6)
    np.testing.assert_allclose(grid.abar_next, [*abar[1:], 0], rtol=1e-6)
    assert {array.dtype for array in (grid.abar, grid.abar_prev, grid.abar_next)} == {jnp.dtype("float32")}


# The loss.


@pytest.mark.parametrize("shape", [(7, 1), (4, 6, 3), (2, 4, 2, 5)], ids=["rank 1", "rank 2", "rank 3"])
def test_q_sample_and_l_simple_equal_float64_reference(shape):
    x_0, eps = normal(3, *shape, seed=1), normal(3, *shape, seed=2)
    t, abar = np.array([0, 412, 999]), abar_of("linear")
    x_t = np.stack([np.sqrt(abar[s]) * x + np.sqrt(1 - abar[s]) * e for s, x, e in zip(t, x_0, eps, strict=True)])
    loss = [np.mean((np.tanh(x) * s / 500 - e) ** 2) for x, s, e in zip(x_t, t, eps, strict=True)]

    def eps_fn(x_t, t):
        return jnp.tanh(x_t) * (t / 500).reshape(-1, *(1,) * len(shape))

    linear, (x_0, t, eps) = Process("linear"), map(jnp.asarray, (x_0, t, eps))
    np.testing.assert_allclose(q_sample(x_0, eps, linear.abar_at(t, x_0)), x_t, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(partial(diffusion_loss, linear, eps_fn))(x_0, t, eps), loss, rtol=1e-5)


def test_l_simple_of_the_true_noise_is_zero():
    x_0, eps = jnp.asarray(normal(3, 4, 4, 2)), jnp.asarray(normal(3, 4, 4, 2, seed=1))
    loss = diffusion_loss(Process(), lambda x_t, t: eps, x_0, jnp.array([0, 500, 999]), eps)
    np.testing.assert_array_equal(loss, np.zeros(3))


# Eq. 1 and Eq. 8, step by step.


def wavy(np_or_jnp, x, t):
    """A noise predictor that nothing but the loops themselves can undo."""
    return 0.7 * np_or_jnp.tanh(2 * x) + 0.4 * np_or_jnp.cos(t / 150.0)


def ddim64(x, t, abar, abar_to, clip):
    """One step of Eq. 1 or Eq. 8; returns also how much of x_0 was limited."""
    eps = wavy(np, x, t)
    x_0 = (x - np.sqrt(1 - abar) * eps) / np.sqrt(abar)
    limited = np.mean(abs(x_0) > 1)
    if clip:
        x_0 = np.clip(x_0, -1, 1)
        eps = (x - np.sqrt(abar) * x_0) / np.sqrt(1 - abar)
    return np.sqrt(abar_to) * x_0 + np.sqrt(1 - abar_to) * eps, limited


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("name", "num_steps"), [("linear", 20), ("cosine", 7), ("constant", 1)])
def test_ddim_loops_equal_float64_loops(name, num_steps, clip):
    abar = abar_of(name)
    t = [index * 1000 // num_steps for index in range(num_steps)]
    x_T = decoded = normal(2, 4, 6, 3).astype(np.float64)
    x_0 = encoded = np.clip(normal(2, 4, 6, 3, seed=1), -1, 1).astype(np.float64)
    limited = []
    for index in reversed(range(num_steps)):
        abar_prev = abar[t[index - 1]] if index else 1.0
        decoded, share = ddim64(decoded, t[index], abar[t[index]], abar_prev, clip)
        limited.append(share)
    for index in range(num_steps):
        abar_next = abar[t[index + 1]] if index + 1 < num_steps else 0.0
        encoded, share = ddim64(encoded, t[index], abar[t[index]], abar_next, clip)
        limited.append(share)
    assert 0 < np.mean(limited) < 1  # clipping has work to do, and some is left

    grid, eps_fn = ddim_grid(name, num_steps), partial(wavy, jnp)
    for function, start, expected in ((ddim_decode, x_T, decoded), (ddim_encode, x_0, encoded)):
        actual = jax.jit(partial(function, eps_fn, clip=clip))(start.astype(np.float32), grid=grid)
        assert np.linalg.norm(actual - expected) < 1e-5 * np.linalg.norm(expected)
    if clip:
        assert abs(decoded).max() <= 1


def test_images_are_clipped_by_default():
    grid, x = ddim_grid("linear", 5), jnp.asarray(normal(2, 3, 1))
    for function in (ddim_decode, ddim_encode):
        clipped, free = (function(partial(wavy, jnp), x, grid, clip) for clip in (True, False))
        np.testing.assert_array_equal(function(partial(wavy, jnp), x, grid), clipped)
        assert abs(clipped - free).max() > 0.01


# Gaussian data N(mu, s^2), whose noise predictor and probability flow are known in closed form.

MU, S = np.array([0.5, -1.0, 0.0, 2.0], np.float32), np.array([1.5, 0.4, 0.7, 0.2], np.float32)
STEPS = (10, 20, 50, 100, 250, 1000)


def gaussian_eps(x_t, t):
    """E[eps | x_t]: with x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps everything is Gaussian."""
    abar = jnp.asarray(abar_of("linear"), jnp.float32)[t]
    return jnp.sqrt(1 - abar) * (x_t - jnp.sqrt(abar) * MU) / (abar * S**2 + 1 - abar)


@pytest.fixture(scope="module")
def gaussian():
    """x_0 of the data, x_T of the noise, and the results of both loops by number of steps."""
    x_0, x_T = MU + S * normal(4096, 4, seed=1), normal(4096, 4, seed=2)

    @jax.jit
    def loops(x_0, x_T, grid):
        encoded = ddim_encode(gaussian_eps, x_0, grid, clip=False)
        again = ddim_decode(gaussian_eps, encoded, grid, clip=False)
        return encoded, again, ddim_decode(gaussian_eps, x_T, grid, clip=False)

    return x_0, x_T, {n: [np.asarray(x) for x in loops(x_0, x_T, ddim_grid("linear", n))] for n in STEPS}


def errors_fall_as_the_inverse_of_steps(actual, expected, largest):
    error = {n: np.sqrt(np.mean((actual[n] - expected) ** 2)) for n in STEPS}
    assert all(error[few] > error[many] for few, many in itertools.pairwise(STEPS)), error
    assert error[1000] < largest, error
    slope = np.polyfit(np.log(STEPS), np.log([error[n] for n in STEPS]), 1)[0]
    assert -1.3 < slope < -0.7, (slope, error)
    return True


def test_encoding_then_decoding_returns_the_data_ever_closer(gaussian):
    x_0, _, results = gaussian
    assert errors_fall_as_the_inverse_of_steps({n: again for n, (_, again, _) in results.items()}, x_0, 0.01)


def test_decoding_follows_the_exact_probability_flow(gaussian):
    _, x_T, results = gaussian
    decoded = {n: decoded for n, (_, _, decoded) in results.items()}
    assert errors_fall_as_the_inverse_of_steps(decoded, MU + S * x_T, 0.01)


def test_encoding_follows_the_exact_probability_flow(gaussian):
    x_0, _, results = gaussian
    encoded = {n: encoded for n, (encoded, _, _) in results.items()}
    assert errors_fall_as_the_inverse_of_steps(encoded, (x_0 - MU) / S, 0.01)


def test_codes_of_gaussian_data_are_standard_normal(gaussian):
    x_0, _, results = gaussian
    x_T = results[1000][0]
    five_sigma = 5 / np.sqrt(len(x_0))
    np.testing.assert_allclose(x_T.mean(0), np.zeros(4), atol=five_sigma)
    np.testing.assert_allclose(x_T.std(0), np.ones(4), atol=five_sigma / np.sqrt(2) + 0.01)
    correlation = np.corrcoef(x_T.T) - np.eye(4)
    assert abs(correlation).max() < five_sigma


# The loops as programs.


@pytest.mark.parametrize("function", [ddim_decode, ddim_encode])
@pytest.mark.parametrize("clip", [True, False])
def test_gradient_through_a_loop_equals_finite_differences(function, clip):
    with jax.enable_x64(True):
        grid = jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, ddim_grid("linear", 8))
        x, direction = (jnp.asarray(normal(2, 3, 1, seed=seed), jnp.float64) for seed in (0, 1))

        def scalar(x):
            return jnp.sin(function(partial(wavy, jnp), x, grid, clip)).sum()

        scalar = jax.jit(scalar)
        gradient = jax.jit(jax.grad(scalar))(x)
        step = 1e-6
        finite = (scalar(x + step * direction) - scalar(x - step * direction)) / (2 * step)
        assert abs(finite) > 0.01
        assert jnp.vdot(gradient, direction) == pytest.approx(float(finite), rel=1e-6)


@pytest.mark.parametrize("function", [ddim_decode, ddim_encode])
def test_a_loop_is_one_scan_whose_body_is_traced_once(function):
    calls = []

    def eps_fn(x, t):
        calls.append((x.shape, t.shape))
        return x * 0.1

    jaxpr = jax.make_jaxpr(lambda x, grid: function(eps_fn, x, grid))(normal(2, 3, 1), ddim_grid("linear", 37)).jaxpr
    loops = [equation for equation in equations(jaxpr) if equation.primitive.name in ("scan", "while")]
    assert [loop.primitive.name for loop in loops] == ["scan"]
    assert loops[0].params["length"] == 37
    assert calls == [((2, 3, 1), ())]


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 12, 20])
def test_remat_changes_neither_images_nor_gradients(num_steps):
    grid, x, scale = ddim_grid("linear", num_steps), jnp.asarray(normal(2, 3, 1)), jnp.float32(0.7)

    def scalar(x, scale, remat):
        images = ddim_decode(lambda x, t: wavy(jnp, x * scale, t), x, grid, remat=remat)
        return jnp.sin(images).sum(), images

    (plain, checkpointed) = (jax.grad(partial(scalar, remat=r), (0, 1), has_aux=True)(x, scale) for r in (False, True))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), checkpointed, plain)
    assert np.abs(plain[0][1]) > 1e-3, "what eps_fn closes over has a gradient, too"


def test_memory_of_a_gradient_grows_with_the_root_of_the_steps():
    x = jnp.asarray(normal(64, 32, 32, 1))
    kept, compiled = {}, {}
    for remat, num_steps in itertools.product((False, True), (25, 100, 400)):
        grid = ddim_grid("linear", num_steps)

        def scalar(x, grid=grid, remat=remat):
            return jnp.square(ddim_decode(partial(wavy, jnp), x, grid, remat=remat)).sum()

        leaves = jax.tree.leaves(jax.eval_shape(lambda x, scalar=scalar: jax.vjp(scalar, x)[1], x))
        kept[remat, num_steps] = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / x.nbytes
        memory = jax.jit(jax.grad(scalar)).lower(x).compile().memory_analysis()
        compiled[remat, num_steps] = memory.temp_size_in_bytes / x.nbytes
    print("\nmemory of a gradient, in images:", {k: round(v, 1) for k, v in compiled.items()})
    assert kept[False, 400] > 14 * kept[False, 25], "without remat it grows with the steps"
    for bytes_of in (kept, compiled):
        assert bytes_of[True, 100] < 2.2 * bytes_of[True, 25]
        assert bytes_of[True, 400] < 2.2 * bytes_of[True, 100]
    assert compiled[True, 400] < 60


@pytest.mark.parametrize("clip", [True, False])
def test_progress_is_the_predicted_x_0_of_every_step(clip):
    grid, x_t = ddim_grid("linear", 6), normal(2, 3, 1).astype(np.float64)
    abar, abar_prev = (np.asarray(a, np.float64) for a in (grid.abar, grid.abar_prev))
    expected = []
    for i in reversed(range(6)):
        eps = wavy(np, x_t, int(grid.t[i]))
        x_0 = (x_t - np.sqrt(1 - abar[i]) * eps) / np.sqrt(abar[i])
        x_0 = np.clip(x_0, -1, 1) if clip else x_0
        eps = (x_t - np.sqrt(abar[i]) * x_0) / np.sqrt(1 - abar[i])
        x_t = np.sqrt(abar_prev[i]) * x_0 + np.sqrt(1 - abar_prev[i]) * eps
        expected.append(x_0)
    eps_fn, x_T = partial(wavy, jnp), jnp.asarray(normal(2, 3, 1))
    progress = walk_with_progress(DDIM, Process().predictor(eps_fn, clip), x_T, grid.to_image)
    np.testing.assert_allclose(progress, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(progress[-1], ddim_decode(eps_fn, x_T, grid, clip), rtol=1e-5, atol=1e-5)


def test_slerp_follows_the_arc_and_lerp_the_line():
    a, b = jnp.asarray([[3.0, 0.0]]), jnp.asarray([[0.0, 3.0]])
    weights = jnp.linspace(0, 1, 5)
    angles = np.linspace(0, np.pi / 2, 5)
    arc = 3 * np.stack([np.cos(angles), np.sin(angles)], axis=-1)[:, None]
    np.testing.assert_allclose(slerp(a, b, weights), arc, atol=1e-6)
    line = np.linspace([3, 0], [0, 3], 5)
    np.testing.assert_allclose(lerp(a[0], b[0], weights), line, atol=1e-6)


def test_slerp_keeps_the_ends_and_the_norm_of_noise_and_takes_parallel_maps():
    a, b = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    path = slerp(a, b, jnp.linspace(0, 1, 7))
    np.testing.assert_allclose(path[0], a, atol=1e-6)
    np.testing.assert_allclose(path[-1], b, atol=1e-6)
    norms = np.linalg.norm(path.reshape(7, -1), axis=-1)
    assert norms.max() / norms.min() < 1.1
    np.testing.assert_allclose(slerp(a, 2 * a, jnp.asarray([0.5]))[0], 1.5 * a, rtol=1e-3)
    np.testing.assert_allclose(slerp(a, a, jnp.asarray([0.3]))[0], a, rtol=1e-3)


def test_l_latent_is_the_mean_absolute_error():
    z, eps = jax.random.normal(jax.random.key(0), (2, 3, 4))
    t = jnp.asarray([0, 500, 999])
    loss = diffusion_loss(Process("constant", error="l1"), lambda z_t, t: z_t, z, t, eps)
    abar = abar_of("constant")[np.asarray(t)][:, None]
    z_t = np.sqrt(abar) * z + np.sqrt(1 - abar) * eps
    np.testing.assert_allclose(loss, np.abs(z_t - eps).mean(-1), rtol=1e-6)


# v in place of the noise (Salimans and Ho 2022): v = sqrt(abar) eps - sqrt(1 - abar) x_0.


@pytest.mark.parametrize("name", SCHEDULES)
def test_x_t_and_v_say_x_0_and_eps_at_every_time_step(name):
    x_0, eps, abar = normal(1000, 5, seed=1), normal(1000, 5, seed=2), abar_of(name)[:, None]
    x_t, v = np.sqrt(abar) * x_0 + np.sqrt(1 - abar) * eps, np.sqrt(abar) * eps - np.sqrt(1 - abar) * x_0
    as_float = [jnp.asarray(a, jnp.float32) for a in (x_0, eps, abar, x_t, v)]
    np.testing.assert_allclose(PARAMETERIZATIONS["v"].target(*as_float[:3]), v, atol=1e-5)
    found = PARAMETERIZATIONS["v"].x_0_and_eps(as_float[3], as_float[4], as_float[2])
    for actual, expected in zip(found, (x_0, eps), strict=True):  # also where abar is 2e-9, where eps says nothing
        np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("weighting", ["uniform", "signal"])
def test_the_loss_of_v_equals_float64_reference(weighting, monkeypatch):
    monkeypatch.setitem(WEIGHTINGS, "signal", lambda abar: abar)  # one of your own
    x_0, eps, t, abar = (
        normal(3, 4, 4, 2, seed=1),
        normal(3, 4, 4, 2, seed=2),
        np.array([0, 412, 999]),
        abar_of("cosine"),
    )
    a = abar[t].reshape(-1, 1, 1, 1)
    x_t, v = np.sqrt(a) * x_0 + np.sqrt(1 - a) * eps, np.sqrt(a) * eps - np.sqrt(1 - a) * x_0
    expected = ((np.tanh(x_t) - v) ** 2).mean((1, 2, 3)) * (abar[t] if weighting == "signal" else 1)
    process = Process("cosine", "v", weighting=weighting)
    loss = diffusion_loss(process, lambda x_t, t: jnp.tanh(x_t), jnp.asarray(x_0), jnp.asarray(t), jnp.asarray(eps))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    if weighting == "signal":  # the error of the noise that follows from x_t and the network's v
        noise = np.sqrt(1 - a) * x_t + np.sqrt(a) * np.tanh(x_t)
        np.testing.assert_allclose(loss, ((noise - eps) ** 2).mean((1, 2, 3)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("sampler", [DDIM, DDIM_INVERSION])
def test_ddim_walks_the_same_way_by_v_as_by_the_noise(sampler, clip):
    linear = jnp.asarray(abar_of("linear"), jnp.float32)

    def v_fn(x_t, t):  # of the same x_0 and noise as gaussian_eps
        abar = linear[t]
        x_0, eps = PARAMETERIZATIONS["eps"].x_0_and_eps(x_t, gaussian_eps(x_t, t), abar)
        return PARAMETERIZATIONS["v"].target(x_0, eps, abar)

    x, abar = jnp.asarray(normal(64, 4)), abar_of("linear")
    by = {
        name: walk(sampler, Process("linear", name).predictor(network, clip), x, sampler.rows(abar, 25))[0]
        for name, network in (("eps", gaussian_eps), ("v", v_fn))
    }
    np.testing.assert_allclose(by["v"], by["eps"], atol=2e-4)


@pytest.mark.parametrize("wrong", [{"parameterization": "x"}, {"error": "huber"}, {"weighting": "snr"}])
def test_a_process_of_unknown_parts_is_refused_with_those_that_there_are(wrong):
    (field,) = wrong
    with pytest.raises(ValueError, match=rf"There is no {field} '\w+'\. Choose one of \w+(, \w+)*\."):
        Process(**wrong)


def test_a_sampler_may_carry_more_than_x():
    """Two-step Adams-Bashforth on the noise, against its loop in float64."""

    def step(predict, carried, row):
        x, before = carried
        x_0, eps = predict(x, row.t, row.abar)
        eps_used = jnp.where(row.t == 900, eps, 1.5 * eps - 0.5 * before)
        x_0 = (x - jnp.sqrt(1 - row.abar) * eps_used) / jnp.sqrt(row.abar)
        return (jnp.sqrt(row.abar_to) * x_0 + jnp.sqrt(1 - row.abar_to) * eps_used, eps), x_0

    sampler = Sampler(DDIM.coefficients, lambda x, keys: (x, jnp.zeros_like(x)), step)
    abar, x = abar_of("linear"), normal(3, 4).astype(np.float64)
    start, before = jnp.asarray(x, jnp.float32), 0
    for t in reversed(range(0, 1000, 100)):
        eps, abar_to = wavy(np, x, t), abar[t - 100] if t else 1.0
        used, before = eps if t == 900 else 1.5 * eps - 0.5 * before, eps
        x = np.sqrt(abar_to) * (x - np.sqrt(1 - abar[t]) * used) / np.sqrt(abar[t]) + np.sqrt(1 - abar_to) * used
    predict, rows = Process().predictor(partial(wavy, jnp), clip=False), sampler.rows(abar, 10)
    for remat in (False, True):
        np.testing.assert_allclose(walk(sampler, predict, start, rows, remat=remat)[0], x, rtol=1e-4, atol=1e-4)
