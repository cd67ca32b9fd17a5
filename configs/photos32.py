"""Your own images on a laptop: resized and cropped to 32x32, with a small model.

    python -m diffae_jax.main --config=configs/photos32.py --config.data.path=PATH

Useful flags are those of configs/images.py. Sizes are multiples of 8.

Hardware: a laptop CPU.
Cost: 100,000 images x 2.7 GFLOP = 0.27 PFLOP. On two cores that do nothing else, 33 images/s and
50 minutes. The other stages take minutes.

Expected after a third of it, 33,568 images, on 64 cells of blood smears whose slides were held
out (the shipped model `cells`: 3,090 training images, 20 steps, images in [0, 1]):
- MSE 5.0e-4 with inferred x_T, 4.4e-3 with random x_T
- accuracy of the probe of the kind of cell: 99.4 %; R^2 of the probe of the diameter: 0.75

On 13,165 gray faces, `--config.image_shape="(32, 32, 1)"`, after 48,000 images (held out: 697):
- MSE 8.6e-4 with inferred x_T, 1.7e-2 with random x_T (20 steps, 64 images in [0, 1])
- AUROC of the probe of a smile: 0.88

The UNet predicts v. When it predicted the noise, with the same schedule, random x_T decoded to
wrong colors and noise after 28,000 images: at the last time steps, hardly any of the image is
left, and an error of the noise is amplified 1,000 times and more.
"""

from ml_collections import ConfigDict

from diffae_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.name = "photos32"
    config.image_shape = (32, 32, 3)
    config.model.update(
        base_channels=32,
        channel_mults=(1, 2, 2),
        encoder_channel_mults=(1, 2, 2, 4),
        attention_resolutions=(8,),
        embed_dim=128,
        z_dim=128,
        dropout=0.0,
    )
    config.train.update(batch_size=32, num_images=100_000, schedule="cosine", parameterization="v")
    config.train.update(learning_rate=1e-3, ema_decay=0.999, ema_warmup=True)
    config.prior.update(width=384, batch_size=128, num_latents=1_000_000, learning_rate=1e-3, ema_decay=0.999)
    config.data.held_out_share = 0.05
    config.report.update(log_every=2_000, health_every=20_000, save_every=20_000, grid_every=20_000)
    config.report.update(prior_log_every=100_000, prior_save_every=500_000, prior_grid_every=500_000)
    config.evaluation.update(
        programs=("reconstruction", "labels", "variations", "sampling", "neighbors"),
        num_images=64,
        num_steps=(20, 100),
        num_samples=200,
        num_sample_steps=(20,),
        num_code_steps=20,
    )
    config.export.pictures = False  # your images may be private
    return config
