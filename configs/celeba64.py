"""Faces of celebrities at 64x64: Table 5, CelebA 64; Table 6, CelebA.

    python -m diffae_jax.main --config=configs/celeba64.py --config.data.path=PATH

PATH: the aligned images of 178x218 pixels, as a folder, the official celeba.lmdb, or celeb_a from
TensorFlow Datasets. They are cropped as in D2C: 128x128 pixels around (x 89, y 121). If your
images are already cropped, add --config.data.crop=center.
Hardware: the paper used V100 GPUs. The run prints how much memory it needs.
Cost: 72 M images x 89 GFLOP = 6.4 EFLOP. This project has not trained this config yet.
Expected: FID 5.30 for unconditional samples at T = 100 (Table 4).
DDIM baseline of the same size, without z: --config=configs/celeba64.py:ddim
"""

from ml_collections import ConfigDict

from diffae_jax.config import default, variant


def get_config(name: str | None = None) -> ConfigDict:
    config = default()
    config.name = "celeba64"
    config.image_shape = (64, 64, 3)
    config.model.update(base_channels=64, channel_mults=(1, 2, 4, 8), encoder_channel_mults=(1, 2, 4, 8, 8))
    config.train.num_images = 72_000_000
    config.data.crop = "celeba"
    config.prior.update(batch_size=512, num_latents=300_000_000)
    return variant(config, name)
