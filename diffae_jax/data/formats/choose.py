"""Chooses the array of images in a file with several arrays, and reads a file with one image."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffae_jax.data.formats.hdf5 import HDF5_SUFFIXES, check_dataset, open_hdf5
from diffae_jax.data.formats.zarr import SUFFIX, check_array, open_zarr
from diffae_jax.data.sources import check_amount, check_numbers
from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.files import has_suffix

NAMED_SUFFIXES = (*HDF5_SUFFIXES, SUFFIX)  # HDF5 files and Zarr folders, whose arrays have names


def only_fitting(
    path: Path, arrays: Mapping[str, Any], image_shape: tuple[int, ...], example: str, *, rows: bool
) -> str:
    """Returns the name of the only array whose number of axes fits.

    If several fit, the one with the size of `image_shape` is chosen. Raises UserError if none
    fits, or if the choice is unclear.

    Args:
        path: The file, for messages.
        arrays: The arrays by name.
        image_shape: The shape [*spatial, C] to train with.
        example: The path to write before #ARRAY, for messages.
        rows: Whether each row of an array is an image. Otherwise an array is one image.
    """
    rank, (*spatial, channels) = len(image_shape) - 1, image_shape
    ranks = (rank + rows, rank + rows + 1)
    fitting = {name: array for name, array in arrays.items() if array.ndim in ranks and array.dtype.kind in "buif"}
    if len(fitting) == 1:
        return next(iter(fitting))
    sizes = [tuple(image_shape), (channels, *spatial)] + ([tuple(spatial)] if channels == 1 else [])
    exact = [name for name, array in fitting.items() if tuple(array.shape[rows:]) in sizes]
    if len(exact) == 1:
        return exact[0]
    if fitting:
        raise UserError(
            f"{path} has {len(fitting)} arrays that may be the image{'s' * rows} ({list_some(fitting)}). Choose one, "
            f"for example {example}#{sorted(exact or fitting)[0]}."
        )
    shapes = list_some(f"{name or 'one array'} of shape {a.shape} and type {a.dtype}" for name, a in arrays.items())
    raise UserError(
        f"{path} has no array of images that fits --config.image_shape={image_shape}. It has {shapes or 'no arrays'}. "
        f"Check the path, or set --config.image_shape to the shape of your images."
    )


def read_named(path: Path, name: str, image_shape: tuple[int, ...]) -> np.ndarray:
    """Reads the single image in an HDF5 file or Zarr folder. Its other arrays are not read.

    The image may lack a channel axis. If `name` is "", the image is the only array that fits.
    Raises UserError if there is no such array, or more than one. The libraries may raise any error
    for a damaged file.
    """
    is_zarr = has_suffix(path, SUFFIX)
    arrays = open_zarr(path) if is_zarr else open_hdf5(path)
    name = name or only_fitting(path, arrays, image_shape, str(path.parent), rows=False)
    if name not in arrays:
        raise UserError(f"{path} has no array {shown(name)}. It has {list_some(arrays) or 'none'}.")
    array = arrays[name]
    check_numbers(array.dtype, str(path))
    check_amount(1, array.shape, str(path))
    if is_zarr:
        check_array(str(path), array)
    else:
        check_dataset(path, name, array)
    return np.asarray(array[()])
