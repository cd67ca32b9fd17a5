"""An encoder as a user would write it: a small convolutional network with dropout."""

import jax
import jax.numpy as jnp
from flax import nnx


class ConvEncoder(nnx.Module):
    def __init__(self, *, image_shape, z_dim, dtype, rngs, **_):
        self.conv = nnx.Conv(image_shape[-1], 6, (3, 3), strides=2, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(6, z_dim, dtype=dtype, rngs=rngs)
        self.rngs = rngs

    def __call__(self, x_0):
        h = self.dropout(jax.nn.relu(self.conv(x_0)))
        return self.out(h.mean((1, 2)))


class WithStatistics(ConvEncoder):
    def __init__(self, *, z_dim, rngs, **settings):
        super().__init__(z_dim=z_dim, rngs=rngs, **settings)
        self.norm = nnx.BatchNorm(z_dim, rngs=rngs)


class OfAnotherSize(ConvEncoder):
    def __call__(self, x_0):
        return super().__call__(x_0)[:, 1:]


class WithoutSizes(ConvEncoder):
    def __init__(self, *, image_shape, z_dim, rngs):
        super().__init__(image_shape=image_shape, z_dim=z_dim, dtype=None, rngs=rngs)


class WithoutParameters(nnx.Module):
    def __init__(self, *, z_dim, **_):
        self.z_dim = z_dim

    def __call__(self, x_0):
        return x_0.reshape(len(x_0), -1)[:, : self.z_dim]


class InHalfPrecision(ConvEncoder):
    def __init__(self, *, z_dim, rngs, **settings):
        super().__init__(z_dim=z_dim, rngs=rngs, **settings)
        self.out = nnx.Linear(6, z_dim, param_dtype=jnp.bfloat16, rngs=rngs)


class WithDots(ConvEncoder):
    def __init__(self, *, rngs, **settings):
        super().__init__(rngs=rngs, **settings)
        self.layers = nnx.Dict({"a.b": nnx.Linear(6, 6, rngs=rngs)})


def encoder_of_a_function(**settings):
    return ConvEncoder(**settings)
