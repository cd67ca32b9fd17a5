"""The cache of compiled programs."""

import os
from pathlib import Path

import jax


def enable_compilation_cache() -> None:
    """Keeps compiled programs for the next run, in a folder that only this user can read: they are code."""
    if jax.config.jax_compilation_cache_dir:
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "diffae_jax" / "compiled"
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        cache.chmod(0o700)
    except OSError:  # a home that cannot be written costs time, not the run
        return
    jax.config.update("jax_compilation_cache_dir", str(cache))
