"""Official PyTorch checkpoints -> DiffAE: the only place that knows their format. Needs no PyTorch."""

from diffae_jax.convert.official import import_official

__all__ = ["import_official"]
