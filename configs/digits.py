"""The digits of scikit-learn, 8x8: the whole method in minutes.

python -m diffae_jax.main --config=configs/digits.py
"""

from ml_collections import ConfigDict

from diffae_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.name = "digits"
    config.image_shape = (8, 8, 1)
    config.model.update(
        base_channels=32,
        channel_mults=(1, 2),
        encoder_channel_mults=(1, 2, 4),
        attention_resolutions=(),
        embed_dim=128,
        z_dim=128,
        dropout=0.0,
    )
    config.train.update(batch_size=32, num_images=90_000, schedule="cosine", learning_rate=2e-3, ema_decay=0.998)
    config.data.update(kind="digits", flip=False)
    config.report.update(log_every=5_000, health_every=25_000, save_every=50_000, grid_every=50_000, num_grid_images=12)
    return config
