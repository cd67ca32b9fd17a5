"""What the UNet is conditioned on: the one place that turns z into a modulation of each block (Sec. 3.1, Eq. 7).

A condition is a module with two methods. `projection(channels, rngs)` makes the layer that one block of the UNet keeps
for it (as `z_proj`, the name that the weights have in bundles and checkpoints). The call turns whatever the UNet is
given as z into z_s of Eq. 7, as an offset from 1, for all blocks at once: one row a sample, one column for each channel
of each block. Its own parameters, if it has any, such as the embedding of a label, are `unet.condition.*`.

It is called once a sampling, before the loop over time steps, since nothing in it depends on x_t.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffae_jax.models.blocks import linear


class ZCondition(nnx.Module):
    """The condition of the paper: z passes SiLU and one dense layer a block. It has no parameters of its own."""

    def __init__(self, *, z_dim: int, rngs: nnx.Rngs):
        del rngs
        self.z_dim = z_dim

    def projection(self, channels: int, rngs: nnx.Rngs) -> nnx.Linear:
        """Makes the layer of one block; float32 at every precision: in bfloat16 a factor of 1.003 would be 1."""
        return linear(self.z_dim, channels, rngs=rngs)

    def __call__(self, projections: Sequence[nnx.Linear], z: Float[Array, "n d"]) -> Float[Array, "n modulation"]:
        """Returns z_s - 1 of every block, in the order of their projections."""
        h = nnx.silu(z)
        return jnp.concatenate([project(h) for project in projections], axis=-1)
