"""Random bits from a hash of a counter."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from diffae_jax.models.random_bits import mixed, positions, random_bits, random_uniform


def murmur3_finalizer(x):
    """The published constants, in Python's integers."""
    x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
    x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
    return x ^ x >> 16


def test_bits_are_a_hash_of_key_and_position():
    key = jax.random.key(7)
    first, last = map(int, jax.random.key_data(key))
    expected = [murmur3_finalizer(murmur3_finalizer(i ^ first) ^ last) for i in range(6)]
    np.testing.assert_array_equal(random_bits(key, (2, 3)), np.reshape(expected, (2, 3)))
    assert len({murmur3_finalizer(i) for i in range(10_000)}) == 10_000
    np.testing.assert_array_equal(mixed(np.arange(9, dtype=np.uint32)), [murmur3_finalizer(i) for i in range(9)])


def test_positions_count_in_c_order():
    np.testing.assert_array_equal(positions((2, 3, 4)), np.arange(24).reshape(2, 3, 4))
    np.testing.assert_array_equal(positions(()), 0)


def test_uniform_numbers_pass_tests_of_distribution_and_independence():
    keys = jax.random.split(jax.random.key(1), 50)
    drawn = np.asarray(jax.vmap(lambda key: random_uniform(key, (100, 100)))(keys), np.float64).reshape(50, -1)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert stats.kstest(drawn.ravel(), "uniform").pvalue > 1e-3
    centered = (drawn - 0.5) * np.sqrt(12)
    size = drawn.size
    for a, b in (
        (centered[:, 1:], centered[:, :-1]),  # neighbors
        (centered[:, 100:], centered[:, :-100]),  # the next row
        (centered[1:], centered[:-1]),  # keys
    ):
        assert abs((a * b).mean()) < 4 / np.sqrt(size)
    bits = np.unpackbits(np.asarray(random_bits(keys[0], (100_000,))).view(np.uint8)).reshape(-1, 8).mean(0)
    assert (abs(bits - 0.5) < 4 * 0.5 / np.sqrt(400_000)).all()


def test_bits_are_those_of_the_sample_however_a_batch_is_split():
    keys = jax.random.split(jax.random.key(2), 4)
    draw = jax.jit(jax.vmap(lambda key: random_bits(key, (3, 5))))
    np.testing.assert_array_equal(jnp.concatenate([draw(keys[:1]), draw(keys[1:])]), draw(keys))
