"""The smallest run that has every part: 12 steps of the autoencoder on the digits, 80 of the latent DDIM."""

import jax
import numpy as np
from ml_collections import ConfigDict

from diffae_jax import DiffAE
from diffae_jax.config import default
from diffae_jax.data.latents import LatentStatistics
from diffae_jax.models import abstract_model
from diffae_jax.networks import builder, prior_builder


def get_config() -> ConfigDict:
    config = default()
    config.name = "tiny"
    config.image_shape = (8, 8, 1)
    config.model.update(
        base_channels=32,
        channel_mults=(1,),
        encoder_channel_mults=(1,),
        attention_resolutions=(),
        embed_dim=32,
        z_dim=8,
    )
    config.train.update(batch_size=16, num_images=12 * 16, learning_rate=1e-3, ema_decay=0.9)
    config.prior.update(num_layers=3, width=32, batch_size=32, num_latents=80 * 32, learning_rate=1e-3, ema_decay=0.9)
    config.data.update(kind="digits")
    config.execution.steps_per_dispatch = 4
    config.report.update(
        log_every=5 * 16,
        health_every=6 * 16,
        save_every=4 * 16,
        grid_every=12 * 16,
        num_grid_images=4,
        num_grid_steps=2,
        prior_log_every=10 * 32,
        prior_save_every=8 * 32,
        prior_grid_every=80 * 32,
        num_sample_images=4,
    )
    config.evaluation.update(num_images=16, num_steps=(2,), num_samples=16, num_sample_steps=2)
    return config


def random_model(mesh, seed=0, **settings):
    """The model of this config with random weights everywhere, those that training starts from at zero included."""
    config, rng = get_config(), np.random.default_rng(seed)
    shapes = {"autoencoder": builder(config, "float32"), "prior": prior_builder(config, "float32")}
    weights = jax.tree.map(
        lambda a: rng.normal(scale=0.1, size=a.shape).astype(np.float32),
        {name: abstract_model(make)[1] for name, make in shapes.items()},
    )
    statistics = LatentStatistics(*rng.uniform(1, 2, (2, config.model.z_dim)).astype(np.float32))
    found = dict(statistics=statistics, prior=weights["prior"], mesh=mesh) | settings
    return DiffAE(config, weights["autoencoder"], **found)
