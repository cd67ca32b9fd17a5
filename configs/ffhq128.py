"""Faces at 128x128, the main model of the paper: Table 5, FFHQ 128; Table 6, FFHQ.

    python -m diffae_jax.main --config=configs/ffhq128.py --config.data.path=PATH

PATH: a folder of images, or the official ffhq256.lmdb.
Hardware: the paper used four V100 GPUs.
Cost: 130 M images x 500 GFLOP = 65 EFLOP. The official code trains 41.65 images/s on a V100: 867
hours on one, 217 hours on four. This project has not trained this config yet.
Expected on 30,000 images of CelebA-HQ at T = 100 (Table 2):
- inferred x_T: SSIM 0.991, LPIPS 0.011, MSE 6.07e-5
- random x_T: SSIM 0.677, LPIPS 0.073, MSE 0.007
DDIM baseline of the same size, without z: --config=configs/ffhq128.py:ddim
"""

from ml_collections import ConfigDict

from diffae_jax.config import default, variant


def get_config(name: str | None = None) -> ConfigDict:
    config = default()
    config.name = "ffhq128"
    config.train.num_images = 130_000_000
    return variant(config, name)
