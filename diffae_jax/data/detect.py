"""Detects the format of a path and opens it."""

import os
from collections.abc import Collection
from pathlib import Path

from diffae_jax.data.formats import (
    arrays,
    dicom,
    files,
    folders,
    huggingface,
    lmdb,
    tar_shards,
    tfds,
    tiff,
    zip_archive,
)
from diffae_jax.data.formats.digits import all_digits
from diffae_jax.data.formats.format import Format, OpenedDataset
from diffae_jax.data.formats.huggingface_files import has_image_column
from diffae_jax.data.formats.nifti import NIFTI_SUFFIXES
from diffae_jax.data.labels.table import TABLE_SUFFIXES
from diffae_jax.runtime.buckets import is_address
from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.files import check_file, expand_home, has_suffix, local_path, os_errors_as_user_errors

DIGITS = "digits"  # instead of a path
FORMATS = (  # the first that recognizes a path opens it
    huggingface.FORMAT,
    tfds.FORMAT,
    arrays.FORMAT,
    lmdb.FORMAT,
    zip_archive.FORMAT,
    tar_shards.FORMAT,
    dicom.FORMAT,
    tiff.FORMAT,
    folders.FORMAT,
)
ARCHIVES = (".gz", ".bz2", ".xz", ".7z", ".rar")


def open_images(path: str | os.PathLike, image_shape: tuple[int, ...]) -> OpenedDataset:
    """Detects the format of a path and opens it.

    Args:
        path: A folder, an array file, LMDB, a zip or tar of images, Parquet or Arrow files, the
            name or folder of a TFDS data set, hf://datasets/USER/NAME, one image, or "digits". A
            part follows a #, as in FILE.h5#ARRAY, FILE.npz#ARRAY or mnist#test.
        image_shape: The shape [*spatial, C] to train with. Only its rank and channels are used.

    Returns:
        The images in their original sizes, the format, and notes.

    Raises:
        UserError: The path holds no images, or no images of this rank.
    """
    text = os.fspath(path)
    if text == DIGITS:
        return OpenedDataset(all_digits(image_shape), "the digits of scikit-learn")
    name, part = split_part(text)
    file = local_path(name)
    with os_errors_as_user_errors(file):
        if not file.exists():
            if tfds.is_name(name):
                return tfds.open_named(name, part, image_shape)
            if huggingface.is_name(name):
                return huggingface.open_dataset(name, part, image_shape)
            raise UserError(f"{name} is missing. Check the path.")
        found = format_of(file, image_shape)
        if part and (found is None or found.parts is None):
            raise UserError(
                f"{name} has no part {shown(part)}. Only npz, HDF5, Zarr, DICOM and data sets with splits have parts. "
                f"Remove the #."
            )
        return _open_file(file, image_shape) if found is None else found.open(file, part, image_shape)


def split_part(text: str) -> tuple[str, str]:
    """Splits PATH#PART into (PATH, PART). PART is "" if there is no #, or a file has this name."""
    if "#" not in text or (not is_address(text) and expand_home(text).exists()):
        return text, ""
    name, _, part = text.rpartition("#")
    return name, part


def format_of(path: Path, image_shape: tuple[int, ...]) -> Format | None:
    """Returns the format of an existing path, or None for a single image or an unknown file."""
    return next((known for known in FORMATS if known.recognizes(path, image_shape)), None)


def parts_of(path: Path, image_shape: tuple[int, ...]) -> Collection[str]:
    """Returns the names of the arrays in a file, or the names of the splits of a data set."""
    found = format_of(path, image_shape) if path.exists() else None
    return found.parts(path) if found is not None and found.parts is not None else ()


def is_table(path: str | os.PathLike) -> bool:
    """Returns whether a path has a table suffix, such as .csv. Parquet of images is excluded."""
    return has_suffix(path, TABLE_SUFFIXES) and not has_image_column(local_path(path))


def _open_file(path: Path, image_shape: tuple[int, ...]) -> OpenedDataset:
    check_file(path)
    if has_suffix(path, ARCHIVES) and not has_suffix(path, NIFTI_SUFFIXES):
        raise UserError(f"{path} is an archive. Unpack it and give the folder.")
    if is_table(path):
        raise UserError(
            f"{path} is a table or text file, not images. Set it as --config.data.labels or --config.data.held_out."
        )
    return OpenedDataset(files.open_file(path, image_shape), "one file")
