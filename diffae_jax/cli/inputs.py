"""Loads the models and images that the commands use."""

from typing import Any

from diffae_jax import DiffAE
from diffae_jax.data.formats.files import file_paths
from diffae_jax.data.sources import TransformedSource, read
from diffae_jax.runtime.compilation import enable_compilation_cache
from diffae_jax.runtime.files import AnyPath


def load(path: AnyPath) -> DiffAE:
    """Loads a model and enables the compilation cache, which all commands share."""
    enable_compilation_cache()
    return DiffAE.load(path)


def images_of(images: TransformedSource) -> Any:
    """Returns images as `DiffAE` takes them: paths of files, or arrays.

    Given paths, `DiffAE` can report what it converted. It would not know the selected array.
    """
    is_selected = getattr(images.source, "array", "")
    return (file_paths(images) if not is_selected else []) or read(images, range(len(images)))
