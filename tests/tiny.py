"""The smallest run that has every part: 12 steps on the digits."""

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
    )
    config.train.update(batch_size=16, num_images=12 * 16, learning_rate=1e-3, ema_decay=0.9)
    config.data.update(kind="digits")
    config.report.update(
        log_every=5 * 16,
        health_every=6 * 16,
        save_every=4 * 16,
        grid_every=12 * 16,
        num_grid_images=4,
        num_grid_steps=2,
    )
    config.evaluation.update(num_images=16, num_steps=(2,))
    return config
