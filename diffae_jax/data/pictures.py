"""Writes images as PNG and GIF files, and converts them to PIL images."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from diffae_jax.runtime.arrays import AnyArray
from diffae_jax.runtime.files import AnyPath, atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALLEST_GRID = 600  # pixels on the longer side; smaller grids are enlarged


def as_picture(image: Float[AnyArray, "*spatial c"]) -> Float[np.ndarray, "h w c2"]:
    """Converts an image of any rank and number of channels to a picture.

    A volume becomes its middle slice, and a signal becomes a strip. Unless there are 1 or 3
    channels, only the first is used.

    Args:
        image: An image in [-1, 1], [*spatial, C].

    Returns:
        The picture in [0, 1], [height, width, 1 or 3].
    """
    image = np.asarray(image)
    while image.ndim > 3:
        image = image[image.shape[0] // 2]
    if image.ndim == 2:
        image = np.repeat(image[None], max(1, image.shape[0] // 4), axis=0)
    if image.shape[-1] not in (1, 3):
        image = image[..., :1]
    return (np.clip(image, -1, 1) + 1) / 2


def save_rows(path: AnyPath, rows: dict[str, Float[np.ndarray, "n *shape"]], columns: Sequence[str] = ()) -> None:
    """Writes labeled rows of images as one PNG, atomically.

    Args:
        path: The file to write.
        rows: By label, the images of the row in [-1, 1], [n, *shape]. n is the same for all rows.
        columns: A name for each column; by default none.
    """
    num_columns = len(next(iter(rows.values())))
    figure = _figure((1.2 * num_columns + 1.6, 1.2 * len(rows)))
    axes = figure.subplots(len(rows), num_columns, squeeze=False)
    for axis, name in zip(axes[0], columns or [""] * num_columns, strict=True):
        axis.set_title(name)
    for row, (label, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(row, images, strict=True):
            picture = as_picture(image)
            axis.imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(label, rotation=0, ha="right", va="center")
    _save(path, lambda scratch: figure.savefig(scratch, dpi=100))


def save_curves(path: AnyPath, panels: dict[str, dict[str, list[tuple[float, float]]]], xlabel: str) -> None:
    """Writes panels of curves on logarithmic axes as one PNG, atomically.

    Args:
        path: The file to write.
        panels: By label of the vertical axis, the points (x, y) of each curve by its name.
        xlabel: The label of the horizontal axes.
    """
    figure = _figure((5.5 * len(panels), 4.5))
    for axis, (ylabel, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, points in curves.items():
            axis.loglog(*zip(*points, strict=True), marker="o", markersize=4, label=name)
        axis.set(xlabel=xlabel, ylabel=ylabel)
        axis.xaxis.set_major_formatter("{x:g}")  # 40 instead of 4 x 10^1
        axis.xaxis.set_minor_formatter("{x:g}")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    _save(path, lambda scratch: figure.savefig(scratch, dpi=100))


def _figure(size: tuple[float, float]) -> "Figure":
    """Returns an empty figure of a size in inches."""
    # pyplot needs a display, and would change the plots of a notebook
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="compressed")
    FigureCanvasAgg(figure)
    return figure


def to_pil(images: Float[AnyArray, "n *shape"]) -> list[Image.Image]:
    """Converts images to PIL images.

    Args:
        images: Images in [-1, 1], [n, *spatial, C]. `as_picture` converts volumes and signals.

    Returns:
        One gray or RGB PIL image for each image.
    """
    return [_pil(_bytes(as_picture(image))) for image in images]


def image_grid(images: Float[AnyArray, "n *shape"], gap: int = 1) -> Image.Image:
    """Arranges images in the rows of a square grid, as one PIL image.

    Args:
        images: Images in [-1, 1], [n, *spatial, C]. `as_picture` converts volumes and signals.
        gap: The number of white pixels between images.

    Returns:
        The grid, gray or RGB. Cells without an image are white.
    """
    height, width, channels = as_picture(images[0]).shape
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    grid = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        grid[top : top + height, left : left + width] = _bytes(as_picture(image))
    return _pil(grid)


def save_grid(path: AnyPath, images: Float[AnyArray, "n *shape"]) -> None:
    """Writes the `image_grid` of images as a PNG, atomically. A small grid is enlarged.

    Args:
        path: The file to write.
        images: Images in [-1, 1], [n, *spatial, C].
    """
    _save(path, enlarged(image_grid(images)).save)


def enlarged(picture: Image.Image) -> Image.Image:
    """Enlarges a small picture by a whole factor, without interpolation."""
    factor = max(1, SMALLEST_GRID // max(picture.size))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def save_gif(path: AnyPath, frames: Float[AnyArray, "t *shape"], milliseconds: int = 120) -> None:
    """Writes frames as a GIF that loops forever, atomically. Small frames are enlarged.

    Args:
        path: The file to write.
        frames: Images in [-1, 1], [t, *spatial, C].
        milliseconds: The duration of each frame.
    """
    pictures = [enlarged(picture) for picture in to_pil(frames)]
    settings = dict(save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)
    _save(path, lambda scratch: pictures[0].save(scratch, "GIF", **settings))


def _bytes(picture: Float[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
    """Scales a picture from [0, 1] to 0..255."""
    return (picture * 255).round().astype(np.uint8)


def _pil(values: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    """Returns a picture as a PIL image, gray or RGB."""
    return Image.fromarray(values.squeeze(-1) if values.shape[-1] == 1 else values)


def _save(path: AnyPath, write: Callable[[AnyPath], None]) -> None:
    with atomic_write(path) as scratch:
        write(scratch)
