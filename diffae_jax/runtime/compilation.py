"""The on-disk cache of compiled functions."""

from pathlib import Path

import jax

from diffae_jax.runtime.files import cache_folder


def enable_compilation_cache() -> None:
    """Keeps compiled functions on disk for the next run."""
    if not jax.config.jax_compilation_cache_dir and (cache := private_cache("compiled")):
        jax.config.update("jax_compilation_cache_dir", str(cache))


def private_cache(name: str) -> Path | None:
    """Returns a folder in the cache, or None if it cannot be written.

    Only the current user may read or write it, because compiled functions are executable code.
    """
    cache = cache_folder() / name
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        cache.chmod(0o700)
    except OSError:
        return None
    return cache
