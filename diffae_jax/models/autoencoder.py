"""Encoder and conditional UNet as one model (Fig. 2, Fig. 7)."""

from collections.abc import Callable

from flax import nnx
from jaxtyping import Array, Float, Int, Key

from diffae_jax.models.encoder import SemanticEncoder
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
            z_dim=z_dim,
            num_heads=num_heads,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.unet = UNet(channel_mults=tuple(channel_mults), embed_dim=embed_dim, dropout=dropout, **shared)
        self.encoder = (
            SemanticEncoder(channel_mults=tuple(encoder_channel_mults), **shared) if z_dim is not None else None
        )

    def encode(self, x_0: Float[Array, "n *shape"]) -> Float[Array, "n d"] | None:
        """Returns z of each image in [-1, 1]; None for the baseline, which has no z."""
        return None if self.encoder is None else self.encoder(x_0)

    def __call__(
        self,
        x_t: Float[Array, "n *shape"],
        t: Int[Array, "n"],
        z: Float[Array, "n d"] | None = None,
        dropout_keys: Key[Array, "n"] | None = None,
    ) -> Float[Array, "n *shape"]:
        """Returns eps_theta(x_t, t, z) of Eq. 5."""
        return self.unet(x_t, t, z, dropout_keys)

    def noise_predictor(
        self, timesteps: Int[Array, "t"], z: Float[Array, "n d"] | None = None
    ) -> Callable[[Array, Array], Array]:
        """Returns `eps_fn(x_t, t)` for a sampling loop over `timesteps`."""
        return self.unet.noise_predictor(timesteps, z)
