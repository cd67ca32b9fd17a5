"""The on-disk cache of compiled functions."""

import os
from pathlib import Path

import jax


def enable_compilation_cache() -> None:
    """Keeps compiled functions on disk for the next run."""
    if not jax.config.jax_compilation_cache_dir and (cache := cache_folder()):
        jax.config.update("jax_compilation_cache_dir", str(cache))


def cache_folder() -> Path | None:
    """Returns the folder for compiled functions, or None if the home folder is not writable.

    Only the current user may read or write the folder, because it contains executable code.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "diffae_jax" / "compiled"
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        cache.chmod(0o700)
    except OSError:
        return None
    return cache
