"""Trains a diffusion autoencoder: python -m diffae_jax.main --config=configs/ffhq128.py"""

from diffae_jax.cli.train import run

if __name__ == "__main__":
    run()
