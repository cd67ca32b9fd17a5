"""The condition of the UNet: turns z into a modulation of each block (Sec. 3.1, Eq. 7).

A condition is a Flax module with two methods:

- `projection(channels, rngs)` creates a layer for one block of the UNet. The block stores it as
  `z_proj`, the name of its weights in bundles and checkpoints.
- `__call__(projections, z)` turns the z given to the UNet into z_s - 1 of Eq. 7 for all blocks:
  [N, sum of the channels of all blocks].

Other parameters of a condition, such as an embedding of labels, have names `unet.condition.*`.
Sampling calls the condition once, before the loop over time steps, because it does not depend on
x_t.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffae_jax.models.blocks import linear


class ZCondition(nnx.Module):
    """The condition of the paper: SiLU, then one dense layer per block.

    Args:
        z_dim: Dimensions of z.
        rngs: Unused, because the only parameters are those of the projections.

    Source: Sec. 3.1, Eq. 7.
    """

    def __init__(self, *, z_dim: int, rngs: nnx.Rngs):
        del rngs
        self.z_dim = z_dim

    def projection(self, channels: int, rngs: nnx.Rngs) -> nnx.Linear:
        """Creates the dense layer of one block.

        It is always float32: in bfloat16 a factor of 1.003 would round to 1.

        Args:
            channels: Channels of the block.
            rngs: Random numbers for the initial weights.
        """
        return linear(self.z_dim, channels, rngs=rngs)

    def __call__(self, projections: Sequence[nnx.Linear], z: Float[Array, "n d"]) -> Float[Array, "n modulation"]:
        """Computes the modulations of all blocks.

        Args:
            projections: The layers of the blocks, in the order of the blocks.
            z: Latent codes, [N, D].

        Returns:
            z_s - 1 of all blocks, concatenated: [N, sum of their channels].
        """
        h = nnx.silu(z)
        return jnp.concatenate([project(h) for project in projections], axis=-1)
