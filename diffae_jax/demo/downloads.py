"""Files that a person can download from the page. Only the newest of each name are kept."""

import collections
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from diffae_jax.data.pictures import save_film, save_picture

KEPT = 2  # of each name: the browser may still show the second newest


class Downloads:
    """Writes the files of one session, each in a folder of its own, so that no browser caches it.

    Args:
        root: an existing folder, which may be shared.
    """

    def __init__(self, root: Path):
        self._root = Path(tempfile.mkdtemp(prefix="session-", dir=root))
        self._folders: dict[str, collections.deque[Path]] = collections.defaultdict(collections.deque)

    def png(self, name: str, picture: Image.Image) -> Path:
        """Writes a picture."""
        path = self._new(f"{name}.png")
        save_picture(path, picture)
        return path

    def gif(self, name: str, frames: Sequence[Image.Image]) -> Path:
        """Writes a film."""
        path = self._new(f"{name}.gif")
        save_film(path, frames)
        return path

    def npz(self, name: str, **arrays: np.ndarray | None) -> Path:
        """Writes arrays, without those that are None."""
        path = self._new(f"{name}.npz")
        np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
        return path

    def remove(self) -> None:
        """Removes all files."""
        shutil.rmtree(self._root, ignore_errors=True)

    def _new(self, name: str) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self._root))
        self._folders[name].append(folder)
        if len(self._folders[name]) > KEPT:
            shutil.rmtree(self._folders[name].popleft(), ignore_errors=True)
        return folder / name
