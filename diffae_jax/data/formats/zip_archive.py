"""Image files in a zip, read without unpacking it.

StyleGAN and EDM write such zips. Their labels are in the entry dataset.json.
"""

import contextlib
import dataclasses
import threading
import zipfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffae_jax.data.formats.encoded import Encoded
from diffae_jax.data.formats.files import (
    IMAGE_SUFFIXES,
    is_hidden,
    other_files,
    refuse_without_images,
)
from diffae_jax.data.formats.format import Format, OpenedDataset
from diffae_jax.data.labels.json_files import columns_of_labels
from diffae_jax.data.labels.records import labels_of_columns
from diffae_jax.data.sources import check_amount, check_names, hash_of, image_errors_as_user_errors, without_cache
from diffae_jax.data.transforms import check_picture_shape
from diffae_jax.runtime.errors import UserError, list_some, reader_errors_as_user_errors, shown
from diffae_jax.runtime.files import has_suffix, parse_json

LABELS = "dataset.json"  # {"labels": [[NAME, CLASS or list of numbers], ...]}; "labels" may be null

_reading = threading.Lock()  # ZipFile counts its open entries without a lock


@dataclasses.dataclass(frozen=True)
class ZipArchive(Encoded):
    """Image files in a zip."""

    path: Path
    ids: Sequence[str]  # names in the zip
    labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @cached_property
    def _opened(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.path)

    def __getstate__(self) -> dict[str, Any]:
        return without_cache(self)

    def encoded(self, index: int) -> bytes:
        """Returns the content of an image file. Raises UserError if its checksum is wrong."""
        with image_errors_as_user_errors(self.name(index)), _reading:
            return self._opened.read(self.ids[index])

    def name(self, index: int) -> str:
        """Returns the name of an image in the zip, and the path of the zip."""
        return f"{self.ids[index]} of {self.path}"

    def overlaps(self, other: "ZipArchive") -> bool:
        """Returns whether another source reads the same file."""
        return self.path.resolve() == other.path.resolve()

    def fingerprint(self) -> str:
        """Returns a hash of the names and checksums of all images."""
        with _zip_errors_as_user_errors(self.path), _reading:
            checksums = [self._opened.getinfo(name).CRC for name in self.ids]
        return hash_of(*self.ids, *map(str, checksums))


def open_zip(path: Path, image_shape: tuple[int, ...]) -> OpenedDataset:
    """Opens a zip of image files, with the labels of its dataset.json, and notes on other files.

    Raises UserError if it is damaged, encrypted or without images.
    """
    check_picture_shape(image_shape)
    with _zip_errors_as_user_errors(path), zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
        names = sorted(name for name in entries if not is_hidden(name))
        ids = [name for name in names if has_suffix(name, IMAGE_SUFFIXES)]
        if not ids:
            refuse_without_images(path, names)
        if any(entries[name].flag_bits & 1 for name in ids):
            raise UserError(f"{path} is encrypted. Unpack it with its password, and give the folder.")
        content = archive.read(LABELS) if LABELS in entries else b"{}"
    rows = _rows_of(path, content)
    check_amount(len(ids), (), str(path))
    check_names(ids)
    unmatched = rows.keys() - set(ids)
    notes = other_files(names, ids)
    if unmatched:
        count = f"{len(unmatched):,} of {len(rows):,}"
        notes.append(f"{count} rows of {LABELS} match no image ({list_some(unmatched)}).")
    labels = labels_of_columns(columns_of_labels([rows.get(name) for name in ids])) if rows else {}
    return OpenedDataset(ZipArchive(path, ids, labels), "a zip of images", notes)


def _rows_of(path: Path, content: bytes) -> dict[str, int | float | list | None]:
    """Returns the label of each image in a dataset.json: a number or a list of numbers."""
    described = parse_json(content, path / LABELS)
    rows = described.get("labels") if isinstance(described, dict) else None
    if rows is None:
        return {}
    found = {}
    for row in rows if isinstance(rows, list) else [rows]:
        name, label = row if isinstance(row, list) and len(row) == 2 else (None, None)
        values = label if isinstance(label, list) else [label]
        if not isinstance(name, str) or not all(isinstance(value, int | float) for value in values):
            raise UserError(
                f"{path} has a {LABELS} with a label that cannot be read ({shown(str(row))}). Write "
                f"[name, number] or [name, list of numbers] for each image."
            )
        found[name] = label
    return found


def _zip_errors_as_user_errors(path: Path) -> contextlib.AbstractContextManager[None]:
    return reader_errors_as_user_errors(path, "a zip", "Copy it again")


FORMAT = Format(
    lambda path, image_shape: path.is_file() and has_suffix(path, ".zip"),
    lambda path, part, image_shape: open_zip(path, image_shape),
)
