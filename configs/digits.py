"""The 8x8 digits of scikit-learn: the entire method in minutes.

    python -m diffae_jax.main --config=configs/digits.py

Hardware: two CPU cores.
Time in minutes: installation 1, autoencoder 5, prior 0.5, evaluation 1.5.
Cost: 80,000 images x 136 MFLOP = 11 TFLOP, and 0.8 TFLOP for the prior.

Expected on held-out digits by unseen writers. Rounding differs between processors:
- MSE with inferred x_T, images in [0, 1]: 4.4e-4 at 20 steps, 2.3e-5 at 100 steps
- accuracy of a logistic regression of the label: 88.1 % from z (seeds 1 and 2: 89.7 %, 91.9 %),
  89.7 % from pixels
- accuracy of an SVM trained on real digits: 86 % on reconstructions with random x_T (seeds 1 and
  2: 88 %, 81 %), 93 % on real digits
- Frechet distance in 32 principal components: 1.32 for 400 samples, 1.20 for training digits, 8.9
  for images from Gaussian z

Longer training mainly improves z: with 120,000 images, the accuracy of the SVM is 90 %.

DDIM baseline of the same size, without z: --config=configs/digits.py:ddim

Networks that predict v instead of the noise: --config=configs/digits.py:v
- MSE 5.7e-4 at 20 steps, 2.7e-5 at 100 steps
- accuracy 90 % with the SVM, 90.8 % with the logistic regression from z
- Frechet distance 1.16

The noise schedule is cosine. With the linear schedule, the MSE at 20 steps is 1.3e-3. During
half of that schedule's steps, so small an image is pure noise. The encoder ends with 128 channels,
so that each of its 32 normalization groups has several channels (see docs/architecture.md).
"""

from ml_collections import ConfigDict

from diffae_jax.config import default, variant


def get_config(name: str | None = None) -> ConfigDict:
    config = default()
    config.name = "digits"
    config.image_shape = (8, 8, 1)
    config.model.update(
        base_channels=32,
        channel_mults=(1, 2),
        encoder_channel_mults=(1, 2, 4),
        attention_resolutions=(),
        embed_dim=128,
        z_dim=128,
        dropout=0.0,
    )
    config.train.update(batch_size=32, num_images=80_000, schedule="cosine", learning_rate=2e-3, ema_decay=0.998)
    config.prior.update(width=128, batch_size=128, num_latents=256_000, learning_rate=1e-3, ema_decay=0.998)
    config.data.update(path="digits", flip=False)
    config.report.update(log_every=5_000, health_every=20_000, save_every=40_000, grid_every=40_000, num_grid_images=12)
    config.report.update(prior_log_every=32_000, prior_save_every=64_000, prior_grid_every=128_000)
    config.evaluation.update(
        programs=(  # the fast programs
            "reconstruction",
            "labels",
            "variations",
            "sampling",
            "neighbors",
            "out_of_distribution",
        ),
        num_images=120,
        num_steps=(10, 20, 100),
        num_samples=400,
        num_sample_steps=(20,),
        num_code_steps=20,
    )
    config.export.license = "cc-by-4.0"  # that of the digits
    return variant(config, name)
