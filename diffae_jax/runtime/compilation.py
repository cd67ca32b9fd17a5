"""The on-disk cache of compiled functions."""

import os
from pathlib import Path

import jax


def enable_compilation_cache() -> None:
    """Keeps compiled functions on disk for the next run.

    Only the current user may read or write the folder, because it contains executable code.
    """
    if jax.config.jax_compilation_cache_dir:
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "diffae_jax" / "compiled"
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        cache.chmod(0o700)
    except OSError:  # without a writable home, the run works but compiles again
        return
    jax.config.update("jax_compilation_cache_dir", str(cache))
