"""What happens to an image between its file and the network."""

from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from diffae_jax.errors import UserError

PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by number of channels


def check_picture_shape(image_shape: tuple[int, ...]) -> None:
    """Raises UserError unless image files can hold images of that shape."""
    if len(image_shape) != 3 or image_shape[-1] not in PIL_MODES:
        raise UserError(
            f"Image files hold [height, width, channels] with 1, 3 or 4 channels, not image_shape={image_shape}: "
            f"give such images as arrays."
        )


def resize_and_crop(image: Image.Image, image_shape: tuple[int, int, int]) -> UInt8[np.ndarray, "h w c"]:
    """Scales an image, with antialiasing, until it just covers (height, width), and crops the centre.

    The camera's orientation tag is applied first. Raises UserError for an image smaller than asked.
    """
    height, width, channels = image_shape
    name = getattr(image, "filename", "") or "an image"
    image = with_channels(ImageOps.exif_transpose(image), channels, name)
    if image.width < width or image.height < height:
        raise UserError(
            f"{name} is {image.width}x{image.height} pixels, smaller than the {width}x{height} asked for: "
            f"remove it, or give a larger one."
        )
    image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(image, np.uint8).reshape(image_shape)


def with_channels(image: Image.Image, channels: int, name: str) -> Image.Image:
    """Converts an image to 8 bits and 1, 3 or 4 channels: 16 bits are scaled down, transparency is laid on white.

    Raises UserError for pixels of 32 bits, whose range nothing tells.
    """
    if image.mode in ("I", "F"):
        raise UserError(f"{name} has pixels of 32 bits, whose range is not known: save it with 8 or 16 bits.")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image, np.uint16) / 257).round().astype(np.uint8))
    if channels != 4 and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(PIL_MODES[channels])


def random_flip(image: UInt8[np.ndarray, "*spatial c"], rng: np.random.Generator) -> UInt8[np.ndarray, "*spatial c"]:
    """Mirrors an image left to right with probability 1/2."""
    return np.flip(image, axis=-2) if rng.random() < 0.5 else image


def to_float(images: UInt8[Any, "n *shape"]) -> Float[Any, "n *shape"]:
    """Scales uint8 to the [-1, 1] of the networks; on the device, so that one byte a value travels there."""
    return images.astype(np.float32) / 127.5 - 1


def to_uint8(images: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Scales [-1, 1] to uint8, limiting what lies outside."""
    return np.round((np.clip(np.asarray(images), -1, 1) + 1) * 127.5).astype(np.uint8)
