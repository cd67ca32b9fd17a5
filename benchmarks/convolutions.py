"""Measures the speed of 3x3 convolutions and of both their gradients on this machine.

    python -m benchmarks.convolutions

The shapes are those of the paper's networks.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

SHAPES = ((128, 128, 128, 128), (128, 16, 512, 512), (128, 64, 64, 64))  # images, size, channels in and out
SMALLER = ((2, 32, 64, 64), (2, 16, 128, 128))  # for a CPU


def main() -> None:
    """Prints a line for each shape."""
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    dtype = jnp.float32 if on_cpu else jnp.bfloat16
    print(f"{device.device_kind}, {jnp.dtype(dtype).name}, TFLOP/s\n{'shape':<24}{'forward':>10}{'gradients':>12}")
    for images, size, inputs, outputs in SMALLER if on_cpu else SHAPES:
        x = jax.random.normal(jax.random.key(0), (images, size, size, inputs), dtype)
        w = jax.random.normal(jax.random.key(1), (3, 3, inputs, outputs), dtype)
        y = convolve(x, w)
        flop = 2 * 9 * images * size**2 * inputs * outputs
        forward = seconds(convolve, x, w)
        gradients = seconds(lambda x, w, y=y: jax.vjp(convolve, x, w)[1](y), x, w)
        shape = f"{images}, {size}x{size}, {inputs} to {outputs}"
        print(f"{shape:<24}{flop / forward / 1e12:>10.3g}{2 * flop / gradients / 1e12:>12.3g}")


def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
    """Convolves images with a kernel, without changing their size."""
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def seconds(function: Callable, *arrays: jax.Array, calls: int = 10) -> float:
    """Returns the seconds of a call. Calls are dispatched one after another, without waiting."""
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arrays))
    started = time.monotonic()
    for _ in range(calls):
        result = compiled(*arrays)
    jax.block_until_ready(result)
    return (time.monotonic() - started) / calls


if __name__ == "__main__":
    main()
