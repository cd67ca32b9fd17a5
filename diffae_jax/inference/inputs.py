"""Converts images of any kind to one array for the networks, and describes the conversion."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Shaped
from PIL import Image

from diffae_jax.data.detect import open_images
from diffae_jax.data.sequences import as_sequence, image_of, is_picture, read_value
from diffae_jax.data.sources import each
from diffae_jax.data.transforms import Transform, format_size
from diffae_jax.runtime.arrays import AnyArray, is_traced, to_host
from diffae_jax.runtime.errors import UserError, counted, shown

TOLERANCE = 1e-3  # beyond [-1, 1]; resizing floats may exceed the range a little


def as_images(images: Any, transform: Transform, *, one: str = "") -> tuple[Shaped[AnyArray, "n *shape"], list[str]]:
    """Converts images to one array, and returns it with a sentence for each kind of conversion.

    Files and PIL images go through the transform. Traced arrays stay traced; only their shape and
    type are checked.

    Args:
        images: uint8 or float arrays [N, *image_shape] or [*image_shape], floats in [-1, 1]; a PIL
            image, the path of a file, or an open file; a sequence, column or iterator of these,
            also with labels as in `data.sequences.image_of`; or the path of a data set that
            `data.detect.open_images` opens.
        transform: how the model resizes and scales images.
        one: if set, the name of an argument that takes a single image.

    Returns:
        An array [N, *image_shape], uint8 or float32 in [-1, 1], and the sentences.

    Raises:
        UserError: if a shape, type or range is wrong, if values are not finite, if a file is not
            an image or is too small, or if there are several for `one`. The message names the
            first such image.
    """
    _refuse_traced_lists("images", images)
    if is_traced(images):
        images = _from_traced(images, transform)
        _check_one(one, len(images))
        return images, []
    if isinstance(images, str | os.PathLike):
        source = open_images(images, transform.image_shape).source
        _check_one(one, len(source))
        return _converted(lambda i: (source[i], source.name(i)), len(source), transform)
    items = _items(images)
    if isinstance(items, list) and any(map(is_picture, items)):
        _check_one(one, len(items))
        return _from_pictures(items, transform)
    array = _array_of(items, transform.image_shape)
    _check_one(one, len(array))
    return _from_array(array, transform)


def _items(images: Any) -> Any:
    """Returns images in any container as a list of images without labels, or as an array."""
    if is_picture(images):
        return [images]
    images = as_sequence(images)
    if hasattr(images, "__array__"):
        return images
    if hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        images = [images[i] for i in range(len(images))]  # a data set of PyTorch has no iterator
    elif isinstance(images, Iterable):
        images = list(images)
        _refuse_traced_lists("images", images)
    return [image_of(image, f"Image {i}") for i, image in enumerate(images)] if isinstance(images, list) else images


def _check_one(name: str, count: int) -> None:
    if name and count != 1:
        raise UserError(f"{name} must be one image, not {count:,}. Give a single image.")


def as_codes(name: str, codes: Any, shape: tuple[int, ...]) -> Float32[AnyArray, "n *shape"]:
    """Returns z or x_T as float32 [N, *shape]. Traced arrays stay traced.

    Raises UserError if the shape or the type is wrong. Unless the codes are traced, it also raises
    UserError if values are not finite.
    """
    _refuse_traced_lists(name, codes)
    try:
        array = to_host(codes)
    except (ValueError, TypeError) as error:
        raise UserError(f"{name} cannot be converted to an array: {shown(str(error))}.") from error
    if array.shape[1:] != shape or not array.ndim or not len(array):
        raise UserError(f"{name} must have the shape (N, {', '.join(map(str, shape))}), not {array.shape}.")
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise UserError(f"{name} must be numbers, not {array.dtype}.")
    array = array.astype(np.float32)
    if is_traced(array):
        return array
    bad = ~np.isfinite(array.reshape(len(array), -1)).all(1)
    if bad.any():
        raise UserError(
            f"{counted(int(bad.sum()), name, name, of=len(bad), verb='holds/hold')} values that are not finite; the "
            f"first is at index {bad.argmax()}."
        )
    return array


def _from_pictures(pictures: Sequence[Any], transform: Transform) -> tuple[np.ndarray, list[str]]:
    other = next((item for item in pictures if not is_picture(item)), None)
    if other is not None:
        kind = type(other).__name__
        raise UserError(f"A list of images must hold only arrays or only PIL images and paths. One is of type {kind}.")

    def opened(index):
        picture = pictures[index]
        name = _name_of(picture)
        return read_value(picture, transform.image_shape, name), name

    return _converted(opened, len(pictures), transform)


def _name_of(picture: Any) -> str:
    if isinstance(picture, str | os.PathLike):
        return os.fspath(picture)
    if isinstance(picture, Image.Image):
        return "a PIL image"
    name = getattr(picture, "name", None)  # of an open file
    return name if isinstance(name, str) else "an image file in memory"


def _converted(
    get: Callable[[int], tuple[np.ndarray, str]], count: int, transform: Transform
) -> tuple[np.ndarray, list[str]]:
    """Applies the transform to images from `get`, which also returns their names."""

    def prepare(index):
        image, name = get(index)
        return transform(image, name), _loss(image, name, transform)

    images, losses = zip(*each(prepare, range(count)), strict=True)
    lossy = [loss for loss in losses if loss]
    notes = (
        [f"{counted(len(lossy), 'image', of=count, verb='was/were')} converted, the first {lossy[0]}."] if lossy else []
    )
    return np.stack(images), notes


def _loss(image: np.ndarray, name: str, transform: Transform) -> str | None:
    """Describes how the transform changes an image, or returns None if nothing is lost."""
    is_usual = (image.dtype == np.uint8) == (transform.intensity is None)
    if image.shape == transform.image_shape and is_usual:
        return None
    kind = "" if is_usual else f" of {image.dtype}"
    if not is_usual and transform.intensity is not None:
        kind += " with the range {:g}..{:g}".format(*transform.intensity)
    *size, channels = transform.image_shape
    have = f"{format_size(image.shape[:-1])} in {counted(image.shape[-1], 'channel')}{kind}"
    return f"({shown(name)}) from {have} to {format_size(size)} in {counted(channels, 'channel')}"


def _array_of(images: Any, image_shape: tuple[int, ...]) -> Shaped[np.ndarray, "n *shape"]:
    try:
        array = np.asarray(images)
    except (ValueError, TypeError) as error:
        raise UserError(f"These images cannot be converted to one array: {shown(str(error))}.") from error
    return _stacked(array, image_shape)


def _from_array(array: Shaped[np.ndarray, "n *shape"], transform: Transform) -> tuple[np.ndarray, list[str]]:
    if array.dtype.kind in "bui" and transform.intensity is not None:
        low, high = transform.intensity
        images = np.stack([transform(image, f"Image {i}") for i, image in enumerate(array)])
        return images, [f"Images of {array.dtype} were scaled from {low:g}..{high:g} to [-1, 1]."]
    if array.dtype == np.uint8:
        return array, ["Images of uint8 were scaled from 0..255 to [-1, 1]."]
    array = _as_floats(array)
    flat = array.reshape(len(array), -1)
    low, high = flat.min(1), flat.max(1)
    _refuse(~np.isfinite(low + high), "values that are not finite", "Replace these values or leave the images out")
    fix = "Scale them to [-1, 1], or use uint8 for values from 0 to 255"
    if transform.intensity is not None:
        fix = "Scale them so that {:g} becomes -1 and {:g} becomes 1".format(*transform.intensity)
    wrong = (low < -1 - TOLERANCE) | (high > 1 + TOLERANCE)
    _refuse(wrong, f"values outside [-1, 1] (from {low.min():g} to {high.max():g} over all images)", fix)
    if low.min() >= 0:
        return array, [
            "No value of these images is below 0. If they are in [0, 1] instead of [-1, 1], use 2 * images - 1."
        ]
    return array, []


def _from_traced(images: jax.Array, transform: Transform) -> jax.Array:
    images = _stacked(images, transform.image_shape)
    if transform.intensity is not None and not jnp.issubdtype(images.dtype, jnp.floating):
        low, high = transform.intensity
        raise UserError(
            f"Traced images of {images.dtype} cannot be scaled by the range of values {low:g}..{high:g} that this "
            f"model was trained with. Convert them to floats, with {low:g} scaled to -1 and {high:g} to 1."
        )
    return images if images.dtype == np.uint8 else _as_floats(images)


def _refuse_traced_lists(name: str, values: Any) -> None:
    if isinstance(values, list | tuple) and is_traced(*jax.tree.leaves(values)):
        raise UserError(f"These {name} are a list of traced arrays. Make them one array with jnp.stack.")


def _stacked(array: AnyArray, image_shape: tuple[int, ...]) -> AnyArray:
    """Returns one or several images as [N, *image_shape].

    Raises UserError if the shape is wrong.
    """
    if array.shape == image_shape:
        array = array[None]
    if array.shape[1:] != image_shape or not len(array):
        raise UserError(
            f"The images have shape {array.shape}, but the model needs (N, *{image_shape}). "
            f"{_fix_for_shape(array.shape, image_shape)}."
        )
    return array


def _as_floats(array: AnyArray) -> AnyArray:
    if not jnp.issubdtype(array.dtype, jnp.floating):  # unlike numpy, this includes bfloat16
        raise UserError(
            f"Images must be uint8 or floats in [-1, 1], not {array.dtype}. Convert them to one of these types."
        )
    return array.astype(np.float32)


def _fix_for_shape(shape: tuple[int, ...], image_shape: tuple[int, ...]) -> str:
    *spatial, channels = image_shape
    if not len(shape) or not shape[0]:
        return "Give at least one image"
    if shape[1:] == (channels, *spatial):
        return "Put the channels last with np.moveaxis(images, 1, -1)"
    if channels == 1 and shape[1:] == tuple(spatial):
        return "Add an axis for the channel with images[..., None]"
    return "Resize the images and put the channels last"


def _refuse(wrong: np.ndarray, defect: str, fix: str) -> None:
    if wrong.any():
        raise UserError(
            f"{counted(int(wrong.sum()), 'image', of=len(wrong), verb='holds/hold')} {defect}; the first is at index "
            f"{wrong.argmax()}. {fix}."
        )
