"""Loads the models and images that the commands use."""

from typing import Any

from diffae_jax import DiffAE
from diffae_jax.data.formats.files import file_paths
from diffae_jax.data.inspect.scan import RECORD
from diffae_jax.data.sources import TransformedSource, read
from diffae_jax.evaluation.model_card import card_of_run
from diffae_jax.inference.bundle import MANIFEST
from diffae_jax.runtime.compilation import enable_compilation_cache
from diffae_jax.runtime.files import AnyPath


def load(path: str | AnyPath) -> DiffAE:
    """Loads a model and enables the compilation cache, which all commands share."""
    enable_compilation_cache()
    return DiffAE.load(path)


def load_with_card(path: str | AnyPath) -> DiffAE:
    """Loads a model with its card. That of a run folder is made from its data and its results."""
    model = load(path)
    if not isinstance(path, str) and (path / RECORD).exists() and not (path / MANIFEST).exists():
        model.card = card_of_run(model.config, path, model.digest())
    return model


def images_of(images: TransformedSource) -> Any:
    """Returns images as `DiffAE` takes them: paths of files, or arrays.

    Given paths, `DiffAE` can report what it converted. It would not know the selected array.
    """
    is_selected = getattr(images.source, "array", "")
    return (file_paths(images) if not is_selected else []) or read(images, range(len(images)))
