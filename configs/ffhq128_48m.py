"""Faces at 128x128 with a smaller z: the ablation of Table 2, b to e. 48 M images instead of 130 M, as there.

    python -m diffae_jax.main --config=configs/ffhq128_48m.py:z64 --config.data.path=PATH

PATH is a folder of the images, or the official ffhq256.lmdb.
z has 512 dimensions (b), or with a variant 256 (c, :z256), 128 (d, :z128) or 64 (e, :z64).
Hardware: the paper used four V100. Cost: 48 M images x 500 GFLOP = 24 EFLOP; the official code trains 41.65
images/s on a V100, which is 320 hours of one. Not yet trained here.
Expected (30,000 images of CelebA-HQ, random x_T, T = 100): SSIM 0.631, 0.606, 0.582, 0.521; MSE 0.010, 0.011, 0.013,
0.020; LPIPS 0.092, 0.105, 0.124, 0.162 for b, c, d, e.
The DDIM baseline of the same size, without z: --config=configs/ffhq128_48m.py:ddim
"""

from ml_collections import ConfigDict

from diffae_jax.config import default, variant


def get_config(name: str | None = None) -> ConfigDict:
    config = default()
    config.name = "ffhq128_48m"
    config.train.num_images = 48_000_000
    return variant(config, name)
