"""Warm-up, schedules and frozen parts against closed forms and float64 arithmetic."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffae_jax.data.batches import on_devices
from diffae_jax.runtime.sharding import split_batch
from diffae_jax.training.learning_rate import learning_rate_factor
from diffae_jax.training.program import compile_program, run_key
from diffae_jax.training.state import make_optimizer
from tests.training.test_training import BATCH, abstract, quadratic_batches, quadratic_program, rows, run_loop

WARMUP, LENGTH = 64, 320


def expected_factor(schedule, samples):
    """The factor in float64, from the definition."""
    if samples < WARMUP:
        return samples / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (samples - WARMUP) / (LENGTH - WARMUP))) if schedule == "cosine" else 1.0


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_factor_is_that_of_the_middle_of_each_batch(schedule):
    factor = learning_rate_factor(schedule, WARMUP, LENGTH, BATCH)
    values = [float(factor(step)) for step in range(LENGTH // BATCH)]
    expected = [expected_factor(schedule, BATCH * step + BATCH / 2) for step in range(LENGTH // BATCH)]
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert min(values) > 0, "no step is lost"


def test_factor_without_warmup_falls_from_the_start():
    factor = learning_rate_factor("cosine", 0, LENGTH, BATCH)
    middle = float(factor(LENGTH // BATCH // 2))
    np.testing.assert_allclose(middle, 0.5 * (1 + math.cos(math.pi * 168 / 320)), atol=1e-6)
    assert learning_rate_factor("constant", 0, LENGTH, BATCH) is None


def test_factor_depends_on_samples_and_not_on_the_batch_size():
    small, large = (learning_rate_factor("cosine", WARMUP, LENGTH, size) for size in (BATCH, 3 * BATCH))
    assert float(large(2)) == float(small(7))  # both in the middle of samples 96 to 144


def test_factor_is_exact_after_many_samples():
    length = 130_000_000  # beyond 2**24, where float32 has gaps
    factor = learning_rate_factor("cosine", 0, length, 128)
    step = length // 128 // 3
    np.testing.assert_allclose(float(jax.jit(factor)(step)), 0.75, atol=1e-5)


def two_part_loss(params, batch, keys):
    del keys
    predicted = batch["x"] @ params["head"]["w"] + batch["x"] @ params["tail"]["w"]
    return jnp.square(predicted - batch["y"]), {}


def test_steps_equal_adam_in_float64_with_a_schedule_and_a_frozen_part(one_device):
    tail = np.float32([0.3, 0.1, -0.7])
    factor = learning_rate_factor("cosine", 2 * BATCH, 6 * BATCH, BATCH)
    program = compile_program(
        lambda key: {"head": {"w": jnp.zeros(3)}, "tail": {"w": jnp.asarray(tail)}},
        two_part_loss,
        jax.tree.map(lambda a: abstract(a, split_batch(one_device)), next(quadratic_batches())),
        mesh=one_device,
        optimizer=make_optimizer(0.1, 0.01),
        precision="float32",
        ema_decay=0.9,
        max_grad_norm=1.0,
        learning_rate_factor=factor,
        frozen=("tail",),
    )
    key = run_key(0, one_device)
    state = program.init(key)
    w = m = v = np.zeros(3)
    for step, batch in enumerate(itertools.islice(quadratic_batches(), 6)):
        x, y = batch["x"].astype(np.float64), batch["y"].astype(np.float64)
        gradient = 2 * ((x @ (w + tail.astype(np.float64)) - y)[:, None] * x).mean(0)
        gradient = gradient / max(1, np.linalg.norm(gradient))  # the norm of the part that is trained
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        update = (m / (1 - 0.9 ** (step + 1))) / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
        samples = BATCH * (step + 0.5)
        rate = min(samples / (2 * BATCH), 0.5 * (1 + math.cos(math.pi * max(0, samples - 2 * BATCH) / (4 * BATCH))))
        w = w - 0.1 * rate * (update + 0.01 * w)
        state, metrics = program.step(state, next(on_devices(iter([batch]), split_batch(one_device))), key)
        np.testing.assert_allclose(metrics["learning_rate_factor"], rate, rtol=1e-5)
        assert metrics["grad_norm/tail"] == 0
    for weights in (state.params, state.ema):
        assert np.asarray(program.packing.unpack(weights)["tail"]["w"]).tobytes() == tail.tobytes()
    np.testing.assert_allclose(program.packing.unpack(state.params)["head"]["w"], w, rtol=1e-5)


def test_resumed_loop_continues_the_schedule(tmp_path, one_device):
    program = quadratic_program(one_device, learning_rate_factor=learning_rate_factor("cosine", 48, 160, BATCH))
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = run_loop(tmp_path / "whole", one_device, 10, program=program)
    for num_steps in (4, 10):
        parts = run_loop(tmp_path / "parts", one_device, num_steps, program=program)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(parts), jax.device_get(whole))
    factors = [row["learning_rate_factor"] for row in rows(tmp_path / "whole")]
    assert factors[0] < factors[1] > factors[2] > factors[3]
    assert rows(tmp_path / "parts")[-1] == rows(tmp_path / "whole")[-1]
