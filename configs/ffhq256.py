"""Faces at 256x256: FFHQ 256 of Table 5, FFHQ of Table 6.

    python -m diffae_jax.main --config=configs/ffhq256.py --config.data.path=PATH

PATH is a folder of the images, or the official ffhq256.lmdb.
Hardware: the paper used V100s; the run prints the memory it needs (less: --config.execution.remat=True).
Cost: 90 M images x 1876 GFLOP = 169 EFLOP; the official code trains 10.08 images/s on a V100, which is 2480 hours of
one. Not yet trained here.
Expected: Figures 1 and 5 of the paper; it gives no table for this size.
The DDIM baseline of the same size, without z: --config=configs/ffhq256.py:ddim
"""

from ml_collections import ConfigDict

from diffae_jax.config import default, variant


def get_config(name: str | None = None) -> ConfigDict:
    config = default()
    config.name = "ffhq256"
    config.image_shape = (256, 256, 3)
    config.model.update(channel_mults=(1, 1, 2, 2, 4, 4), encoder_channel_mults=(1, 1, 2, 2, 4, 4, 4))
    config.train.update(batch_size=64, num_images=90_000_000)
    return variant(config, name)
