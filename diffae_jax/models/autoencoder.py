"""Encoder and conditional UNet as one model (Fig. 2, Fig. 7)."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from diffae_jax.models.condition import ZCondition
from diffae_jax.models.encoder import SemanticEncoder
from diffae_jax.models.functional import parameters_only
from diffae_jax.models.unet import UNet


class DiffusionAutoencoder(nnx.Module):
    """The semantic encoder and the UNet that it conditions; with `z_dim=None` the UNet alone, the DDIM baseline."""

    def __init__(
        self,
        *,
        image_shape: tuple[int, ...],  # (*spatial, channels), 1 to 3 spatial axes
        base_channels: int,
        channel_mults: tuple[int, ...],  # of the UNet, one a level
        encoder_channel_mults: tuple[int, ...],
        encoder: type[nnx.Module] = SemanticEncoder,  # any class that encoders.py describes
        condition: type[nnx.Module] = ZCondition,  # how z reaches the UNet: see condition.py
        attention_resolutions: tuple[int, ...],
        embed_dim: int,
        z_dim: int | None,
        num_heads: int = 1,
        dropout: float = 0.0,
        remat: bool = False,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        if not 2 <= len(image_shape) <= 4:
            raise ValueError(f"image_shape must be (*spatial, channels) with 1 to 3 spatial axes, not {image_shape}.")
        shared = dict(
            image_shape=tuple(image_shape),
            base_channels=base_channels,
            attention_resolutions=tuple(attention_resolutions),
            num_heads=num_heads,
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
        """Returns z of each image in [-1, 1]; None for the baseline, which has no z."""
        return None if self.encoder is None else self.encoder(x_0).astype(jnp.float32)

    def __call__(
        self,
        x_t: Float[Array, "n *shape"],
        t: Int[Array, "n"],
        z: Any = None,  # [N, D], or what else the condition takes
        dropout_keys: Key[Array, "n"] | None = None,
    ) -> Float[Array, "n *shape"]:
        """Returns eps_theta(x_t, t, z) of Eq. 5."""
        return self.unet(x_t, t, z, dropout_keys)

    def noise_predictor(self, timesteps: Int[Array, "t"], z: Any = None) -> Callable[[Array, Array], Array]:
        """Returns `eps_fn(x_t, t)` for a sampling loop over `timesteps`."""
        return self.unet.noise_predictor(timesteps, z)
