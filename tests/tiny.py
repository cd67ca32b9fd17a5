"""The smallest run with every stage: 12 steps of the autoencoder, 80 of the prior."""

from ml_collections import ConfigDict

from diffae_jax.config import default


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
        num_res_blocks=1,
    )
    config.train.update(batch_size=16, num_images=12 * 16, learning_rate=1e-3, ema_decay=0.9)
    config.prior.update(num_layers=3, width=32, batch_size=32, num_latents=80 * 32, learning_rate=1e-3, ema_decay=0.9)
    config.data.update(path="digits")
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
    config.evaluation.update(
        programs=("reconstruction", "labels", "sampling"),
        num_images=16,
        num_steps=(2,),
        num_samples=16,
        num_sample_steps=(2,),
        num_code_steps=2,
    )
    return config
