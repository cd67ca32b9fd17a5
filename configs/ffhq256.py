"""Faces at 256x256: Table 5, FFHQ 256; Table 6, FFHQ.

    python -m diffae_jax.main --config=configs/ffhq256.py --config.data.path=PATH

PATH: a folder of images, or the official ffhq256.lmdb.
Hardware: the paper used V100 GPUs. The run prints how much memory it needs.
To reduce it: --config.execution.remat=True
Cost: 90 M images x 1876 GFLOP = 169 EFLOP. The official code trains 10.08 images/s on a V100:
2480 hours on one. This project has not trained this config yet.
Expected: Figures 1 and 5 of the paper, which has no table for this size.
DDIM baseline of the same size, without z: --config=configs/ffhq256.py:ddim
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
