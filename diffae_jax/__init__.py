"""Diffusion autoencoders in JAX and Flax."""

import importlib
from typing import Any

__version__ = "0.1.0"

__all__ = ["DiffAE", "image_grid", "to_pil", "to_uint8"]

HOMES = {
    "DiffAE": "diffae_jax.inference.diffae",
    "image_grid": "diffae_jax.data.pictures",
    "to_pil": "diffae_jax.data.pictures",
    "to_uint8": "diffae_jax.data.transforms",
}


def __getattr__(name: str) -> Any:
    """Imports what the package offers, and with it jax, when it is first asked for."""
    if name in HOMES:
        return getattr(importlib.import_module(HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
