"""Work that is kept as it is done: an evaluation that was stopped, however roughly, goes on where it was."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from diffae_jax.distributed import together
from diffae_jax.errors import UserError
from diffae_jax.files import read_json, replacing, write_json
from diffae_jax.training.logging import is_main_process

INPUTS = "inputs.json"

Arrays = dict[str, np.ndarray]


class Parts:
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
            shutil.rmtree(folder, ignore_errors=True)
            write_json(record, inputs)

    def keep(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """Returns the arrays of a part, computed unless they are there already."""
        stem = quote(name, safe=" ")  # labels of people are part of names
        path = self._folder / f"{stem}.npz"
        if stem in self._there:
            with np.load(path, allow_pickle=False) as stored:
                return dict(stored)
        arrays = compute()
        for values in arrays.values():
            bad = np.isnan(values) if np.issubdtype(values.dtype, np.floating) else np.zeros(1, bool)
            if bad.any():
                raise UserError(
                    f"{bad.sum():,} of {bad.size:,} numbers of {name} are not finite: the weights are damaged, or too "
                    f"large for the precision; --config.train.precision=float32 tells which."
                )
        if is_main_process():
            with replacing(path) as scratch:
                np.savez(scratch, **arrays)
        return arrays

    def remove(self) -> None:
        """Removes the parts, once what they were for is written."""
        if is_main_process():
            shutil.rmtree(self._folder, ignore_errors=True)
