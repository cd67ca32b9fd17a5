"""Pictures of images: grids, named rows, difference maps and films, as PIL images and files."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image, ImageDraw

from diffae_jax.data.captions import block_size, font_for, wrapped
from diffae_jax.data.transforms import to_float
from diffae_jax.runtime.arrays import AnyArray
from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.files import AnyPath, atomic_write

GAP = 2  # pixels between images
MARGIN = 6  # pixels between names and images
WIDTH_OF_NAMES = 12  # of rows, in the size of the font
MAX_SCALE = 64
MAX_PIXELS = 2**26  # of an enlarged picture
# without a scale, images are enlarged to these sizes, in pixels on the longer side
SINGLE_IMAGE, LARGEST_IMAGE, LARGEST_PICTURE = 256, 96, 960
MILLISECONDS = 120  # of a frame of a film
GAINS = (100, 50, 20, 10, 5, 2)  # of a difference map

Images = AnyArray | Sequence[AnyArray]  # [n, *shape]; rows of a picture may differ in n


class Difference(NamedTuple):
    """The changes from some images to others, as `difference_map` returns them.

    Attributes:
        images: the changes as images in [-1, 1], [n, *spatial, C].
        gain: by how much the changes are amplified.
    """

    images: Float[np.ndarray, "n *shape"]
    gain: int | float

    @property
    def name(self) -> str:
        """The name of the row or the column, such as "difference x20"."""
        return f"difference x{self.gain:g}" if self.gain != 1 else "difference"


def as_picture(image: Shaped[AnyArray, "*spatial c"]) -> Float[np.ndarray, "h w c2"]:
    """Converts an image of any rank and number of channels to a picture.

    A volume becomes its middle slice, and a signal becomes a strip. Unless there are 1 or 3
    channels, only the first is used.

    Args:
        image: An image, uint8 or float in [-1, 1], [*spatial, C].

    Returns:
        The picture in [0, 1], [height, width, 1 or 3].
    """
    image = to_float(np.asarray(image))
    while image.ndim > 3:
        image = image[image.shape[0] // 2]
    if image.ndim == 2:
        image = np.repeat(image[None], max(1, image.shape[0] // 4), axis=0)
    if image.shape[-1] not in (1, 3):
        image = image[..., :1]
    return (np.clip(image, -1, 1) + 1) / 2


def to_pil(images: Shaped[AnyArray, "n *shape"]) -> list[Image.Image]:
    """Converts images to PIL images, pixel for pixel.

    Args:
        images: Images, uint8 or float in [-1, 1], [n, *spatial, C]. `as_picture` converts volumes
            and signals.

    Returns:
        One gray or RGB PIL image for each image.
    """
    return [_pil(image) for image in images]


def difference_map(
    images: Shaped[AnyArray, "n *shape"], others: Shaped[AnyArray, "n *shape"], gain: int | float | None = None
) -> Difference:
    """Returns the changes from some images to others: gray is no change, white is brighter.

    Args:
        images: Images, uint8 or float in [-1, 1], [n, *spatial, C].
        others: Images of the same shape, such as reconstructions.
        gain: By how much changes are amplified. With 1, a change from black to white is white. By
            default, the largest of 100, 50, 20, 10, 5, 2 and 1 that clips no change.

    Returns:
        `Difference(images, gain)`. Its `name` is for the row or the column of a picture.
    """
    changes = (to_float(np.asarray(others)) - to_float(np.asarray(images))) / 2
    if gain is None:
        largest = float(np.abs(changes).max(initial=0))
        gain = next((gain for gain in GAINS if 0 < gain * largest <= 1), 1)
    return Difference(np.clip(gain * changes, -1, 1), gain)


def image_grid(images: Shaped[AnyArray, "n *shape"], scale: int | None = None) -> Image.Image:
    """Arranges images in the rows of a square grid, as one PIL image.

    Args:
        images: Images, uint8 or float in [-1, 1], [n, *spatial, C]. `as_picture` converts volumes
            and signals.
        scale: Pixels of the grid for each pixel of an image, 1 to 64, without interpolation. By
            default, small images are enlarged.

    Returns:
        The grid, gray or RGB. Cells without an image are white.

    Raises:
        UserError: if the scale is out of range, or the grid would be too large.
    """
    columns = math.ceil(math.sqrt(len(images)))
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    return _painted(rows, cell_size(np.shape(images)[1:], len(rows), columns, scale))


def image_rows(rows: Mapping[str, Images], columns: Sequence[str] = (), scale: int | None = None) -> Image.Image:
    """Arranges rows of images, with names of rows and columns, as one PIL image.

    Args:
        rows: By name, the images of each row, uint8 or float in [-1, 1]: an array
            [n, *spatial, C], or a list. `as_picture` converts volumes and signals.
        columns: A name for each column; by default none. A word that is wider than an image is
            cut.
        scale: Pixels of the picture for each pixel of an image, 1 to 64, without interpolation. By
            default, small images are enlarged.

    Returns:
        The picture, gray or RGB, with black text on white.

    Raises:
        UserError: if the number of columns is wrong, if the scale is out of range, or if the
            picture would be too large.
    """
    num_columns = max(map(len, rows.values()))
    if len(columns) not in (0, num_columns):
        raise UserError(f"There are {len(columns)} names for {num_columns} columns. Give a name for each column.")
    first = next(iter(rows.values()))
    height, width = cell_size(np.shape(first)[1:], len(rows), num_columns, scale)
    font = font_for(min(height, width))
    names = [wrapped(name, font, WIDTH_OF_NAMES * int(font.size)) for name in rows]
    titles = [wrapped(name, font, width) for name in columns]
    left = max(block_size(name, font)[0] for name in names)
    top = max([block_size(title, font)[1] for title in titles], default=0)
    left, top = left + 2 * MARGIN * (left > 0), top + 2 * MARGIN * (top > 0)
    picture = _painted(list(rows.values()), (height, width), left, top)
    draw = ImageDraw.Draw(picture)
    for i, name in enumerate(names):
        middle = top + i * (height + GAP) + height / 2
        draw.multiline_text((left - MARGIN, middle), name, "black", font, anchor="rm", align="right")
    for i, title in enumerate(titles):
        x = left + i * (width + GAP) + width / 2
        draw.multiline_text((x, top - MARGIN), title, "black", font, anchor="md", align="center")
    return picture


def cell_size(
    image_shape: tuple[int, ...], num_rows: int, num_columns: int, scale: int | None = None
) -> tuple[int, int]:
    """Returns the height and the width of an image in a picture of rows, in pixels.

    Raises UserError if the scale is out of range, or the picture would be too large.
    """
    height, width = picture_size(image_shape)
    if scale is None:
        largest = LARGEST_IMAGE if num_rows * num_columns > 1 else SINGLE_IMAGE
        longest = max(num_rows * height, num_columns * width)
        scale = max(1, min(largest // max(height, width), LARGEST_PICTURE // longest))
    check_scale(scale, image_shape, num_rows * num_columns)
    return height * scale, width * scale


def check_scale(scale: int | None, image_shape: tuple[int, ...], num_images: int) -> None:
    """Raises UserError if a scale is out of range, or too large for a picture of some images."""
    if scale is None:
        return
    if not 1 <= scale <= MAX_SCALE:
        raise UserError(f"The scale of a picture must be from 1 to {MAX_SCALE}, not {shown(scale)}.")
    pixels = num_images * math.prod(picture_size(image_shape))
    if scale > 1 and pixels * scale**2 > MAX_PIXELS:
        raise UserError(
            f"At scale {scale}, the picture would have {pixels * scale**2:,} pixels, but at most {MAX_PIXELS:,} are "
            f"possible. Use a scale of at most {max(1, math.isqrt(MAX_PIXELS // pixels))}, or fewer images."
        )


def picture_size(image_shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns the height and the width of `as_picture` for images of a shape."""
    height, width, _ = as_picture(np.zeros(image_shape, np.uint8)).shape
    return height, width


def film(pictures: Sequence[Image.Image], kind: str = "GIF") -> bytes:
    """Encodes pictures as a film that plays forward and backward, forever.

    Args:
        pictures: PIL images of one size, such as a grid for each frame.
        kind: "GIF", which has 256 colors, or "PNG", an animated PNG. A notebook stores and shows
            the second: `IPython.display.Image(film(pictures, "PNG"))`.

    Returns:
        The content of the file.
    """
    file = io.BytesIO()
    frames = [*pictures, *pictures[-2:0:-1]]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=MILLISECONDS, loop=0)
    return file.getvalue()


def save_grid(path: AnyPath, images: Shaped[AnyArray, "n *shape"], scale: int | None = None) -> None:
    """Writes `image_grid` as a PNG, atomically."""
    save_picture(path, image_grid(images, scale))


def save_rows(
    path: AnyPath,
    rows: Mapping[str, Images],
    columns: Sequence[str] = (),
    scale: int | None = None,
) -> None:
    """Writes `image_rows` as a PNG, atomically."""
    save_picture(path, image_rows(rows, columns, scale))


def save_picture(path: AnyPath, picture: Image.Image) -> None:
    """Writes a PIL image as a PNG, atomically."""
    with atomic_write(path) as scratch:
        picture.save(scratch, "PNG")


def save_film(path: AnyPath, pictures: Sequence[Image.Image]) -> None:
    """Writes `film` as a GIF, atomically."""
    with atomic_write(path) as scratch:
        scratch.write_bytes(film(pictures))


def _painted(rows: Sequence[Images], cell: tuple[int, int], left: int = 0, top: int = 0) -> Image.Image:
    """Returns a white picture with rows of images of a size, below and to the right of a point."""
    (height, width), columns = cell, max(map(len, rows))
    size = left + columns * (width + GAP) - GAP, top + len(rows) * (height + GAP) - GAP
    modes = {_pil(row[0]).mode for row in rows}
    picture = Image.new("L" if modes == {"L"} else "RGB", size, "white")
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            cell_picture = _pil(image).resize((width, height), Image.Resampling.NEAREST)
            picture.paste(cell_picture, (left + j * (width + GAP), top + i * (height + GAP)))
    return picture


def _pil(image: Shaped[AnyArray, "*spatial c"]) -> Image.Image:
    """Returns an image as a PIL image, gray or RGB."""
    values = (as_picture(image) * 255).round().astype(np.uint8)
    return Image.fromarray(values.squeeze(-1) if values.shape[-1] == 1 else values)
