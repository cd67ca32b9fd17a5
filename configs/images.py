"""Your own images: a folder of files of any size, or what else docs/data.md lists, resized and cropped to 64x64.

    python -m diffae_jax.main --config=configs/images.py --config.data.path=PATH

Another size: --config.image_shape="(128, 128, 3)", a multiple of 16; gray: "(64, 64, 1)". Where left and right mean
something (text, X-rays): --config.data.flip=False. One run a data set: name it with --config.name=NAME.

Hardware: one GPU; a CPU for trying out. Cost: 10 M images x 49 GFLOP = 0.5 EFLOP. Not yet trained here at that length.
Expected: grids in runs/NAME/autoencoder/grids whose second row follows the first, and later the third its meaning.
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
    return config
