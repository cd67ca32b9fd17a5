"""Diffusion autoencoders in JAX and Flax."""

from typing import Any

__version__ = "0.1.0"

__all__ = ["DiffAE"]


def __getattr__(name: str) -> Any:
    """Imports DiffAE, and with it jax, when it is first asked for."""
    if name == "DiffAE":
        from diffae_jax.api import DiffAE

        return DiffAE
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
