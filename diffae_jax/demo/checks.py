"""Checks of what a browser sends, before any work. A browser may send anything."""

import contextlib
import math
import numbers
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from diffae_jax.config import check_seed
from diffae_jax.data.formats.files import IMAGE_SUFFIXES, VOLUME_SUFFIXES
from diffae_jax.data.formats.nifti import NIFTI_SUFFIXES, nifti_shape
from diffae_jax.data.formats.npy import open_npy
from diffae_jax.data.formats.pillow import open_picture
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.inference.inputs import as_images
from diffae_jax.runtime.console import quantity
from diffae_jax.runtime.errors import UserError, counted, reader_errors_as_user_errors, shown
from diffae_jax.runtime.files import has_suffix

MOST_BYTES = 32 * 10**6  # of a file
MOST_PIXELS = 64 * 10**6  # of an image, whose file may be much smaller
MOST_STRENGTH = 1.5


def read_upload(path: Path, model: DiffAE) -> tuple[Shaped[np.ndarray, "*shape"], str]:
    """Reads the file of an image and converts it for the model.

    Args:
        path: the uploaded file. Messages only have its name.
        model: the model.

    Returns:
        The image, and a sentence that describes how it was converted, or "".

    Raises:
        UserError: if the file is too large, or is not an image that the model can take.
    """
    with _without_folder(path):
        _check_file(path, model.image_shape)
        images, notes = as_images([str(path)], model.transform)
    return images[0], " ".join(notes).replace(shown(str(path)), shown(path.name))


def suffixes_for(image_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Returns the suffixes of the files that may be uploaded."""
    return IMAGE_SUFFIXES if len(image_shape) == 3 and image_shape[-1] in (1, 3, 4) else VOLUME_SUFFIXES


def _check_file(path: Path, image_shape: tuple[int, ...]) -> None:
    suffixes = suffixes_for(image_shape)
    if not has_suffix(path, suffixes):
        raise UserError(f"{path} is not an image that this model takes. Use {', '.join(suffixes)}.")
    if not path.is_file():  # the same file was uploaded twice, and removed after the first time
        raise UserError(f"{path} is gone. Upload it again.")
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise UserError(
            f"{path} has {quantity(float(size), 'B')}. At most {quantity(float(MOST_BYTES), 'B')} can be uploaded. Use "
            f"a smaller image."
        )
    pixels = math.prod(_claimed_size(path))
    if pixels > MOST_PIXELS:
        raise UserError(
            f"{path} has {pixels / 1e6:,.0f} million pixels. At most {MOST_PIXELS / 1e6:,.0f} million can be uploaded. "
            f"Use a smaller image."
        )


def _claimed_size(path: Path) -> tuple[int, ...]:
    """Returns the size of an image from the header of its file, without unpacking the pixels."""
    if has_suffix(path, NIFTI_SUFFIXES):
        with reader_errors_as_user_errors(path, "a NIfTI file"):
            return nifti_shape(path)
    if has_suffix(path, VOLUME_SUFFIXES):
        return open_npy(path).shape
    with open_picture(path, path) as picture:
        return picture.size


@contextlib.contextmanager
def _without_folder(path: Path) -> Iterator[None]:
    """Removes the folder from a message, because it is one of the server."""
    try:
        yield
    except UserError as error:
        raise type(error)(str(error).replace(f"{path.parent}{os.sep}", "")) from error


def index_below(value: Any, count: int, noun: str = "image") -> int:
    """Returns the index of what was clicked. Raises UserError if there is no such thing."""
    if type(value) is not int or not 0 <= value < count:
        raise UserError(f"There is no {noun} {shown(value)} of {counted(count, noun)}. Reload the page.")
    return value


def names_of(values: Any, known: Collection[str], noun: str, most: int) -> list[str]:
    """Returns names that were chosen from a menu.

    Raises UserError if there are none or too many, or if one is unknown or there twice.
    """
    if not isinstance(values, list) or not values:
        raise UserError(f"Choose a {noun}.")
    if len(values) > most:
        raise UserError(f"There are {counted(len(values), noun)}. Choose at most {most}.")
    unknown = [value for value in values if not isinstance(value, str) or value not in known]
    if unknown:
        raise UserError(f"There is no {noun} {shown(unknown[0])}. Reload the page.")
    if len(set(values)) < len(values):
        raise UserError(f"Choose each {noun} once.")
    return values


@contextlib.contextmanager
def uploaded(value: Any) -> Iterator[list[Path]]:
    """Yields the uploaded files, and removes them at the end. Raises UserError for no files."""
    paths = value if isinstance(value, list) else [value]
    if not paths or None in paths:
        raise UserError("No file was uploaded. Choose one.")
    paths = list(map(Path, paths))
    try:
        yield paths
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def seed(value: Any) -> int:
    """Returns a seed. Raises UserError if it is not a whole number in the range of seeds."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int):
        raise UserError(f"The seed must be a whole number, not {shown(value)}.")
    check_seed(value)
    return value


def strength(value: Any) -> float:
    """Returns the strength of an edit. Raises UserError if it is out of the range of the page."""
    if not isinstance(value, numbers.Real) or not abs(value) <= MOST_STRENGTH:
        raise UserError(f"The strength must be from -{MOST_STRENGTH} to {MOST_STRENGTH}, not {shown(value)}.")
    return float(value)
