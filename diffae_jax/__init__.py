"""Diffusion autoencoders in JAX and Flax."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same imports as in __getattr__, for editors and type checkers
    from diffae_jax.convert import import_official
    from diffae_jax.data.pictures import difference_map, film, image_grid, image_rows, to_pil
    from diffae_jax.data.transforms import to_uint8
    from diffae_jax.inference.diffae import DiffAE

__version__ = "0.1.0"

__all__ = [
    "DiffAE",
    "difference_map",
    "film",
    "image_grid",
    "image_rows",
    "import_official",
    "to_pil",
    "to_uint8",
]

MODULES = {  # of the public names
    "DiffAE": "diffae_jax.inference.diffae",
    "difference_map": "diffae_jax.data.pictures",
    "film": "diffae_jax.data.pictures",
    "image_grid": "diffae_jax.data.pictures",
    "image_rows": "diffae_jax.data.pictures",
    "import_official": "diffae_jax.convert",
    "to_pil": "diffae_jax.data.pictures",
    "to_uint8": "diffae_jax.data.transforms",
}


def __getattr__(name: str) -> Any:
    """Imports a public name, and with it JAX, when it is first used."""
    if name in MODULES:
        return getattr(importlib.import_module(MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Lists the public names, whether they are imported yet or not."""
    return sorted(globals() | MODULES)
