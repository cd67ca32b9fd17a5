"""Faces at 128x128 with a smaller z: the ablation of Table 2, b to e, with 48 M training images.

    python -m diffae_jax.main --config=configs/ffhq128_48m.py:z64 --config.data.path=PATH

PATH: a folder of images, or the official ffhq256.lmdb.
Dimensions of z: 512 (b); with a variant, 256 (c, :z256), 128 (d, :z128) or 64 (e, :z64).
Hardware: the paper used four V100 GPUs.
Cost: 48 M images x 500 GFLOP = 24 EFLOP. The official code trains 41.65 images/s on a V100: 320
hours on one. This project has not trained this config yet.
Expected for b, c, d, e on 30,000 images of CelebA-HQ with random x_T at T = 100:
- SSIM 0.631, 0.606, 0.582, 0.521
- MSE 0.010, 0.011, 0.013, 0.020
- LPIPS 0.092, 0.105, 0.124, 0.162
DDIM baseline of the same size, without z: --config=configs/ffhq128_48m.py:ddim
"""

from ml_collections import ConfigDict

from diffae_jax.config import default, variant


def get_config(name: str | None = None) -> ConfigDict:
    config = default()
    config.name = "ffhq128_48m"
    config.train.num_images = 48_000_000
    return variant(config, name)
