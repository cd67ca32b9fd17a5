"""A cache of finished chunks on disk, from which a stopped evaluation resumes."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from diffae_jax.runtime.cluster import is_main_process, together
from diffae_jax.runtime.console import say
from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.files import AnyPath, atomic_write, read_json, write_json

INPUTS = "inputs.json"

Arrays = dict[str, np.ndarray]


class ChunkCache:
    """Named chunks of work in a folder. Each chunk is a dict of arrays and is written atomically.

    `inputs` describes what the chunks depend on. Chunks that were made from different inputs are
    removed. Only the main process writes. The folder is listed once, before anything is written,
    so all processes agree on which chunks exist.
    """

    def __init__(self, folder: AnyPath, inputs: dict[str, Any]):
        self._folder, self.inputs = folder, inputs
        with together():
            record = folder / INPUTS
            fresh = not record.exists() or read_json(record) != inputs
            self._existing = set() if fresh else {path.stem for path in folder.glob("*.npz")}
        if fresh and is_main_process():
            _clear(folder)
            write_json(record, inputs)

    def load_or_compute(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """Returns the arrays of a chunk: from disk if it exists, otherwise computed and written.

        Raises UserError if a computed array contains NaN or infinity.
        """
        stem = quote(name, safe=" ")  # names contain labels, which may contain any character
        path = self._folder / f"{stem}.npz"
        if stem in self._existing:
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                    return dict(stored)
            except (zipfile.BadZipFile, ValueError, EOFError, OSError, KeyError) as error:
                say(f"{path} is damaged ({shown(str(error))}). Computing this chunk again.")
        arrays = compute()
        for key, values in arrays.items():
            is_float = np.issubdtype(values.dtype, np.floating)
            # PSNR is infinite for an image that is reconstructed exactly
            bad = ~np.isfinite(values) & ~(values == np.inf if key == "psnr" else False) if is_float else np.zeros(1)
            if bad.any():
                raise UserError(
                    f"{int(bad.sum()):,} of {bad.size:,} values of {name} are not finite. Set train.precision to "
                    f"float32 in the config.json of the run and try again. If that fails, the weights are damaged."
                )
        if is_main_process():
            with atomic_write(path) as scratch:
                np.savez(scratch, **arrays)
        return arrays

    def count(self) -> int:
        """Returns how many chunks are on disk."""
        return sum(not path.name.startswith(".") for path in self._folder.glob("*.npz"))

    def remove(self) -> None:
        """Removes all chunks."""
        with together():  # no process may still be reading
            pass
        if is_main_process():
            _clear(self._folder)


def _clear(folder: AnyPath) -> None:
    """Removes the chunks and inputs.json. Other files in the folder are kept."""
    for path in (*folder.glob("*.npz"), folder / INPUTS):
        path.unlink(missing_ok=True)
    if isinstance(folder, Path) and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
