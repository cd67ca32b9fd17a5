"""What the commands read: models and images."""

from pathlib import Path
from typing import Any

from diffae_jax import DiffAE
from diffae_jax.data.formats.files import file_paths
from diffae_jax.data.sources import Prepared, read
from diffae_jax.runtime.compilation import keep_compiled_programs


def load(path: Path) -> DiffAE:
    """Loads a model whose programs are compiled once for all commands to come."""
    keep_compiled_programs()
    return DiffAE.load(path)


def images_of(images: Prepared) -> Any:
    """Returns images as `DiffAE` takes them: files by their paths, for it says what it converted."""
    return file_paths(images) or read(images, range(len(images)))
