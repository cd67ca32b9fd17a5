"""Faces of celebrities at 64x64: CelebA 64 of Table 5, CelebA of Table 6.

    python -m diffae_jax.main --config=configs/celeba64.py --config.data.path=PATH

PATH holds the aligned images of 178x218: a folder of them, the official celeba.lmdb, or celeb_a of TFDS. They are
cropped as D2C does, 128x128 around (x 89, y 121); for images that are cropped already add --config.data.crop=center.
Hardware: the paper used V100s; the run prints the memory it needs.
Cost: 72 M images x 89 GFLOP = 6.4 EFLOP. Not yet trained here.
Expected: FID 5.30 unconditional at T = 100 (Table 4).
The DDIM baseline of the same size, without z: --config=configs/celeba64.py:ddim
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
