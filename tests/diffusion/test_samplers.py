"""Samplers and grids against float64 loops, exact solutions and the order of convergence."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffae_jax.diffusion.grids import GRIDS, MIN_ABAR
from diffae_jax.diffusion.loop import walk, walk_with_progress
from diffae_jax.diffusion.process import Process
from diffae_jax.diffusion.samplers import DDIM, DPMPP_2M, HEUN, SAMPLERS, stochastic_ddim
from diffae_jax.diffusion.schedule import cumulative_alpha, timesteps
from tests.environment import QUICKLY
from tests.jaxprs import flops

SCHEDULES = ("linear", "constant", "cosine")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# Grids.


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_has_the_number_of_distinct_time_steps_asked_for(name, schedule):
    abar = cumulative_alpha(schedule)
    usable = np.flatnonzero(abar >= MIN_ABAR)[-1]
    for num_steps in (*range(1, 40), 100, 250, 500, 900, 950, 999, 1000):
        t = GRIDS[name](abar, num_steps)
        assert t.dtype == np.int32
        assert t.shape == (num_steps,)
        assert (np.diff(t) > 0).all(), (name, num_steps)
        assert t[0] == (0 if num_steps > 1 or name == "even" else usable)
        if name != "even":
            assert t[-1] == max(usable, num_steps - 1)


@pytest.mark.parametrize("num_steps", [0, -3, 1001])
@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_of_impossible_steps_is_refused(name, num_steps):
    with pytest.raises(ValueError, match=f"between 1 and 1000, not {num_steps}"):
        GRIDS[name](cumulative_alpha("linear"), num_steps)


def test_the_grid_of_the_paper_stays():
    for num_steps in (1, 7, 10, 100, 1000):
        np.testing.assert_array_equal(GRIDS["even"](cumulative_alpha("linear"), num_steps), timesteps(num_steps))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_log_snr_is_even_up_to_the_rounding_of_time_steps(schedule):
    abar = cumulative_alpha(schedule)
    fall = np.log(1 - abar) - np.log(abar)
    t = GRIDS["log_snr"](abar, 12)
    ideal = np.linspace(fall[0], fall[t[-1]], 12)
    for step, target in zip(t[1:-1], ideal[1:-1], strict=True):
        assert fall[step - 1] < target < fall[step + 1]


def test_quadratic_grows_by_the_same_amount_in_each_step():
    abar = cumulative_alpha("cosine")
    second = np.diff(GRIDS["quadratic"](abar, 10), 2)
    assert second.max() - second.min() <= 3  # four roundings of at most a half
    assert second.min() > 15


# Samplers against plain loops in float64.


def wavy(np_or_jnp, x, t):
    return 0.7 * np_or_jnp.tanh(2 * x) + 0.4 * np_or_jnp.cos(t / 150.0)


def predict64(x, t, abar, clip):
    eps = wavy(np, x, t)
    x_0 = (x - np.sqrt(1 - abar) * eps) / np.sqrt(abar)
    if clip:
        x_0 = np.clip(x_0, -1, 1)
        eps = (x - np.sqrt(abar) * x_0) / np.sqrt(1 - abar)
    return x_0, eps


def stochastic64(x, steps, clip, noise):
    """Algorithm 1 of DDPM in the form of DDIM's Eq. 12, for eta = 1."""
    for (t, a, b), fresh in zip(steps, noise, strict=True):
        x_0, eps = predict64(x, t, a, clip)
        sigma = np.sqrt((1 - b) / (1 - a)) * np.sqrt(1 - a / b)
        x = np.sqrt(b) * x_0 + np.sqrt(1 - b - sigma**2) * eps + sigma * fresh
    return x


def dpmpp_2m64(x, steps, clip, noise):
    """Algorithm 2 of Lu et al. 2022 in its own letters; the last step is of first order."""
    previous = h_before = None
    for t, a, b in steps:
        x_0, _ = predict64(x, t, a, clip)
        if b == 1:
            return x_0
        lam, lam_to = np.log(np.sqrt(a / (1 - a))), np.log(np.sqrt(b / (1 - b)))
        h = lam_to - lam
        if previous is None:
            data = x_0
        else:
            r = h_before / h
            data = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * previous
        x = np.sqrt(1 - b) / np.sqrt(1 - a) * x - np.sqrt(b) * (np.exp(-h) - 1) * data
        previous, h_before = x_0, h


def heun64(x, steps, clip, noise):
    """Heun's rule for the turn of x by the angle between x_0 and eps, with rotation matrices."""
    for i, (t, a, b) in enumerate(steps):
        angle, angle_to = np.arccos(np.sqrt(a)), np.arccos(np.sqrt(b))
        x_0, eps = predict64(x, t, a, clip)
        euler = np.cos(angle_to) * x_0 + np.sin(angle_to) * eps
        if i + 1 == len(steps):
            return euler
        there = predict64(euler, steps[i + 1][0], b, clip)
        velocity = (np.cos(angle) * (eps + there[1]) - np.sin(angle) * (x_0 + there[0])) / 2
        turn = angle_to - angle
        x = np.cos(turn) * x + np.sin(turn) * velocity


LOOPS = {"stochastic_ddim": stochastic64, "dpmpp_2m": dpmpp_2m64, "heun": heun64}


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("name", LOOPS)
def test_samplers_equal_float64_loops(name, clip):
    sampler, process = SAMPLERS[name], Process("cosine")
    t = GRIDS[sampler.grid](process.abar, 9)[::-1]
    steps = list(zip(t, process.abar[t], [*process.abar[t[1:]], 1.0], strict=True))
    keys, x = jax.random.split(jax.random.key(3), 4), jnp.asarray(normal(4, 3, 2), jnp.float32)
    noise = [[jax.random.normal(jax.random.fold_in(key, step), (3, 2)) for key in keys] for step in t]
    expected = LOOPS[name](np.asarray(x, np.float64), steps, clip, np.asarray(noise, np.float64))
    predict, rows = process.predictor(lambda x, t: wavy(jnp, x, t), clip), sampler.rows(process.abar, 9)
    found = jax.jit(lambda x, keys: walk(sampler, predict, x, rows, keys)[0], **QUICKLY)(x, keys)
    assert np.linalg.norm(found - expected) < 2e-5 * np.linalg.norm(expected)
    progress = walk_with_progress(sampler, predict, x, rows, keys)
    np.testing.assert_allclose(progress[-1], found, atol=1e-5)  # the last step ends at its x_0


def test_noise_is_that_of_the_sample_whatever_the_batch():
    sampler, process = stochastic_ddim(0.7), Process("linear")
    keys, x = jax.random.split(jax.random.key(3), 5), jnp.asarray(normal(5, 3), jnp.float32)
    predict, rows = process.predictor(lambda x, t: wavy(jnp, x, t), clip=True), sampler.rows(process.abar, 6)
    whole = walk(sampler, predict, x, rows, keys)[0]
    parts = [walk(sampler, predict, x[part], rows, keys[part])[0] for part in (slice(0, 2), slice(2, 5))]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)
    assert abs(walk(sampler, predict, x, rows, keys[::-1])[0] - whole).max() > 0.01


def test_eta_0_is_ddim_and_eta_is_bounded():
    process, x = Process("linear"), jnp.asarray(normal(4, 3), jnp.float32)
    predict = process.predictor(lambda x, t: wavy(jnp, x, t), clip=True)
    keys = jax.random.split(jax.random.key(0), 4)
    both = [walk(s, predict, x, s.rows(process.abar, 8), keys)[0] for s in (stochastic_ddim(0.0), DDIM)]
    np.testing.assert_allclose(*both, atol=1e-5)
    assert stochastic_ddim(0.5) is stochastic_ddim(0.5), "equal samplers share a compiled function"
    for eta in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"between 0 and 1, not {eta}"):
            stochastic_ddim(eta)


# Order of convergence, on data whose score is known. Columns 0 and 1 are Gaussian, columns 2 and 3
# a mixture of two Gaussians. The error is that of x at the first time step: the last step to the
# image is of first order in all samplers.

MEANS, DEVIATIONS = np.array([0.4, -0.8]), np.array([0.6, 1.4])  # of the Gaussian columns
CENTERS, WIDTH = np.array([[-0.9, 0.7], [0.5, -0.6]]), 0.45  # of the two parts of the mixture


def exact_eps(np_or_jnp, x, abar):
    """E[eps | x_t] in closed form."""
    alpha, variance = np_or_jnp.sqrt(abar), 1 - abar
    sigma = np_or_jnp.sqrt(variance)
    gaussian = sigma * (x[:, :2] - alpha * MEANS) / (abar * DEVIATIONS**2 + variance)
    spread = abar * WIDTH**2 + variance
    offsets = [x[:, 2:] - alpha * center for center in CENTERS]
    logits = [-0.5 * (offset**2).sum(1, keepdims=True) / spread for offset in offsets]
    share = 1 / (1 + np_or_jnp.exp(logits[1] - logits[0]))
    mixture = sigma * (share * offsets[0] + (1 - share) * offsets[1]) / spread
    return np_or_jnp.concatenate([gaussian, mixture], 1)


def exact_flow(x, abar, abar_to, steps=4000):
    """Runge-Kutta of fourth order in the angle of x, in float64: dx / dangle = velocity."""
    angle, end = np.arccos(np.sqrt(abar)), np.arccos(np.sqrt(abar_to))
    h = (end - angle) / steps

    def velocity(x, angle):
        eps = exact_eps(np, x, np.cos(angle) ** 2)
        x_0 = (x - np.sin(angle) * eps) / np.cos(angle)
        return np.cos(angle) * eps - np.sin(angle) * x_0

    for _ in range(steps):
        k1 = velocity(x, angle)
        k2, k3 = velocity(x + h / 2 * k1, angle + h / 2), None
        k3 = velocity(x + h / 2 * k2, angle + h / 2)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + velocity(x + h * k3, angle + h))
        angle += h
    return x


def error_of(sampler, num_steps):
    """The root mean square errors at the first time step: of the Gaussian and of the mixture."""
    process = Process("linear")
    abar, x = process.abar, normal(200, 4)
    t = GRIDS[sampler.grid](abar, num_steps)
    with jax.enable_x64(True):
        table = jnp.asarray(abar)
        predict = process.predictor(lambda x, t: exact_eps(jnp, x, table[t]), clip=False)
        rows = jax.tree.map(lambda a: jnp.asarray(a[:-1]), sampler.rows(abar, num_steps))
        found = np.asarray(jax.jit(lambda x: walk(sampler, predict, x, rows)[0], **QUICKLY)(jnp.asarray(x)))
    difference = found - exact_flow(x, abar[t[-1]], abar[0])
    return [np.sqrt(np.mean(part**2)) for part in (difference[:, :2], difference[:, 2:])]


def test_the_reference_flow_is_that_of_a_gaussian():
    abar, x = cumulative_alpha("linear"), normal(50, 4)
    scale = [np.sqrt(a * DEVIATIONS**2 + 1 - a) for a in (abar[900], abar[0])]
    expected = np.sqrt(abar[0]) * MEANS + scale[1] / scale[0] * (x[:, :2] - np.sqrt(abar[900]) * MEANS)
    np.testing.assert_allclose(exact_flow(x, abar[900], abar[0])[:, :2], expected, atol=1e-9)


@pytest.mark.parametrize(("sampler", "order"), [(DDIM, 1), (DPMPP_2M, 2), (HEUN, 2)], ids=["ddim", "dpmpp_2m", "heun"])
def test_order_of_convergence_on_exact_scores(sampler, order):
    sampler = dataclasses.replace(sampler, grid="log_snr" if sampler is DPMPP_2M else "quadratic")
    steps = (16, 64)
    few, many = (np.array(error_of(sampler, num_steps)) for num_steps in steps)
    slopes = np.log(few / many) / np.log(steps[1] / steps[0])
    print(f"\nerrors {few} and {many}, slopes {slopes}")
    assert (slopes > order - 0.3).all()
    assert (slopes < order + 0.6).all()


def test_second_order_is_closer_to_the_solution_with_as_many_calls():
    ddim, heun = error_of(dataclasses.replace(DDIM, grid="quadratic"), 31), error_of(HEUN, 16)
    multistep = error_of(DPMPP_2M, 31)
    assert np.max(np.array([heun, multistep]) / np.array(ddim)) < 0.2


# Samplers as programs.


@pytest.mark.parametrize("name", SAMPLERS)
def test_gradient_equals_finite_differences_with_and_without_remat(name):
    sampler, process = SAMPLERS[name], Process("linear")
    with jax.enable_x64(True):
        rows = jax.tree.map(lambda a: jnp.asarray(a, jnp.result_type(a, 1.0)) if a.dtype == jnp.float32 else a,
                            sampler.rows(process.abar, 5))  # fmt: skip
        keys = jax.random.split(jax.random.key(0), 2)
        x, direction = (jnp.asarray(normal(2, 3, seed=seed)) for seed in (0, 1))

        def scalar(x, scale, remat):
            predict = process.predictor(lambda x, t: wavy(jnp, scale * x, t), clip=True)
            return jnp.sin(walk(sampler, predict, x, rows, keys, remat=remat)[0]).sum()

        gradients = jax.jit(lambda x, s: [jax.grad(scalar, (0, 1))(x, s, remat) for remat in (False, True)], **QUICKLY)
        (by_x, by_scale), with_remat = gradients(x, 0.7)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), with_remat, (by_x, by_scale))
        value, step = jax.jit(lambda x, s: scalar(x, s, False), **QUICKLY), 1e-6
        ends = [value(x + sign * step * direction, 0.7 + sign * step) for sign in (1, -1)]
        finite = (ends[0] - ends[1]) / (2 * step)
        assert abs(finite) > 0.01
        assert jnp.vdot(by_x, direction) + by_scale == pytest.approx(float(finite), rel=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_costs_what_the_network_costs(name):
    sampler, process, width = SAMPLERS[name], Process("linear"), 256
    weights = jnp.asarray(normal(width, width) / 16, jnp.float32)
    x = jnp.asarray(normal(64, width), jnp.float32)
    keys, traced = jax.random.split(jax.random.key(0), len(x)), []

    def network(x, t):
        traced.append(t)
        return jnp.tanh(x @ weights)

    def loop(x, keys):
        return walk(sampler, process.predictor(network, clip=True), x, sampler.rows(process.abar, 20), keys)[0]

    calls = 2 if name == "heun" else 1
    counted = flops(jax.make_jaxpr(loop)(x, keys).jaxpr)
    assert len(traced) == calls
    assert counted == 20 * calls * 2 * len(x) * width**2
    assert sampler.num_calls(20) == (39 if name == "heun" else 20)
