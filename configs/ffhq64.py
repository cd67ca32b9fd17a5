"""Faces at 64x64: Table 5, FFHQ 64; Table 6, FFHQ.

    python -m diffae_jax.main --config=configs/ffhq64.py --config.data.path=PATH

PATH: a folder of images, or the official ffhq256.lmdb.
Hardware: the paper used V100 GPUs. The run prints how much memory it needs.
Cost: 48 M images x 89 GFLOP = 4.3 EFLOP. The official code trains 128 images/s on a V100: 104
hours on one, 26 hours on four. This project has not trained this config yet.
Expected: Table 4 of the paper, FFHQ.
DDIM baseline of the same size, without z: --config=configs/ffhq64.py:ddim
"""

from ml_collections import ConfigDict

from diffae_jax.config import default, variant


def get_config(name: str | None = None) -> ConfigDict:
    config = default()
    config.name = "ffhq64"
    config.image_shape = (64, 64, 3)
    config.model.update(base_channels=64, channel_mults=(1, 2, 4, 8), encoder_channel_mults=(1, 2, 4, 8, 8))
    config.train.num_images = 48_000_000
    return variant(config, name)
