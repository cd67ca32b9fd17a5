"""Operations with a gradient of their own, against derivatives of float64 references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffae_jax.models.ops import EPSILON, NUM_GROUPS, norm_silu
from tests.jaxprs import equations

SHAPES = [(2, 3, 64), (2, 2, 3, 32), (1, 2, 2, 2, 96)]  # samples, spatial axes, channels


def norm_silu64(h, scale, shift):
    """silu(GroupNorm(h) * scale + shift), step by step."""
    n, channels = h.shape[0], h.shape[-1]
    grouped = h.reshape(n, -1, NUM_GROUPS, channels // NUM_GROUPS)
    mean, variance = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    normalized = ((grouped - mean) / np.sqrt(variance + EPSILON)).reshape(n, -1, channels)
    u = normalized * scale[:, None] + shift[:, None]
    return (u / (1 + np.exp(-u))).reshape(h.shape)


def inputs(shape, mean=0.0):
    rng = np.random.default_rng(len(shape))
    h, gradient = rng.normal(mean, 1, shape), rng.normal(size=shape)
    scale, shift = rng.normal(size=(2, shape[0], shape[-1]))
    return [h, scale, shift], gradient


def derivative64(arguments, index, gradient):
    """The gradient of sum(gradient * norm_silu64) by central differences."""
    result = np.zeros_like(arguments[index])
    for place in np.ndindex(result.shape):
        values = []
        for step in (1e-5, -1e-5):
            moved = [array.copy() for array in arguments]
            moved[index][place] += step
            values.append((gradient * norm_silu64(*moved)).sum())
        result[place] = (values[0] - values[1]) / 2e-5
    return result


@pytest.mark.parametrize("shape", SHAPES)
def test_result_and_gradients_equal_float64(shape):
    arguments, gradient = inputs(shape, mean=3.0)
    single = [jnp.float32(array) for array in arguments]
    result, pull_back = jax.vjp(jax.jit(norm_silu), *single)
    np.testing.assert_allclose(result, norm_silu64(*arguments), atol=1e-5)
    for index, found in enumerate(pull_back(jnp.float32(gradient))):
        expected = derivative64(arguments, index, gradient)
        np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_gradient_can_be_differentiated_again():
    arguments, _ = inputs((1, 2, 2, 32))
    h, scale, shift = (jnp.float32(array) for array in arguments)

    def square_of_gradient(h):
        return jnp.square(jax.grad(lambda h: norm_silu(h, scale, shift).sum())(h)).sum()

    direction = jnp.float32(np.random.default_rng(5).normal(size=h.shape))
    step = 1e-2
    expected = (square_of_gradient(h + step * direction) - square_of_gradient(h - step * direction)) / (2 * step)
    np.testing.assert_allclose((jax.grad(square_of_gradient)(h) * direction).sum(), expected, rtol=5e-3)


def test_only_the_input_of_its_size_is_kept_for_the_gradient():
    arguments, _ = inputs((2, 8, 8, 32))
    kept = jax.eval_shape(lambda *a: jax.vjp(norm_silu, *a)[1], *(jnp.bfloat16(array) for array in arguments))
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(kept))
    assert sizes[-1] == arguments[0].size > 8 * sizes[-2]
    assert [leaf.dtype for leaf in jax.tree.leaves(kept) if leaf.size == sizes[-1]] == [jnp.bfloat16]


def test_half_precision_is_computed_in_float32():
    arguments, gradient = inputs((2, 16, 16, 32), mean=4.0)
    half = [jnp.bfloat16(arguments[0]), *(jnp.float32(array) for array in arguments[1:])]
    rounded = [np.asarray(array, np.float64) for array in half]
    result, pull_back = jax.vjp(jax.jit(norm_silu), *half)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(result, np.float64), norm_silu64(*rounded), atol=2e-2)
    sums = pull_back(jnp.bfloat16(gradient))[2]
    assert sums.dtype == jnp.float32
    products = [e for e in equations(jax.make_jaxpr(norm_silu)(*half).jaxpr) if e.primitive.name == "mul"]
    assert {e.outvars[0].aval.dtype for e in products} == {np.dtype("float32")}
