"""Faces at 128x128: FFHQ 128 of Table 5, the paper's main model; FFHQ of Table 6.

    python -m diffae_jax.main --config=configs/ffhq128.py --config.data.path=PATH

PATH is a folder of the images, or the official ffhq256.lmdb.
Hardware: the paper used four V100. Cost: 130 M images x 500 GFLOP = 65 EFLOP; the official code trains 41.65
images/s on a V100, which is 867 hours of one or 217 of four. Not yet trained here.
Expected (Table 2, T = 100, 30,000 images of CelebA-HQ): SSIM 0.991, LPIPS 0.011, MSE 6.07e-5 with inferred x_T;
SSIM 0.677, LPIPS 0.073, MSE 0.007 with random x_T.
The DDIM baseline of the same size, without z: --config=configs/ffhq128.py:ddim
"""

from ml_collections import ConfigDict

from diffae_jax.config import default, variant


def get_config(name: str | None = None) -> ConfigDict:
    config = default()
    config.name = "ffhq128"
    config.train.num_images = 130_000_000
    return variant(config, name)
