"""Infers an image_shape to train with from file headers or a sample of the images."""

import collections
import io
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from diffae_jax.data.detect import DIGITS, open_images, split_part
from diffae_jax.data.formats import arrays, files
from diffae_jax.data.formats.choose import NAMED_SUFFIXES
from diffae_jax.data.formats.digits import DIGITS_SHAPE
from diffae_jax.data.formats.encoded import Encoded
from diffae_jax.data.formats.nifti import NIFTI_SUFFIXES, nifti_shape
from diffae_jax.data.formats.npy import open_npy, volume_errors_as_user_errors
from diffae_jax.data.formats.pillow import open_picture
from diffae_jax.data.sources import Source, choose, each
from diffae_jax.data.transforms import CROPS, format_size
from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.files import has_suffix, local_path

Shape = tuple[int, ...]  # [*spatial, C]

NUM_HEADERS = 4096  # read at most
NUM_READ = 16  # images read if there are no headers
MOST_CHANNELS = 4  # a longer axis of an array is spatial
MOST_ELONGATED = 16  # aspect ratio from which an array is a signal, not a picture
SMALLEST = 0.01  # fraction of images that may be smaller, such as an icon among photographs
TINY, MOST_TINY = 4, 0.1  # how much smaller than the median is tiny, and the fraction of images that may be tiny
LONGEST = {1: 4096, 2: 256, 3: 64}  # longest axis for which one GPU trains a model in days
ANY_PICTURE = (1, 1, 3)  # a shape that fits pictures of any size, and volumes


def infer_image_shape(path: str | os.PathLike, crop: str = "center") -> Shape:
    """Returns an image_shape for the images at a path, with their most common rank and channels.

    See `fitting_shape`. Raises UserError if there are no images, or if they are too small.
    """
    if os.fspath(path) == DIGITS:
        return DIGITS_SHAPE
    return fitting_shape(_shapes(os.fspath(path)), str(path), crop)


def fitting_shape(shapes: Sequence[Shape], name: str = "The data set", crop: str = "center") -> Shape:
    """Returns an image_shape that most images fit, with the most common rank and channels.

    At most 1 % of the images are smaller. Images much smaller than most do not count if they are
    at most 10 %. Pictures become square, and sizes become multiples of 16, or of 8 if small.
    Raises UserError, with the name of the data set, if the images are too small.
    """
    rank = _most_common(len(shape) - 1 for shape in shapes)
    shapes = [shape for shape in shapes if len(shape) - 1 == rank]
    channels = _most_common(shape[-1] for shape in shapes)
    sizes = np.array([shape[:-1] for shape in shapes])
    if rank == 2:
        sizes = sizes.min(axis=1, keepdims=True).repeat(2, axis=1)
    size = np.quantile(_without_tiny(sizes), SMALLEST, axis=0, method="lower")
    if CROPS[crop] is not None:
        size = np.array(CROPS[crop][1])
    if rank not in LONGEST:
        raise UserError(f"{name} has images with {rank} spatial axes. Store them with 1, 2 or 3.")
    if size.min() < 8:
        raise UserError(
            f"{name} has images of {format_size(size.tolist())}, too small to propose a shape (the minimum is 8). Give "
            f"--image-shape {' '.join(map(str, size.tolist()))} {channels}."
        )
    size = np.maximum(size * min(1.0, LONGEST[rank] / size.max()), 8.0)
    return (*map(_multiple, size.tolist()), channels)


def _without_tiny(sizes: Int[np.ndarray, "n axes"]) -> Int[np.ndarray, "m axes"]:
    """Returns the sizes without those much smaller than most, such as thumbnails, if few are."""
    is_tiny = (sizes * TINY < np.median(sizes, axis=0)).any(axis=1)
    return sizes[~is_tiny] if is_tiny.mean() <= MOST_TINY else sizes


def _multiple(length: float) -> int:
    step = 16 if length >= 32 else 8
    return int(length // step * step)


def _most_common(values: Iterable[int]) -> int:
    return collections.Counter(values).most_common(1)[0][0]


def _shapes(text: str) -> list[Shape]:
    """Returns the shapes of some random images. Raises UserError if none can be read."""
    name, part = split_part(text)
    path = local_path(name)
    if path.exists() and arrays.holds_arrays(path):
        return [_shape_of_rows(path, part)]
    source = open_images(text, ANY_PICTURE).source  # opens pictures if there are any, else volumes
    has_headers = isinstance(source, Encoded | files.Files)
    numbers = choose(len(source), NUM_HEADERS if has_headers else NUM_READ, seed=0).tolist()
    shapes_or_errors = list(each(lambda index: _shape(source, index), numbers))
    shapes = [shape for shape in shapes_or_errors if not isinstance(shape, UserError)]
    if not shapes:
        raise shapes_or_errors[0]
    return shapes


def _shape(source: Source, index: int) -> Shape | UserError:
    try:
        if isinstance(source, Encoded):
            return _shape_of_picture(io.BytesIO(source.encoded(index)), source.name(index))
        return (
            _shape_of_file(source.path(index), source.array) if isinstance(source, files.Files) else source[index].shape
        )
    except UserError as error:
        return error


def _shape_of_file(path: Path, array: str) -> Shape:
    """Reads the header of an image file, npy, NIfTI, HDF5 or Zarr file."""
    if has_suffix(path, NIFTI_SUFFIXES):
        with volume_errors_as_user_errors(path):
            return nifti_shape(path)
    if has_suffix(path, NAMED_SUFFIXES):
        return _with_channels(_array_shape(path, array))
    if has_suffix(path, files.VOLUME_SUFFIXES):
        return _with_channels(open_npy(path).shape)
    return _shape_of_picture(path, str(path))


def _shape_of_picture(file: Path | io.BytesIO, name: str) -> Shape:
    with open_picture(file, name) as image:
        is_gray = image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16")
        return image.height, image.width, 1 if is_gray else 3  # transparency is removed


def _shape_of_rows(path: Path, array: str) -> Shape:
    """Returns the shape of each image in an array of a file, by default the largest array."""
    return _with_channels(_array_shape(path, array)[1:])


def _array_shape(path: Path, array: str) -> Shape:
    """Returns the shape of an array in a file, by default the largest array."""
    with volume_errors_as_user_errors(path):
        shapes = {name: a.shape for name, a in arrays.arrays_of(path).items() if a.dtype.kind in "buif" and a.ndim > 1}
    if array and array not in shapes:
        raise UserError(f"{path} has no array {shown(array)} of images. It has {list_some(shapes) or 'none'}.")
    if not shapes:
        raise UserError(
            f"{path} has no array of images. An array of images holds numbers and has two or more axes. Check the path."
        )
    return shapes[array] if array else max(shapes.values(), key=math.prod)


def _with_channels(shape: Shape) -> Shape:
    """Returns the shape of an array as [*spatial, C]. A short last or first axis holds channels.

    If one of two axes is much shorter, it also holds channels: signals with many channels are more
    common than such elongated pictures.
    """
    if len(shape) == 2 and max(shape) >= MOST_ELONGATED * min(shape):
        return max(shape), min(shape)
    if len(shape) > 1 and shape[-1] <= MOST_CHANNELS:
        return shape
    if len(shape) > 1 and shape[0] <= MOST_CHANNELS:
        return *shape[1:], shape[0]
    return shape if len(shape) > 3 else (*shape, 1)
