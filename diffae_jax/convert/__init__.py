"""Converts official PyTorch checkpoints to DiffAE, without PyTorch.

Does not depend on the package `stages`.
"""

from diffae_jax.convert.official import import_official

__all__ = ["import_official"]
