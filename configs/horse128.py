"""LSUN horses at 128x128: Table 5, Horse 128; Table 6, Horse.

    python -m diffae_jax.main --config=configs/horse128.py --config.data.path=PATH

PATH: a folder of images, or the official horse256.lmdb.
Hardware: the paper used four V100 GPUs.
Cost: 130 M images x 500 GFLOP = 65 EFLOP. This project has not trained this config yet.
Expected: FID 6.71 for unconditional samples at T = 100 (Table 4).
DDIM baseline of the same size, without z: --config=configs/horse128.py:ddim
"""

from ml_collections import ConfigDict

from diffae_jax.config import default, variant


def get_config(name: str | None = None) -> ConfigDict:
    config = default()
    config.name = "horse128"
    config.train.num_images = 130_000_000
    config.prior.update(num_layers=20, batch_size=2048, num_latents=2_000_000_000, weight_decay=0.0)
    config.report.update(prior_log_every=10_000_000, prior_save_every=50_000_000, prior_grid_every=100_000_000)
    return variant(config, name)
