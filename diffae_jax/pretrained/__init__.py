"""The models that ship with the package, and example images of each. Depends on `runtime` only."""

from diffae_jax.pretrained.catalog import Examples, examples, folder_of, is_shipped, names

__all__ = ["Examples", "examples", "folder_of", "is_shipped", "names"]
