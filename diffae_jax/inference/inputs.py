"""What people give as images, turned into one array that the networks take, and told what was done to it."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Shaped
from PIL import Image

from diffae_jax.data.detect import open_images
from diffae_jax.data.formats.files import read_file
from diffae_jax.data.sources import each, image_errors_as_user_errors
from diffae_jax.data.transforms import Transform, check_picture_shape, format_size, pixels_of
from diffae_jax.runtime.arrays import AnyArray, is_traced, to_host
from diffae_jax.runtime.errors import UserError, shown

TOLERANCE = 1e-3  # beyond [-1, 1], which resizing of floats easily makes


def as_images(images: Any, transform: Transform) -> tuple[Shaped[AnyArray, "n *shape"], list[str]]:
    """Returns images as uint8 or as float32 in [-1, 1], [N, *image_shape], and a sentence for each conversion.

    Takes arrays [N, *image_shape] of uint8 or floats in [-1, 1], or one image [*image_shape]; PIL images, paths of
    files, or a list of these; any other sequence of such; and the path of whatever `data.detect.open_images` opens.
    What comes from files or PIL goes through the transform. Traced arrays stay traced; of them only shape and type are
    known, and checked.

    Raises UserError, with the numbers and the first image that is wrong, for anything else: another shape, type or
    range, numbers that are not finite, files that are no images or too small.
    """
    _refuse_traced_lists("images", images)
    if is_traced(images):
        return _from_traced(images, transform), []
    if isinstance(images, str | os.PathLike):
        source = open_images(images, transform.image_shape).source
        return _converted(lambda i: (source[i], source.name(i)), len(source), transform)
    if isinstance(images, Image.Image):
        images = [images]
    if not hasattr(images, "__array__") and hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        images = [images[i] for i in range(len(images))]
    if isinstance(images, list) and any(map(_is_picture, images)):
        return _from_pictures(images, transform)
    return _from_array(images, transform)


def as_codes(name: str, codes: Any, shape: tuple[int, ...]) -> Float32[AnyArray, "n *shape"]:
    """Returns z or x_T as float32 [N, *shape]; traced arrays stay traced.

    Raises UserError for another shape, for what is no number and, unless they are traced, for numbers not finite.
    """
    _refuse_traced_lists(name, codes)
    try:
        array = to_host(codes)
    except (ValueError, TypeError) as error:
        raise UserError(f"{name} is no array of one shape: {shown(str(error))}.") from error
    if array.shape[1:] != shape or not array.ndim or not len(array):
        raise UserError(f"{name} must have the shape (N, {', '.join(map(str, shape))}), not {array.shape}.")
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise UserError(f"{name} must be numbers, not {array.dtype}.")
    array = array.astype(np.float32)
    if is_traced(array):
        return array
    bad = ~np.isfinite(array.reshape(len(array), -1)).all(1)
    if bad.any():
        raise UserError(f"{bad.sum()} of {len(bad)} {name} hold numbers that are not finite, the first {bad.argmax()}.")
    return array


def _is_picture(value: Any) -> bool:
    return isinstance(value, str | os.PathLike | Image.Image)


def _from_pictures(pictures: Sequence[Any], transform: Transform) -> tuple[np.ndarray, list[str]]:
    odd = next((item for item in pictures if not _is_picture(item)), None)
    if odd is not None:
        kind = type(odd).__name__
        raise UserError(f"A list of images holds arrays or PIL images and paths, not both: it has one of type {kind}.")
    if any(isinstance(item, Image.Image) for item in pictures):
        check_picture_shape(transform.image_shape)
    return _converted(lambda i: _opened(pictures[i], transform), len(pictures), transform)


def _opened(picture: Any, transform: Transform) -> tuple[np.ndarray, str]:
    if not isinstance(picture, Image.Image):
        return read_file(Path(picture), transform.image_shape), os.fspath(picture)
    with image_errors_as_user_errors("a PIL image"):
        return pixels_of(picture), "a PIL image"


def _converted(
    get: Callable[[int], tuple[np.ndarray, str]], count: int, transform: Transform
) -> tuple[np.ndarray, list[str]]:
    """Puts images, given with their names, through the transform, and says where that loses something."""

    def prepare(index):
        image, name = get(index)
        return transform(image, name), _loss(image, name, transform)

    images, changes = zip(*each(prepare, range(count)), strict=True)
    changed = [change for change in changes if change]
    notes = [f"{len(changed)} of {count} images were converted, the first {changed[0]}."] if changed else []
    return np.stack(images), notes


def _loss(image: np.ndarray, name: str, transform: Transform) -> str | None:
    """Returns what the transform does to an image where that loses something."""
    is_usual = (image.dtype == np.uint8) == (transform.intensity is None)
    if image.shape == transform.image_shape and is_usual:
        return None
    kind = "" if is_usual else f" of {image.dtype}"
    if not is_usual and transform.intensity is not None:
        kind += " by the range {:g}..{:g}".format(*transform.intensity)
    *size, channels = transform.image_shape
    have = f"{format_size(image.shape[:-1])} in {_channels(image.shape[-1])}{kind}"
    return f"({shown(name)}) from {have} to {format_size(size)} in {_channels(channels)}"


def _channels(number: int) -> str:
    return f"{number} channel{'s' * (number != 1)}"


def _from_array(images: Any, transform: Transform) -> tuple[np.ndarray, list[str]]:
    image_shape = transform.image_shape
    try:
        array = np.asarray(images)
    except (ValueError, TypeError) as error:
        raise UserError(f"These images are no array of one shape: {shown(str(error))}.") from error
    array = _stacked(array, image_shape)
    if array.dtype.kind in "bui" and transform.intensity is not None:
        low, high = transform.intensity
        images = np.stack([transform(image, f"Image {i}") for i, image in enumerate(array)])
        return images, [f"Images of {array.dtype} were scaled from {low:g}..{high:g} to [-1, 1]."]
    if array.dtype == np.uint8:
        return array, ["Images of uint8 were scaled from 0..255 to [-1, 1]."]
    array = _as_floats(array)
    flat = array.reshape(len(array), -1)
    low, high = flat.min(1), flat.max(1)
    _refuse(~np.isfinite(low + high), "numbers that are not finite", "repair or leave them out")
    remedy = "scale them, or give uint8 where they reach from 0 to 255"
    if transform.intensity is not None:
        remedy = "scale them, {:g} to -1 and {:g} to 1".format(*transform.intensity)
    wrong = (low < -1 - TOLERANCE) | (high > 1 + TOLERANCE)
    _refuse(wrong, f"numbers beyond [-1, 1] (from {low.min():g} to {high.max():g} over all)", remedy)
    if low.min() >= 0:
        return array, [
            "No value of these images is below 0; where 0 is black and 1 white in yours, give 2 * images - 1 instead."
        ]
    return array, []


def _from_traced(images: jax.Array, transform: Transform) -> jax.Array:
    images = _stacked(images, transform.image_shape)
    if transform.intensity is not None and not jnp.issubdtype(images.dtype, jnp.floating):
        low, high = transform.intensity
        raise UserError(
            f"Traced images of {images.dtype} are not scaled by the range of values {low:g}..{high:g} that this model "
            f"was trained with: give floating point numbers, {low:g} scaled to -1 and {high:g} to 1."
        )
    return images if images.dtype == np.uint8 else _as_floats(images)


def _refuse_traced_lists(name: str, values: Any) -> None:
    if isinstance(values, list | tuple) and is_traced(*jax.tree.leaves(values)):
        raise UserError(f"These {name} are a list of traced arrays: make them one array with jnp.stack.")


def _stacked(array: AnyArray, image_shape: tuple[int, ...]) -> AnyArray:
    """Returns images, or the one that it is, as [N, *image_shape]."""
    if array.shape == image_shape:
        array = array[None]
    if array.shape[1:] != image_shape or not len(array):
        raise UserError(
            f"An array of shape {array.shape} was given where the model takes (N, *{image_shape}): "
            f"{_remedy(array.shape, image_shape)}."
        )
    return array


def _as_floats(array: AnyArray) -> AnyArray:
    if not jnp.issubdtype(array.dtype, jnp.floating):  # which knows bfloat16, too
        raise UserError(f"Images must be uint8 or floating point numbers in [-1, 1]; these are {array.dtype}.")
    return array.astype(np.float32)


def _remedy(shape: tuple[int, ...], image_shape: tuple[int, ...]) -> str:
    *spatial, channels = image_shape
    if not len(shape) or not shape[0]:
        return "give at least one image"
    if shape[1:] == (channels, *spatial):
        return "put the channels last with np.moveaxis(images, 1, -1)"
    if channels == 1 and shape[1:] == tuple(spatial):
        return "add the axis of the one channel with images[..., None]"
    return "resize the images and put the channels last"


def _refuse(wrong: np.ndarray, what: str, remedy: str) -> None:
    if wrong.any():
        raise UserError(
            f"{wrong.sum()} of {len(wrong)} images hold {what}, the first is number {wrong.argmax()}: {remedy}."
        )
