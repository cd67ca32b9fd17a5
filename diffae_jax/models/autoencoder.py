"""The semantic encoder and the conditional UNet as one model (Fig. 2, Fig. 7)."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from diffae_jax.models.condition import ZCondition
from diffae_jax.models.encoder import SemanticEncoder
from diffae_jax.models.functional import parameters_only
from diffae_jax.models.unet import UNet


class DiffusionAutoencoder(nnx.Module):
    """The semantic encoder and the UNet that is conditioned on its z.

    Args:
        image_shape: Shape of an image, (*spatial, channels), with 1 to 3 spatial axes.
        base_channels: Feature channels at full resolution.
        channel_mults: Channels of each UNet level, as multiples of base_channels.
        encoder_channel_mults: Channels of each encoder level, as multiples of base_channels.
        encoder: The class of the encoder: see `models.encoders`.
        condition: The class that turns z into modulations of the UNet: see `models.condition`.
        attention_resolutions: Levels whose largest spatial size is listed get self-attention.
        embed_dim: Width of the time embedding.
        z_dim: Dimensions of z. None: the DDIM baseline, a UNet without encoder and z.
        num_heads: Attention heads.
        num_res_blocks: Residual blocks of each level: see `UNet`.
        dropout: Fraction of activations of the UNet set to zero during training.
        remat: Whether to recompute activations in the backward pass to save memory.
        dtype: Type of the activations; None: float32. The weights are always float32.
        rngs: Random numbers for the initial weights.

    Raises:
        ValueError: The sizes do not fit together, or the encoder has state besides its parameters.

    Source: Fig. 2, Fig. 7 and Table 5.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, ...],
        base_channels: int,
        channel_mults: tuple[int, ...],
        encoder_channel_mults: tuple[int, ...],
        encoder: type[nnx.Module] = SemanticEncoder,
        condition: type[nnx.Module] = ZCondition,
        attention_resolutions: tuple[int, ...],
        embed_dim: int,
        z_dim: int | None,
        num_heads: int = 1,
        num_res_blocks: int = 2,
        dropout: float = 0.0,
        remat: bool = False,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        if not 2 <= len(image_shape) <= 4:
            raise ValueError(f"image_shape must be (*spatial, channels) with 1 to 3 spatial axes, not {image_shape}.")
        shared = dict(
            image_shape=tuple(image_shape),
            base_channels=base_channels,
            attention_resolutions=tuple(attention_resolutions),
            num_heads=num_heads,
            num_res_blocks=num_res_blocks,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        has_z = z_dim is not None
        self.unet = UNet(
            channel_mults=tuple(channel_mults),
            embed_dim=embed_dim,
            condition=condition(z_dim=z_dim, rngs=rngs) if has_z else None,
            dropout=dropout,
            **shared,
        )
        self.encoder = (
            parameters_only(encoder(z_dim=z_dim, channel_mults=tuple(encoder_channel_mults), **shared))
            if has_z
            else None
        )

    def encode(self, x_0: Float[Array, "n *shape"]) -> Float[Array, "n d"] | None:
        """Encodes images.

        Args:
            x_0: Images in [-1, 1], [N, *shape].

        Returns:
            Latent codes z, float32 [N, D], or None for the DDIM baseline.
        """
        return None if self.encoder is None else self.encoder(x_0).astype(jnp.float32)

    def __call__(
        self,
        x_t: Float[Array, "n *shape"],
        t: Int[Array, "n"],
        z: Any = None,
        dropout_keys: Key[Array, "n"] | None = None,
    ) -> Float[Array, "n *shape"]:
        """Predicts the noise: eps_theta(x_t, t, z) of Eq. 5. See `UNet.__call__`."""
        return self.unet(x_t, t, z, dropout_keys)

    def noise_predictor(self, timesteps: Int[Array, "t"], z: Any = None) -> Callable[[Array, Array], Array]:
        """Returns `eps_fn(x_t, t)` for a sampling loop. See `UNet.noise_predictor`."""
        return self.unet.noise_predictor(timesteps, z)
