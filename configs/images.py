"""Your own images: a folder, or any other format in docs/data.md, resized and cropped to 64x64.

    python -m diffae_jax.main --config=configs/images.py --config.data.path=PATH

Useful flags:
- other sizes, in multiples of 16: --config.image_shape="(128, 128, 3)"
- gray images: --config.image_shape="(64, 64, 1)"
- if left and right differ in meaning, as in text or X-rays: --config.data.flip=False
- one run per data set: --config.name=NAME

Hardware: one GPU; a CPU is enough to try it out.
Cost: 10 M images x 49 GFLOP = 0.5 EFLOP. This project has not trained this config to the end.
Expected: pictures in runs/NAME/autoencoder/grids. The second row (inferred x_T) soon resembles the
first row (input). Later, the third row (random x_T) shows the same content with different
details.
"""

from ml_collections import ConfigDict

from diffae_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.name = "images"
    config.image_shape = (64, 64, 3)
    config.model.update(base_channels=64, channel_mults=(1, 2, 2, 4), encoder_channel_mults=(1, 2, 2, 4, 4))
    config.train.update(batch_size=64, num_images=10_000_000, ema_decay=0.999)
    config.prior.update(num_latents=10_000_000, ema_decay=0.999)
    config.data.held_out_share = 0.02
    config.report.update(log_every=10_000, health_every=100_000, save_every=200_000, grid_every=200_000)
    config.report.update(prior_log_every=500_000, prior_save_every=2_000_000, prior_grid_every=2_000_000)
    config.export.pictures = False  # your images may be private
    return config
