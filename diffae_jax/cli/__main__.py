"""Runs `python -m diffae_jax.cli COMMAND`."""

from diffae_jax.cli import run

if __name__ == "__main__":
    run()
