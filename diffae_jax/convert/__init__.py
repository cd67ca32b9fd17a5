"""Official PyTorch checkpoints -> DiffAE: their names and settings. Needs no PyTorch and knows no stage."""

from diffae_jax.convert.official import import_official

__all__ = ["import_official"]
