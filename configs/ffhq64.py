"""Faces at 64x64: FFHQ 64 of Table 5, FFHQ of Table 6.

    python -m diffae_jax.main --config=configs/ffhq64.py --config.data.path=PATH

PATH is a folder of the images, or the official ffhq256.lmdb.
Hardware: the paper used V100s; the run prints the memory it needs. Cost: 48 M images x 89 GFLOP = 4.3 EFLOP; the
official code trains 128 images/s on a V100, which is 104 hours of one or 26 of four. Not yet trained here.
Expected: Table 4 of the paper, FFHQ.
The DDIM baseline of the same size, without z: --config=configs/ffhq64.py:ddim
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
