"""The networks of the paper as plain Flax modules, independent of the diffusion process."""

from diffae_jax.models.autoencoder import DiffusionAutoencoder
from diffae_jax.models.encoder import SemanticEncoder
from diffae_jax.models.encoders import encoder_name
from diffae_jax.models.functional import abstract_model, split
from diffae_jax.models.latent_mlp import LatentMLP
from diffae_jax.models.unet import UNet

__all__ = ["DiffusionAutoencoder", "LatentMLP", "SemanticEncoder", "UNet", "abstract_model", "encoder_name", "split"]
