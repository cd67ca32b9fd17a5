"""Work that is kept as it is done: an evaluation that was stopped, however roughly, goes on where it was."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from diffae_jax.runtime.cluster import is_main_process, together
from diffae_jax.runtime.console import say
from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.files import atomic_write, read_json, write_json

INPUTS = "inputs.json"

Arrays = dict[str, np.ndarray]


class ChunkCache:
    """Named parts of the work in a folder, arrays each, which are there whole or not at all.

    `inputs` is what they depend on: parts that were made from other inputs are removed. The main process writes; which
    parts there are is looked up once, before anybody writes, so that all processes do the same.
    """

    def __init__(self, folder: Path, inputs: dict[str, Any]):
        self._folder, self.inputs = folder, inputs
        with together():
            record = folder / INPUTS
            fresh = not record.exists() or read_json(record) != inputs
            self._there = set() if fresh else {path.stem for path in folder.glob("*.npz")}
        if fresh and is_main_process():
            _clear(folder)
            write_json(record, inputs)

    def keep(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """Returns the arrays of a part, computed unless they are there already."""
        stem = quote(name, safe=" ")  # labels of people are part of names
        path = self._folder / f"{stem}.npz"
        if stem in self._there:
            try:
                with np.load(path, allow_pickle=False) as stored:
                    return dict(stored)
            except (zipfile.BadZipFile, ValueError, EOFError, OSError, KeyError) as error:
                say(f"{path} is damaged ({shown(str(error))}): it is made anew.")
        arrays = compute()
        for key, values in arrays.items():
            is_float = np.issubdtype(values.dtype, np.floating)
            # of images that come back exactly the signal-to-noise ratio is infinite
            bad = ~np.isfinite(values) & ~(values == np.inf if key == "psnr" else False) if is_float else np.zeros(1)
            if bad.any():
                raise UserError(
                    f"{int(bad.sum()):,} of {bad.size:,} numbers of {name} are not finite: the weights are damaged, or "
                    f"too large for the precision; --config.train.precision=float32 tells which."
                )
        if is_main_process():
            with atomic_write(path) as scratch:
                np.savez(scratch, **arrays)
        return arrays

    def remove(self) -> None:
        """Removes the parts, once what they were for is written."""
        with together():  # nobody reads them any more
            pass
        if is_main_process():
            _clear(self._folder)


def _clear(folder: Path) -> None:
    """Removes parts and what they were made from, and nothing else that may lie there."""
    for path in (*folder.glob("*.npz"), folder / INPUTS):
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
