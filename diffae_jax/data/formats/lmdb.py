"""LMDB in the layout of the official code.

The key RESOLUTION-NUMBER has an encoded image, and the key "length" has the number of images.
"""

import dataclasses
import importlib.util
import re
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from diffae_jax.data.formats.encoded import Encoded
from diffae_jax.data.formats.format import Format, OpenedDataset
from diffae_jax.data.sources import hash_of_sample_images
from diffae_jax.data.transforms import check_picture_shape
from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.files import has_suffix

DATA = "data.mdb"  # in an LMDB folder
KEY = re.compile(rb"(.*)-(\d{1,12})", re.S)  # 5 digits in FFHQ and CelebA-HQ, 7 in CelebA, Horse and Bedroom
LENGTH = b"length"

_opening = threading.Lock()  # LMDB lets a process open a file only once


@dataclasses.dataclass(frozen=True)
class OfficialLMDB(Encoded):
    """Encoded images in an LMDB environment."""

    path: Path
    resolution: str  # in the keys; "None" in celeba.lmdb
    digits: int
    ids: Sequence[str]
    labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def encoded(self, index: int) -> bytes:
        """Returns the content of an image file. Raises UserError if it is missing."""
        key = self.key(index)
        with _environment(self.path).begin() as transaction:
            content = transaction.get(key.encode())
        if content is None:
            raise UserError(f"{self.path} lacks image {key} of its {len(self):,} images. Copy the file again.")
        return content

    def key(self, index: int) -> str:
        """Returns the LMDB key of an image."""
        return _key(self.resolution, self.digits, index)

    def name(self, index: int) -> str:
        """Returns the key and the path of an image."""
        return f"{self.key(index)} of {self.path}"

    def overlaps(self, other: "OfficialLMDB") -> bool:
        """Returns whether another source reads the same file, at any resolution."""
        return self.path.resolve() == other.path.resolve()

    def fingerprint(self) -> str:
        """Returns a hash of a sample of the images, their number, and the resolution."""
        return hash_of_sample_images(self, self.resolution)


def open_lmdb(path: Path, image_shape: tuple[int, ...]) -> OpenedDataset:
    """Opens an LMDB folder or file. Raises UserError if it is damaged or laid out differently."""
    check_picture_shape(image_shape)
    environment = _environment(path)
    with environment.begin() as transaction:
        length = transaction.get(LENGTH)
        keys = _first_keys(transaction)
        wanted = max(image_shape[:2])
        if length is None or not keys:
            raise UserError(
                f"{path} is not an LMDB of the official code: it lacks {'the key length' if keys else 'images'}. Its "
                f"first keys are {_some_keys(transaction)}. Give the image files instead."
            )
        if not re.fullmatch(rb"\d{1,9}", length):
            raise UserError(f"{path} is damaged: its length is {shown(repr(length))}, not a number. Copy it again.")
        resolution, digits = min(keys, key=lambda key: _preference(key[0], wanted))
        count = int(length)
        if not count:
            raise UserError(f"{path} holds no images. Check the path.")
        for key in (_key(resolution, digits, index) for index in (0, count - 1)):
            if transaction.get(key.encode()) is None:
                raise UserError(f"{path} lacks image {key} of its {count:,} images. Copy the file again.")
    source = OfficialLMDB(path, resolution, digits, list(map(str, range(count))))
    return OpenedDataset(source, "LMDB in the official layout")


def _key(resolution: str, digits: int, index: int) -> str:
    return f"{resolution}-{index:0{digits}d}"


def _first_keys(transaction: Any) -> list[tuple[str, int]]:
    """Returns each resolution in the keys, with the number of digits after it."""
    resolutions, cursor = [], transaction.cursor()
    valid = cursor.first()
    while valid:
        match = KEY.fullmatch(cursor.key())
        if match is None:
            valid = cursor.next()
            continue
        resolutions.append((match[1].decode(errors="replace"), len(match[2])))
        valid = cursor.set_range(match[1] + b".")  # "." follows "-", so this skips all keys of the resolution
    return resolutions


def _some_keys(transaction: Any) -> str:
    keys = [key for key, _ in zip(transaction.cursor().iternext(values=False), range(3), strict=False)]
    return ", ".join(shown(repr(key)) for key in keys) or "none"


def _preference(resolution: str, wanted: int) -> tuple[bool, int]:
    """Returns a sort key: the smallest sufficient resolution comes first, or else the largest."""
    size = int(resolution) if resolution.isdigit() else wanted
    return size < wanted, abs(size - wanted)


@cache
def _environment(path: Path) -> Any:
    """Returns the open environment of a path. LMDB lets a process open a file only once."""
    with _opening:
        return _opened((path / DATA if path.is_dir() else path).resolve())


@cache
def _opened(file: Path) -> Any:
    if importlib.util.find_spec("lmdb") is None:
        raise UserError(f'{file} needs LMDB: pip install "diffae_jax[lmdb]".')
    import lmdb

    try:
        environment = lmdb.open(str(file), subdir=False, readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise UserError(f"{file} cannot be read as LMDB ({shown(str(error))}). Copy it again.") from error
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    size = file.stat().st_size
    if size < needed:  # reading beyond the end would crash the process
        environment.close()
        raise UserError(f"{file} is incomplete: it has {size:,} of {needed:,} bytes. Copy it again.")
    return environment


def _is_lmdb(path: Path, image_shape: tuple[int, ...]) -> bool:
    return (path / DATA).exists() or (path.is_file() and has_suffix(path, (".lmdb", ".mdb")))


FORMAT = Format(_is_lmdb, lambda path, part, image_shape: open_lmdb(path, image_shape))
