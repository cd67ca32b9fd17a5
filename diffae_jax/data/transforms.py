"""Crops, scales and converts images on the host, between file and network."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from ml_collections import ConfigDict
from PIL import ExifTags, Image, ImageOps

from diffae_jax.config import parse_intensity
from diffae_jax.runtime.arrays import AnyArray
from diffae_jax.runtime.errors import UserError, counted

PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by number of channels
CROPS = {  # by name: start and size of the crop; None: the largest centered crop
    "center": None,
    "celeba": ((57, 25), (128, 128)),  # around (x 89, y 121) of the aligned 178x218 images, as in the D2C paper
}
NOMINAL_RANGES = (
    (0.0, 1.0),
    (-1.0, 1.0),
    (0.0, 255.0),
)  # standard ranges; one is assumed if the values fill most of it


@dataclasses.dataclass(frozen=True)
class Transform:
    """Converts an image of any size to an array [*image_shape].

    The image is cropped, scaled until it just covers `image_shape`, and cropped to its center.
    Small images are refused, not enlarged.

    Args:
        image_shape: The shape [*spatial, C] of the result.
        crop: The crop before scaling, a key of `CROPS`: "center" or "celeba".
        intensity: The values that become -1 and 1. Values outside are clipped, and the result is
            float32. None: the result is uint8. Only uint8, uint16 and bool images are accepted.
    """

    image_shape: tuple[int, ...]
    crop: str = "center"
    intensity: tuple[float, float] | None = None

    @property
    def dtype(self) -> np.dtype:
        """The type of transformed images: uint8, or float32 if there is an `intensity`."""
        return np.dtype(np.uint8 if self.intensity is None else np.float32)

    def __call__(self, image: Shaped[np.ndarray, "*spatial c"], name: str) -> Shaped[np.ndarray, "*shape"]:
        """Transforms one image.

        Args:
            image: The image in its original size, [*spatial, C], of any numeric type.
            name: The name of the image, for messages.

        Returns:
            The image, [*image_shape]: float32 in [-1, 1], or uint8, which `to_float` scales later.

        Raises:
            UserError: `check` fails, or the value range of the image is unknown.
        """
        self.check(image, name)
        image = with_channels(image, self.image_shape[-1], name)
        if self.intensity is None and image.dtype != np.uint8:
            image = to_8_bits(image, name)
        image = resize_and_crop(cut_out(image, self._crop_of(image.shape[:-1])), self.image_shape[:-1])
        if self.intensity is None:
            return image
        low, high = self.intensity
        return np.clip((image.astype(np.float32) - low) * (2 / (high - low)) - 1, -1, 1, dtype=np.float32)

    def _crop_of(self, size: Sequence[int]) -> str:
        """Returns the crop for an image of this size.

        Images of the final size are not cropped, because a model may have generated them.
        """
        return "center" if tuple(size) == self.image_shape[:-1] else self.crop

    def restored(self, images: Float[AnyArray, "n *shape"]) -> Shaped[np.ndarray, "n *shape"]:
        """Converts images back to the value range of the data.

        Args:
            images: Images in [-1, 1], [n, *image_shape].

        Returns:
            The images as uint8, or as float32 in the range of `intensity`.
        """
        if self.intensity is None:
            return to_uint8(images)
        low, high = self.intensity
        return ((images + 1) * ((high - low) / 2) + low).astype(np.float32)

    def check(self, image: Shaped[np.ndarray, "*spatial c"], name: str) -> None:
        """Checks that an image can be transformed.

        Args:
            image: The image in its original size, [*spatial, C].
            name: The name of the image, for messages.

        Raises:
            UserError: The image is too small, or its channels or values cannot be used.
        """
        self.check_size(image.shape[:-1], name)
        check_channels(image, self.image_shape[-1], name)
        if image.dtype.kind != "f":
            return
        with np.errstate(over="ignore"):  # values beyond the range of float32 become infinite
            is_finite = np.isfinite(image.astype(np.float32, copy=False))
        if not is_finite.all():
            bad = counted(int((~is_finite).sum()), "value that", "values that", verb="is/are")
            raise UserError(f"{name} has {bad} not finite. Repair or remove it.")

    def check_size(self, size: Sequence[int], name: str) -> None:
        """Checks that an image is large enough.

        Args:
            size: The spatial axes of the image.
            name: The name of the image, for messages.

        Raises:
            UserError: The image, or its crop, is smaller than `image_shape`.
        """
        wanted, box = self.image_shape[:-1], CROPS[self._crop_of(size)]
        if box is not None:
            start, length = box
            if len(size) != len(start) or any(s + n > have for s, n, have in zip(start, length, size, strict=True)):
                raise UserError(
                    f"{name} is {format_size(size)} pixels, but the crop {self.crop} needs aligned images of 178x218 "
                    f"pixels. Set --config.data.crop=center."
                )
            size = length
        if any(have < want for have, want in zip(size, wanted, strict=True)):
            raise UserError(
                f"{name} is {format_size(size)} pixels, smaller than the {format_size(wanted)} of image_shape. "
                f"Remove it, or replace it with a larger image."
            )


def transform_of(config: ConfigDict, measured: str | None = None) -> Transform:
    """Returns the transform of a config. A measured intensity replaces that of the config."""
    intensity = parse_intensity(config.data.intensity if measured is None else measured)
    is_range = intensity is not None and not intensity[2]
    return Transform(tuple(config.image_shape), config.data.crop, intensity[:2] if is_range else None)


def format_size(size: Sequence[int]) -> str:
    """Formats a size as text: WIDTHxHEIGHT for a picture, else in the order of the axes."""
    return "x".join(map(str, tuple(size)[::-1] if len(size) == 2 else size))


def check_picture_shape(image_shape: tuple[int, ...]) -> None:
    """Raises UserError unless image files can hold images of this shape."""
    if len(image_shape) != 3 or image_shape[-1] not in PIL_MODES:
        raise UserError(
            f"Image files hold [height, width, channels] with 1, 3 or 4 channels, not image_shape={image_shape}. "
            f"Set --config.image_shape to a shape such as (64, 64, 3), or store other shapes as arrays."
        )


def cut_out(image: Shaped[np.ndarray, "*spatial c"], crop: str) -> Shaped[np.ndarray, "*cut c"]:
    """Returns the named crop of an image."""
    box = CROPS[crop]
    if box is None:
        return image
    return image[tuple(slice(start, start + length) for start, length in zip(*box, strict=True))]


def resize_and_crop(image: Shaped[np.ndarray, "*spatial c"], size: tuple[int, ...]) -> Shaped[np.ndarray, "*size c"]:
    """Scales an image of any rank until it just covers `size`, and crops the center.

    Pillow's antialiasing Lanczos filter scales uint8 pictures in one call, and other images axis
    by axis in float32.
    """
    if image.shape[:-1] == size:
        return image
    starts, stops = covering_box(image.shape[:-1], size)
    if image.ndim == 3 and image.dtype == np.uint8 and image.shape[-1] in PIL_MODES:
        (top, left), (bottom, right) = starts, stops
        box = (left, top, right, bottom)
        scaled = picture(image).resize((size[1], size[0]), Image.Resampling.LANCZOS, box)
        return np.asarray(scaled).reshape(*size, image.shape[-1])
    scaled = image.astype(np.float32, order="C")  # a Fortran-ordered NIfTI would be copied for each axis
    for axis, (want, start, stop) in enumerate(zip(size, starts, stops, strict=True)):
        scaled = _resize_axis(scaled, axis, want, start, stop)
    return np.clip(np.round(scaled), 0, 255).astype(np.uint8) if image.dtype == np.uint8 else scaled


def covering_box(have: Sequence[int], size: Sequence[int]) -> tuple[list[float], list[float]]:
    """Returns the part of an image that `resize_and_crop` scales to `size`.

    Args:
        have: The spatial axes of the image.
        size: The spatial axes of the result.

    Returns:
        The start and the stop on each axis, in voxels. Voxel i covers i to i + 1.
    """
    scale = max(want / length for want, length in zip(size, have, strict=True))
    # rounding may place the box slightly outside of the image, which is an error in Pillow
    lengths = [min(want / scale, length) for want, length in zip(size, have, strict=True)]
    starts = [(whole - length) / 2 for whole, length in zip(have, lengths, strict=True)]
    stops = [min(start + length, whole) for start, length, whole in zip(starts, lengths, have, strict=True)]
    return starts, stops


def _resize_axis(array: Float[np.ndarray, "*any"], axis: int, size: int, start: float, stop: float) -> np.ndarray:
    moved = np.moveaxis(array, axis, 0)
    rows = np.ascontiguousarray(moved.reshape(len(moved), -1))
    box = (0, start, rows.shape[1], stop)
    scaled = np.asarray(Image.fromarray(rows).resize((rows.shape[1], size), Image.Resampling.LANCZOS, box))
    return np.moveaxis(scaled.reshape(size, *moved.shape[1:]), 0, axis)


def picture(image: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    """Returns an array of 1, 3 or 4 channels as a PIL image."""
    return Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)


def pixels_of(image: Image.Image) -> Shaped[np.ndarray, "h w c"]:
    """Returns the pixels of a PIL image with its own channels, rotated as EXIF specifies.

    Images with 16 or 32 bits keep their type. All others become uint8. Palettes become RGB or
    RGBA.
    """
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # exif_transpose always copies
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        array = np.asarray(image)[..., None]
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    usual = "RGBA" if image.has_transparency_data else "L" if image.mode in ("1", "L") else "RGB"
    usable = image if image.mode == usual else image.convert(usual)
    return np.asarray(usable).reshape(image.height, image.width, -1)


def with_channels(
    image: Shaped[np.ndarray, "*spatial c"], channels: int, name: str
) -> Shaped[np.ndarray, "*spatial c2"]:
    """Returns an image with the given number of channels.

    Pictures are converted. If their alpha channel is removed, they are blended with white.
    Raises UserError as `check_channels` does.
    """
    have = image.shape[-1]
    if have == channels:
        return image
    check_channels(image, channels, name)
    if image.dtype != np.uint8:
        return np.repeat(image, channels, axis=-1)
    converted = picture(image)
    if have == 4:
        converted = Image.alpha_composite(Image.new("RGBA", converted.size, "white"), converted)
    return np.asarray(converted.convert(PIL_MODES[channels])).reshape(*image.shape[:-1], channels)


def check_channels(image: Shaped[np.ndarray, "*spatial c"], channels: int, name: str) -> None:
    """Raises UserError unless an image has, or can be converted to, the number of channels."""
    have = image.shape[-1]
    is_picture = image.ndim == 3 and have in PIL_MODES and channels in PIL_MODES
    if have != channels and not (is_picture and (image.dtype == np.uint8 or (have, channels) == (1, 3))):
        raise UserError(
            f"{name} has {counted(have, 'channel')}, not {channels}. Set the last value of "
            f"--config.image_shape to the number of channels of your images, or remove this image."
        )


def to_8_bits(image: Shaped[np.ndarray, "*shape"], name: str) -> UInt8[np.ndarray, "*shape"]:
    """Scales 16 bits to 8 bits. Raises UserError for other types: their value range is unknown."""
    if image.dtype == np.bool_:
        return image.astype(np.uint8) * np.uint8(255)
    if image.dtype != np.uint16:
        raise UserError(
            f"{name} has values of {image.dtype}, whose range is unknown. Set the values that become -1 and 1 with "
            f"--config.data.intensity=LOW..HIGH, or convert the image to 8 or 16 bits."
        )
    return np.round(image / 257).astype(np.uint8)


def likely_range(low: float, high: float) -> tuple[float, float]:
    """Returns the likely value range: a standard range if `low` to `high` fills most of it."""
    for nominal in NOMINAL_RANGES:
        if nominal[0] <= low and high <= nominal[1] and high - low > (nominal[1] - nominal[0]) / 2:
            return nominal
    return (low, high) if low < high else (low, low + 1)


def random_flip(image: Shaped[np.ndarray, "*spatial c"], rng: np.random.Generator) -> Shaped[np.ndarray, "*spatial c"]:
    """Mirrors an image left to right with probability 1/2."""
    return np.flip(image, axis=-2) if rng.random() < 0.5 else image


def to_float(images: Shaped[Any, "n *shape"]) -> Float[Any, "n *shape"]:
    """Scales uint8 to float32 in [-1, 1]. Floats are already in this range.

    Call it on the device, so that transfers need one byte per value.
    """
    return images.astype(np.float32) / 127.5 - 1 if images.dtype == np.uint8 else images


def to_uint8(images: Float[AnyArray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Scales [-1, 1] to uint8. Values outside are clipped."""
    return np.round((np.clip(np.asarray(images), -1, 1) + 1) * 127.5).astype(np.uint8)
