"""Random bits from a hash of a counter: far fewer operations than `jax.random.bits`.

JAX's generator is a block cipher of some hundred operations. A network draws numbers for each
weight and each dropout, so compiling these took longer than compiling the network.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Key, UInt32

AnyBits = UInt32[np.ndarray, "*shape"] | UInt32[Array, "*shape"]


def mixed(x: AnyBits) -> AnyBits:
    """The finalizer of MurmurHash3, a bijection that spreads each bit over all others."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def positions(shape: Sequence[int]) -> UInt32[Array, "*shape"]:
    """Numbers the elements of an array in C order, modulo 2**32.

    There is no reshape, which would gather an array that is split over devices.
    """
    index = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :])
        index += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
    return index


def random_bits(key: Key[Array, ""], shape: Sequence[int]) -> UInt32[Array, "*shape"]:
    """Draws 32 random bits for each element. They depend on the key and its position only."""
    data = jax.random.key_data(key)
    return mixed(mixed(positions(shape) ^ data[0]) ^ data[-1])


def random_uniform(key: Key[Array, ""], shape: Sequence[int]) -> Array:
    """Draws float32 numbers, uniform in [0, 1), in steps of 2**-24."""
    return (random_bits(key, shape) >> np.uint32(8)).astype(jnp.float32) * jnp.float32(2**-24)
