"""What people give as images, turned into one array that the networks take, and told what was done to it."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Shaped
from PIL import Image

from diffae_jax.data.sources import folder, told_image
from diffae_jax.data.transforms import PIL_MODES, check_picture_shape, resize_and_crop
from diffae_jax.errors import UserError, shown

TOLERANCE = 1e-3  # beyond [-1, 1], which resizing of floats easily makes


def as_images(images: Any, image_shape: tuple[int, ...]) -> tuple[Shaped[np.ndarray, "n *shape"], list[str]]:
    """Returns images as uint8 or as float32 in [-1, 1], [N, *image_shape], and a sentence for each conversion.

    Takes arrays [N, *image_shape] of uint8 or floats in [-1, 1], or one image [*image_shape]; PIL images, paths of
    image files, or a list of these, each scaled until it covers the shape and cropped; and the path of a folder of
    image files, which are taken in the order of their names.

    Raises UserError, with the numbers and the first image that is wrong, for anything else: another shape, type or
    range, numbers that are not finite, files that are no images or too small.
    """
    if isinstance(images, str | os.PathLike) and Path(images).is_dir():
        source = folder(os.fspath(images), image_shape, 0.0)[0]
        images = [source.root / name for name in source.ids]
    if _is_picture(images):
        images = [images]
    if isinstance(images, list | tuple) and any(map(_is_picture, images)):
        return _from_pictures(images, image_shape)
    return _from_array(images, image_shape)


def as_codes(name: str, codes: Any, shape: tuple[int, ...]) -> Float32[np.ndarray, "n *shape"]:
    """Returns z or x_T as float32 [N, *shape]. Raises UserError for another shape, no numbers, and ones not finite."""
    try:
        array = np.asarray(codes)
    except (ValueError, TypeError) as error:
        raise UserError(f"{name} is no array of one shape: {shown(str(error))}.") from error
    if array.shape[1:] != shape or not array.ndim or not len(array):
        raise UserError(f"{name} must have the shape (N, {', '.join(map(str, shape))}), not {array.shape}.")
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise UserError(f"{name} must be numbers, not {array.dtype}.")
    array = array.astype(np.float32)
    bad = ~np.isfinite(array.reshape(len(array), -1)).all(1)
    if bad.any():
        raise UserError(f"{bad.sum()} of {len(bad)} {name} hold numbers that are not finite, the first {bad.argmax()}.")
    return array


def _is_picture(value: Any) -> bool:
    return isinstance(value, str | os.PathLike | Image.Image)


def _from_pictures(pictures: Sequence[Any], image_shape: tuple[int, ...]) -> tuple[np.ndarray, list[str]]:
    odd = next((item for item in pictures if not _is_picture(item)), None)
    if odd is not None:
        kind = type(odd).__name__
        raise UserError(f"A list of images holds arrays or PIL images and paths, not both: it has one of type {kind}.")
    check_picture_shape(image_shape)
    with ThreadPoolExecutor() as pool:
        arrays, changes = zip(*pool.map(lambda item: _read(item, image_shape), pictures), strict=True)
    changed = [change for change in changes if change]
    notes = [f"{len(changed)} of {len(pictures)} images were converted, the first {changed[0]}."] if changed else []
    return np.stack(arrays), notes


def _read(picture: Any, image_shape: tuple[int, ...]) -> tuple[np.ndarray, str | None]:
    """Returns a picture as an array, and what was done to it where that loses something."""
    name = "a PIL image" if isinstance(picture, Image.Image) else os.fspath(picture)
    with told_image(name):
        if isinstance(picture, Image.Image):
            array, size, mode = resize_and_crop(picture, image_shape), picture.size, picture.mode
        else:
            with Image.open(picture) as image:
                array, size, mode = resize_and_crop(image, image_shape), image.size, image.mode
    height, width, channels = image_shape
    if size == (width, height) and mode == PIL_MODES[channels]:
        return array, None
    return array, f"({shown(name)}) from {size[0]}x{size[1]} {mode} to {width}x{height} in {channels} channels"


def _from_array(images: Any, image_shape: tuple[int, ...]) -> tuple[np.ndarray, list[str]]:
    try:
        array = np.asarray(images)
    except (ValueError, TypeError) as error:
        raise UserError(f"These images are no array of one shape: {shown(str(error))}.") from error
    if array.shape == image_shape:
        array = array[None]
    if array.shape[1:] != image_shape or not len(array):
        raise UserError(
            f"An array of shape {array.shape} was given where the model takes (N, *{image_shape}): "
            f"{_remedy(array.shape, image_shape)}."
        )
    if array.dtype == np.uint8:
        return array, ["Images of uint8 were scaled from 0..255 to [-1, 1]."]
    if not jnp.issubdtype(array.dtype, jnp.floating):  # which knows bfloat16, too
        raise UserError(f"Images must be uint8 or floating point numbers in [-1, 1]; these are {array.dtype}.")
    array = array.astype(np.float32)
    flat = array.reshape(len(array), -1)
    low, high = flat.min(1), flat.max(1)
    _refuse(~np.isfinite(low + high), "numbers that are not finite", "repair or leave them out")
    remedy = "scale them, or give uint8 where they reach from 0 to 255"
    wrong = (low < -1 - TOLERANCE) | (high > 1 + TOLERANCE)
    _refuse(wrong, f"numbers beyond [-1, 1] (from {low.min():g} to {high.max():g} over all)", remedy)
    if low.min() >= 0:
        return array, [
            "No value of these images is below 0; where 0 is black and 1 white in yours, give 2 * images - 1 instead."
        ]
    return array, []


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
