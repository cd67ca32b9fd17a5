"""The noise predictor eps_theta(x_t, t, z) (Sec. 3.1, Appendix A, Table 5)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from diffae_jax.models.blocks import GroupNorm, ResBlock, conv, linear, row_of_time, timestep_embedding
from diffae_jax.models.functional import checkpointed


def check_divisible(image_shape: tuple[int, ...], num_levels: int) -> None:
    """Raises ValueError if a spatial size cannot be halved between all levels."""
    factor = 2 ** (num_levels - 1)
    if any(size % factor for size in image_shape[:-1]):
        raise ValueError(
            f"Images of spatial shape {image_shape[:-1]} cannot be halved {num_levels - 1} times: each size must be "
            f"a multiple of {factor}; resize the images or use fewer channel multipliers."
        )


class UNet(nnx.Module):
    """Predicts the noise in x_t, given the time step and z.

    The time step and z modulate each residual block through AdaGN (Eq. 7). `time_modulation` and
    `z_modulation` compute everything that depends only on t or only on z. A sampling loop does
    this once, before the first step: see `noise_predictor`.

    Args:
        image_shape: Shape of an image, (*spatial, channels), with 1 to 3 spatial axes.
        base_channels: Feature channels at full resolution.
        channel_mults: Channels of each level, as multiples of base_channels.
        attention_resolutions: Levels whose largest spatial size is listed get self-attention.
        embed_dim: Width of the time embedding.
        condition: Turns z into a modulation of each block: see `models.condition`. None: no z, as
            in the DDIM baseline.
        num_heads: Attention heads.
        num_res_blocks: Residual blocks of each level; the upward half has one more.
        dropout: Fraction of activations set to zero during training.
        remat: Whether to recompute activations in the backward pass to save memory.
        dtype: Type of the activations; None: float32. The weights are always float32.
        rngs: Random numbers for the initial weights.

    Raises:
        ValueError: The sizes do not fit together.

    Source: Sec. 3.1, Appendix A and Table 5.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, ...],
        base_channels: int,
        channel_mults: tuple[int, ...],
        attention_resolutions: tuple[int, ...],
        embed_dim: int,
        condition: nnx.Module | None,
        num_heads: int = 1,
        num_res_blocks: int = 2,
        dropout: float = 0.0,
        remat: bool = False,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        check_divisible(image_shape, len(channel_mults))
        *spatial, in_channels = image_shape
        rank = len(spatial)
        self.base_channels = base_channels
        self.condition = condition
        self.remat = remat
        self.dtype = dtype

        def heads(level):
            return num_heads if max(spatial) // 2**level in attention_resolutions else 0

        def block(inputs, outputs, *, heads=0, resample=None):
            return ResBlock(
                inputs,
                outputs,
                rank=rank,
                embed_dim=embed_dim,
                z_proj=None if condition is None else condition.projection,
                dropout=dropout,
                resample=resample,
                num_heads=heads,
                dtype=dtype,
                rngs=rngs,
            )

        self.time_in = linear(base_channels, embed_dim, rngs=rngs)
        self.time_out = linear(embed_dim, embed_dim, rngs=rngs)
        channels = base_channels * channel_mults[0]
        self.conv_in = conv(in_channels, channels, rank=rank, dtype=dtype, rngs=rngs)

        skips = [channels]
        down = []
        for level, mult in enumerate(channel_mults):
            if level:
                down.append(block(channels, channels, resample="down"))
                skips.append(channels)
            for _ in range(num_res_blocks):
                down.append(block(channels, mult * base_channels, heads=heads(level)))
                channels = mult * base_channels
                skips.append(channels)

        middle = [block(channels, channels, heads=num_heads), block(channels, channels)]

        up = []
        for level, mult in reversed(list(enumerate(channel_mults))):
            for _ in range(num_res_blocks + 1):
                up.append(block(channels + skips.pop(), mult * base_channels, heads=heads(level)))
                channels = mult * base_channels
            if level:
                up.append(block(channels, channels, resample="up"))
        assert not skips

        self.down, self.middle, self.up = nnx.List(down), nnx.List(middle), nnx.List(up)
        self.norm_out = GroupNorm(channels)
        self.conv_out = conv(channels, in_channels, rank=rank, zero=True, dtype=dtype, rngs=rngs)

    @property
    def blocks(self) -> list[ResBlock]:
        """All residual blocks in the order of execution and of the modulations."""
        return [*self.down, *self.middle, *self.up]

    def time_modulation(self, t: Int[Array, "t"]) -> Float[Array, "t modulation"]:
        """Computes (t_s - 1, t_b) of Eq. 7 for all blocks, one row per time step in t [T]."""
        embedding = self.time_out(nnx.silu(self.time_in(timestep_embedding(t, self.base_channels))))
        h = nnx.silu(embedding)
        return jnp.concatenate([block.time_proj(h) for block in self.blocks], axis=-1)

    def z_modulation(self, z: Any) -> Float[Array, "n modulation"]:
        """Computes z_s - 1 of Eq. 7 for all blocks, one row per sample."""
        return self.condition([block.z_proj for block in self.blocks], z)

    def __call__(
        self,
        x_t: Float[Array, "n *shape"],
        t: Int[Array, "n"],
        z: Any = None,
        dropout_keys: Key[Array, "n"] | None = None,
    ) -> Float[Array, "n *shape"]:
        """Predicts the noise.

        Args:
            x_t: Noisy images, [N, *shape].
            t: Time steps in [0, 1000), [N].
            z: Input of the condition: latent codes [N, D] for the condition of the paper. None
                only if the UNet has no condition.
            dropout_keys: One random key per sample [N] for dropout. None: no dropout.

        Returns:
            The predicted noise (or v), float32 [N, *shape].
        """
        z_modulation = None if z is None else self.z_modulation(z)
        return self.modulated(x_t, self.time_modulation(t), z_modulation, dropout_keys)

    def noise_predictor(self, timesteps: Int[Array, "t"], z: Any = None) -> Callable[[Array, Array], Array]:
        """Returns `eps_fn(x_t, t)` for a sampling loop.

        The modulations are computed once, in advance.

        Args:
            timesteps: All time steps of the loop, [T].
            z: Input of the condition: latent codes [N, D] for the condition of the paper.

        Returns:
            A function (x_t [N, *shape], t []) -> predicted noise [N, *shape]. It gives NaN for
            other time steps.
        """
        table = self.time_modulation(timesteps)
        z_modulation = None if z is None else self.z_modulation(z)

        def eps_fn(x_t: Float[Array, "n *shape"], t: Int[Array, ""]) -> Float[Array, "n *shape"]:
            return self.modulated(x_t, row_of_time(table, timesteps, t)[None], z_modulation)

        return eps_fn

    def modulated(
        self,
        x_t: Float[Array, "n *shape"],
        time_modulation: Float[Array, "#n time"],
        z_modulation: Float[Array, "n z"] | None,
        dropout_keys: Key[Array, "n"] | None = None,
    ) -> Float[Array, "n *shape"]:
        """Computes the part of the network that depends on x_t, given the modulations."""
        modulations = self._modulations(time_modulation, z_modulation, dropout_keys)
        call = checkpointed if self.remat else ResBlock.__call__
        h = self.conv_in(x_t.astype(self.dtype or x_t.dtype))
        skips = [h]
        for block in self.down:
            h = call(block, h, *next(modulations))
            skips.append(h)
        for block in self.middle:
            h = call(block, h, *next(modulations))
        for block in self.up:
            if block.resample is None:
                h = jnp.concatenate([h, skips.pop()], axis=-1)
            h = call(block, h, *next(modulations))
        assert not skips
        return self.conv_out(self.norm_out.silu(h)).astype(jnp.float32)

    def _modulations(self, time_modulation, z_modulation, dropout_keys):
        """Yields the modulations and the dropout keys of each block."""
        start = 0
        if dropout_keys is not None:  # the keys of all blocks at once: a call for each would compile for long
            indices = jnp.arange(len(self.blocks))
            dropout_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(dropout_keys, indices)
        for index, block in enumerate(self.blocks):
            stop = start + block.conv2.out_features
            t_scale_shift = time_modulation[:, 2 * start : 2 * stop]
            z_scale = None if z_modulation is None else z_modulation[:, start:stop]
            yield t_scale_shift, z_scale, None if dropout_keys is None else dropout_keys[:, index]
            start = stop
