"""Images that Python holds: arrays, lists, columns of tables, and data sets of other libraries."""

import dataclasses
import io
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from diffae_jax.data.formats.files import read_file, read_picture
from diffae_jax.data.labels.records import columns_of
from diffae_jax.data.sources import (
    channels_last,
    each,
    hash_of_sample_images,
    image_errors_as_user_errors,
    without_cache,
)
from diffae_jax.data.transforms import check_picture_shape, pixels_of
from diffae_jax.runtime.arrays import plain, plain_column
from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.files import local_path, os_errors_as_user_errors

IMAGE_KEYS = ("image", "img", "pixel_values")  # of an item that is a dict
LABEL = "label"  # the name of the second value of an item (image, label)


def is_picture(value: Any) -> bool:
    """Returns whether a value is a PIL image, a path, or an open or encoded file."""
    return isinstance(value, str | os.PathLike | Image.Image | bytes | bytearray) or hasattr(value, "read")


def read_value(value: Any, image_shape: tuple[int, ...], name: str) -> Shaped[np.ndarray, "*spatial c"]:
    """Reads one image that Python holds, in its original size.

    Args:
        value: A PIL image, a path, an open file, the bytes of a file, or anything that NumPy
            converts to an array of numbers.
        image_shape: The shape [*spatial, C]. It shows which axis of an array holds the channels.
        name: The name of the image, for messages.

    Returns:
        The image, [*spatial, C].

    Raises:
        UserError: The value is not an image.
    """
    if isinstance(value, str | os.PathLike):
        path = local_path(value)
        with os_errors_as_user_errors(path):
            return read_file(path, image_shape)
    if is_picture(value):
        check_picture_shape(image_shape)
    if isinstance(value, Image.Image):
        with image_errors_as_user_errors(name):
            return pixels_of(value)
    if is_picture(value):
        return read_picture(io.BytesIO(_content(value, name)), name)
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # RuntimeError: tensors of PyTorch with gradients
        raise UserError(
            f"{name} is not an array ({shown(str(error))}). Give an array, a PIL image, a path or an open file."
        ) from error
    return channels_last(array, image_shape, name)


def _content(file: Any, name: str) -> bytes:
    if isinstance(file, bytes | bytearray):
        return bytes(file)
    if isinstance(file, io.TextIOBase):
        raise UserError(f'{name} is a file that is open as text. Open it as bytes, with open(path, "rb").')
    with os_errors_as_user_errors(Path(name)):
        try:
            if file.seekable():
                file.seek(0)  # something may have read its first bytes to find its type
            return file.read()
        except (ValueError, AttributeError) as error:  # of a closed file
            raise UserError(f"{name} cannot be read ({shown(str(error))}). Give an open file.") from error


def as_sequence(images: Any) -> Any:
    """Returns images in any container as an array or as a sequence with a length.

    A column of paths or PIL images becomes a list. Raises UserError for containers in which the
    images or their order are unclear, such as a dict. The message names what to give instead.
    """
    kind = shown(images)
    if isinstance(images, Mapping):  # an open npz is one, too
        keys = list(map(str, images))
        example = f", such as images[{shown(keys[0])!r}]" if keys else ""
        raise UserError(
            f"The images are {kind} with the keys {list_some(keys) or 'none'}. Give one of its values{example}."
        )
    if isinstance(images, Set):
        raise UserError(f"The images are {kind}, which has no order. Give a list.")
    if not hasattr(images, "__array__"):
        return images
    if hasattr(images, "columns"):
        names = list_some(map(str, images.columns))
        raise UserError(f"The images are {kind} with the columns {names}. Give one column.")
    if getattr(getattr(images, "dtype", None), "kind", "") not in ("O", "U", "T"):
        return images
    array = np.asarray(images, object)
    if array.ndim != 1:
        raise UserError(f"The images have the shape {array.shape} and hold no numbers. Give a single column of paths.")
    return array.tolist()


def image_of(item: Any, name: str) -> Any:
    """Returns the image of an item such as (image, label) or {"image": image, "label": label}.

    Any other item is an image itself. Raises UserError for a dict in which the image is unclear.
    """
    if isinstance(item, Mapping):
        return item[_image_key(item, name)]
    return item[0] if _is_labeled(item) else item


def labels_of(item: Any, name: str) -> dict[str, Any]:
    """Returns the labels of an item by name: its texts, its numbers and its missing values.

    The second value of (image, label) is called "label". Further ones are called "label_2" and so
    on. Those of a dict have its keys.
    """
    if isinstance(item, Mapping):
        image = _image_key(item, name)
        values = {str(key): value for key, value in item.items() if key != image}
    elif _is_labeled(item):
        values = {LABEL if i == 1 else f"{LABEL}_{i}": value for i, value in enumerate(item) if i}
    else:
        return {}
    return {key: value for key, value in zip(values, map(plain, values.values()), strict=True) if _is_scalar(value)}


def _image_key(item: Mapping[Any, Any], name: str) -> Any:
    images = [key for key, value in item.items() if _is_image(value)]
    named = [key for key in IMAGE_KEYS if key in images or is_picture(item.get(key))]
    found = named or (images if len(images) == 1 else [])
    if not found:
        raise UserError(
            f"{name} is a dict with the keys {list_some(map(str, item)) or 'none'}, and it is unclear which of them is "
            f"the image. Call it {' or '.join(IMAGE_KEYS)}, or give only the images."
        )
    return found[0]


def _is_labeled(item: Any) -> bool:
    """Returns whether an item is an image with labels, not a list of rows or channels."""
    if not isinstance(item, tuple | list) or len(item) < 2:
        return False
    first, *others = item[0], *map(plain, item[1:])
    if isinstance(first, str):
        return all(isinstance(value, int | float | None) for value in others)  # else a list of paths
    return (_is_image(first) or is_picture(first)) and any(map(_is_scalar, others))


def _is_image(value: Any) -> bool:
    return isinstance(value, Image.Image) or (hasattr(value, "__array__") and np.ndim(value) > 0)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float | None)


@dataclasses.dataclass(frozen=True)
class SequenceSource:
    """A Python sequence of images, each of which is computed or read on access.

    An item is an image in any form that `read_value` takes, or an image with labels, as in
    `labels_of`. Labels are collected while images are read, because reading them may be slow.

    Args:
        images: Any object with `len(images)` and `images[index]`, such as a PyTorch data set.
        image_shape: The shape [*spatial, C] to train with. It shows which axis holds the channels.
    """

    images: Any
    image_shape: tuple[int, ...]

    @cached_property
    def ids(self) -> Sequence[str]:
        """The index of each image in the sequence, as text."""
        return list(map(str, range(len(self.images))))

    @cached_property
    def labels(self) -> Mapping[str, np.ndarray]:
        """The labels of all images. Images that were not read before are read now."""
        if not len(self.images) or hasattr(self.images, "__array__"):
            return {}
        if not self._labels_at(0) and not any(self._labels_read.values()):
            return {}  # without reading all images
        rows = list(each(self._labels_at, range(len(self.images))))
        return {name: column_of(name, values) for name, values in columns_of(rows).items()}

    @cached_property
    def _labels_read(self) -> dict[int, dict[str, Any]]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return without_cache(self)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns one image. Raises UserError if the item is not an image."""
        name = self.name(index)
        item = self._item(index)
        self._labels_read[index] = labels_of(item, name)
        return read_value(image_of(item, name), self.image_shape, name)

    def _item(self, index: int) -> Any:
        try:
            return self.images[index]
        except Exception as error:  # user code may raise anything
            kind = type(error).__name__
            raise UserError(
                f"{self.name(index)} cannot be read ({kind}: {shown(str(error))}). Repair or remove it."
            ) from error

    def _labels_at(self, index: int) -> dict[str, Any]:
        """Returns the labels of an image. An item that cannot be read has none."""
        if index not in self._labels_read:
            try:
                self._labels_read[index] = labels_of(self._item(index), self.name(index))
            except UserError:
                self._labels_read[index] = {}
        return self._labels_read[index]

    def name(self, index: int) -> str:
        """Returns the index of an image, for messages."""
        return f"Image {index} of the sequence"

    def fingerprint(self) -> str:
        """Returns a hash of a sample of the images: reading all of them may be slow."""
        return hash_of_sample_images(self)


def column_of(name: str, values: Iterable[Any]) -> np.ndarray:
    """Converts Python values to an array, as in `Source.labels`.

    Args:
        name: The name of the label, for messages.
        values: A value for each image, in any form that `plain_column` takes.

    Returns:
        An array [N]: int64 if no number is missing, float64 with NaN, or text with "".

    Raises:
        UserError: A value is neither text nor a number.
    """
    column = plain_column(name, values)
    bad = next((value for value in column if not _is_scalar(value)), None)
    if bad is not None:
        raise UserError(f"Labels must be text or numbers, but {shown(name)} has {shown(bad)}. Convert it.")
    if any(isinstance(value, str) for value in column):
        missing = [value is None or value != value for value in column]
        return np.array(["" if skip else str(value) for value, skip in zip(column, missing, strict=True)], object)
    if all(isinstance(value, int) and abs(value) < 2**63 for value in column):
        return np.array(column, np.int64)
    return np.array([np.nan if value is None else value for value in column], np.float64)
