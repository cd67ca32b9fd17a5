"""Reads models and images for the commands."""

from pathlib import Path
from typing import Any

from diffae_jax import DiffAE
from diffae_jax.data.formats.files import file_paths
from diffae_jax.data.sources import TransformedSource, read
from diffae_jax.runtime.compilation import enable_compilation_cache


def load(path: Path) -> DiffAE:
    """Loads a model and turns on the compilation cache, which later commands use again."""
    enable_compilation_cache()
    return DiffAE.load(path)


def images_of(images: TransformedSource) -> Any:
    """Returns images for `DiffAE`, as paths if they are files, so that it logs conversions."""
    return file_paths(images) or read(images, range(len(images)))
