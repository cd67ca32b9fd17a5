"""The semantic encoder z = Enc_phi(x_0) (Sec. 3.2, Table 5)."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from diffae_jax.models.blocks import GroupNorm, ResBlock, conv, linear
from diffae_jax.models.functional import checkpointed
from diffae_jax.models.unet import check_divisible


class SemanticEncoder(nnx.Module):
    """Turns an image into z: the downward half of a UNet without time steps, then an average.

    Args:
        image_shape: Shape of an image, (*spatial, channels), with 1 to 3 spatial axes.
        base_channels: Feature channels at full resolution.
        channel_mults: Channels of each level, as multiples of base_channels.
        attention_resolutions: Levels whose largest spatial size is listed get self-attention.
        z_dim: Dimensions of z.
        num_heads: Attention heads.
        num_res_blocks: Residual blocks of each level.
        remat: Whether to recompute activations in the backward pass to save memory.
        dtype: Type of the activations; None: float32. The weights are always float32.
        rngs: Random numbers for the initial weights.

    Raises:
        ValueError: The sizes do not fit together.

    Source: Sec. 3.2 and Table 5.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, ...],
        base_channels: int,
        channel_mults: tuple[int, ...],
        attention_resolutions: tuple[int, ...],
        z_dim: int,
        num_heads: int = 1,
        num_res_blocks: int = 2,
        remat: bool = False,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        check_divisible(image_shape, len(channel_mults))
        *spatial, in_channels = image_shape
        layer = {"rank": len(spatial), "dtype": dtype, "rngs": rngs}
        self.remat = remat
        self.dtype = dtype

        channels = base_channels * channel_mults[0]
        self.conv_in = conv(in_channels, channels, **layer)
        blocks = []
        for level, mult in enumerate(channel_mults):
            heads = num_heads if max(spatial) // 2**level in attention_resolutions else 0
            if level:
                blocks.append(ResBlock(channels, channels, resample="down", **layer))
            for _ in range(num_res_blocks):
                blocks.append(ResBlock(channels, mult * base_channels, num_heads=heads, **layer))
                channels = mult * base_channels
        blocks += [ResBlock(channels, channels, num_heads=num_heads, **layer), ResBlock(channels, channels, **layer)]
        self.blocks = nnx.List(blocks)
        self.norm_out = GroupNorm(channels)
        self.out = linear(channels, z_dim, rngs=rngs)  # float32, because z is used for measurements

    def __call__(self, x_0: Float[Array, "n *shape"]) -> Float[Array, "n d"]:
        """Encodes images.

        Args:
            x_0: Images in [-1, 1], [N, *shape].

        Returns:
            Latent codes z, float32 [N, D].
        """
        h = self.conv_in(x_0.astype(self.dtype or x_0.dtype))
        for block in self.blocks:
            h = checkpointed(block, h) if self.remat else block(h)
        h = self.norm_out.silu(h)
        return self.out(h.mean(range(1, h.ndim - 1), dtype=jnp.float32))
