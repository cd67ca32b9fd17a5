"""TIFF files with several pages: each is a picture, or they are the slices of a volume."""

import dataclasses
import functools
import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from diffae_jax.data.formats.files import IMAGE_SUFFIXES, ONE_IMAGE_SUFFIXES, names_and_sizes
from diffae_jax.data.formats.format import Format, OpenedDataset
from diffae_jax.data.sources import check_amount, check_names, check_numbers, each, hash_of, image_errors_as_user_errors
from diffae_jax.data.transforms import check_picture_shape
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.files import has_suffix

TIFF_SUFFIXES, OME_SUFFIXES = (".tif", ".tiff"), (".ome.tif", ".ome.tiff")
DEPTH, UNNAMED = "Z", "IQ"  # axes that may be the depth of a volume, as tifffile names them
CHANNELS = "CS"  # channels of a microscope, and samples of a pixel
MAX_OPEN = 16  # files
WHITE_IS_0, PALETTE = 0, 3  # photometric interpretations


@dataclasses.dataclass(frozen=True)
class Stacks:
    """Pictures or volumes in TIFF files with several pages."""

    root: Path
    ids: Sequence[str]
    places: Sequence[tuple[str, int, int]]  # (file below root, series in it, image in the series)
    image_shape: tuple[int, ...]
    labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns one picture or volume. Raises UserError if the file is damaged."""
        file, series, number = self.places[index]
        path = self.root / file
        with image_errors_as_user_errors(self.name(index)):
            return _stack(path).image(series, number, len(self.image_shape) - 1, self.name(index))

    def name(self, index: int) -> str:
        """Returns the path of the file, and the number of the image in it if it has several."""
        return str(self.root / self.ids[index])

    def overlaps(self, other: "Stacks") -> bool:
        """Returns whether another source reads one of the files."""
        mine, theirs = ({(source.root / name).resolve() for name, _, _ in source.places} for source in (self, other))
        return not mine.isdisjoint(theirs)

    def fingerprint(self) -> str:
        """Returns a hash of the ids, and of the names and sizes of all files."""
        names = dict.fromkeys(name for name, _, _ in self.places)
        return hash_of(*self.ids, *names_and_sizes(self.root, names))


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the images of a series are spread over its pages. Axes are numbered from 0.

    Args:
        shape: The length of each axis of the series.
        axes: The name of each axis, as in TZCYX.
        num_leading: The number of leading axes, which count pages. A page has the other axes.
        spatial: The spatial axes of an image, in order.
    """

    shape: tuple[int, ...]
    axes: str
    num_leading: int
    spatial: tuple[int, ...]

    @classmethod
    def of(cls, series: Any, rank: int, name: str) -> "Layout":
        """Returns the layout of images with `rank` spatial axes. Raises UserError if none fits."""
        axes, num_leading = series.axes, series.ndim - series.keyframe.ndim
        depths = [i for i, axis in enumerate(axes) if axis == DEPTH] or [
            i for i, axis in enumerate(axes) if axis in UNNAMED
        ]
        spatial = (*depths[-1:] * (rank == 3), *(axes.rfind(axis) for axis in "YX"))
        layout = cls(series.shape, axes, num_leading, spatial)
        if len(spatial) != rank or -1 in spatial or any(axis >= num_leading for axis in layout.items):
            raise UserError(
                f"{name} has the axes {axes} of lengths {series.shape}, but --config.image_shape needs {rank} spatial "
                f"axes. Change --config.image_shape, or remove the file."
            )
        return layout

    @property
    def channels(self) -> list[int]:
        """The axes that hold channels."""
        return [i for i, axis in enumerate(self.axes) if axis in CHANNELS]

    @property
    def items(self) -> list[int]:
        """The axes that count images, such as time."""
        return [i for i in range(len(self.axes)) if i not in (*self.spatial, *self.channels)]

    @property
    def count(self) -> int:
        """The number of images."""
        return math.prod(self.shape[axis] for axis in self.items)

    def pages(self, number: int) -> Int[np.ndarray, "*leading"]:
        """Returns the page numbers of an image, by the leading axes that are not in `items`."""
        leading = self.shape[: self.num_leading]
        place = iter(np.unravel_index(number, [self.shape[axis] for axis in self.items]))
        chosen = tuple(next(place) if axis in self.items else slice(None) for axis in range(self.num_leading))
        return np.asarray(np.arange(math.prod(leading)).reshape(leading)[chosen])

    def image(self, pages: Shaped[np.ndarray, "n *page"]) -> Shaped[np.ndarray, "*spatial c"]:
        """Puts the axes of the pages of an image in order."""
        kept = [axis for axis in range(len(self.axes)) if axis not in self.items]
        values = pages.reshape([self.shape[axis] for axis in kept])
        values = values.transpose([kept.index(axis) for axis in (*self.spatial, *self.channels)])
        return values.reshape(*(self.shape[axis] for axis in self.spatial), -1)


class _Stack:
    """An open file. Several threads may read from it."""

    def __init__(self, path: Path):
        import tifffile

        self.path = path
        self.file = tifffile.TiffFile(path, _multifile=False)  # a set of files is not joined
        self.file.filehandle.set_lock(True)
        self.check_complete()
        self.series = self.file.series  # without thumbnails and smaller levels

    def check_complete(self) -> None:
        """Raises UserError if pages or axes are missing at the end: tifffile only logs that."""
        if _lacks_pages(self.file):
            count = len(self.file.pages)
            raise UserError(f"{self.path} is cut off or damaged after {count:,} pages. Repair or remove it.")
        if has_suffix(self.path, OME_SUFFIXES) and not self.file.is_ome:
            raise UserError(f"{self.path} lacks the OME metadata with the order of its axes. Repair or remove it.")

    def places(self, rank: int) -> list[tuple[int, int]]:
        """Returns (series, number in the series) for each image with `rank` spatial axes."""
        counts = [Layout.of(series, rank, str(self.path)).count for series in self.series]
        return [(i, number) for i, count in enumerate(counts) for number in range(count)]

    def image(self, series: int, number: int, rank: int, name: str) -> Shaped[np.ndarray, "*spatial c"]:
        """Reads one image. tifffile may raise any error for a damaged file."""
        layout, dtype = Layout.of(self.series[series], rank, name), self.series[series].dtype
        kept = [length for axis, length in enumerate(layout.shape) if axis not in layout.items]
        check_numbers(dtype, name)
        check_amount(1, kept, name)
        image = layout.image(np.stack([self.page(series, page) for page in layout.pages(number).ravel().tolist()]))
        return image.astype(dtype.newbyteorder("="), copy=False)

    def page(self, series: int, number: int) -> np.ndarray:
        """Reads one page. Raises UserError if it is cut off: tifffile would add zeros."""
        with self.file.filehandle.lock:
            page = self.series[series].pages[number]
            if page is None:
                raise UserError(f"{self.path} lacks page {number:,}, which may be in another file. Join the files.")
            end = max((a + b for a, b in zip(page.dataoffsets, page.databytecounts, strict=True)), default=0)
        if end > self.file.filehandle.size:
            raise UserError(f"{self.path} is cut off in page {number:,}. Repair or remove it.")
        if page.keyframe.photometric == PALETTE:
            raise UserError(f"{self.path} has colors of a palette. Save it with gray or RGB pages.")
        values = page.asarray(lock=self.file.filehandle.lock)
        return ~values if page.keyframe.photometric == WHITE_IS_0 and values.dtype.kind in "bu" else values


def _stack(path: Path) -> _Stack:
    stat = path.stat()
    return _opened(path, stat.st_size, stat.st_mtime_ns, os.getpid())  # processes must not share a position in a file


@functools.lru_cache(MAX_OPEN)
def _opened(path: Path, *identity: int) -> _Stack:
    return _Stack(path)


def _lacks_pages(file: Any) -> bool:
    """Returns whether the last page that can be read refers to another page."""
    len(file.pages)  # visits all of them
    file.filehandle.seek(file.pages.next_page_offset)
    return any(file.filehandle.read(file.tiff.offsetsize))


def is_stack(path: Path) -> bool:
    """Returns whether a TIFF has several pages, or had before damage. False without tifffile."""
    if importlib.util.find_spec("tifffile") is None or not path.is_file():
        return False  # reading it with Pillow then states what is missing
    import tifffile

    try:
        with tifffile.TiffFile(path, _multifile=False) as file:
            return len(file.pages) > 1 or _lacks_pages(file) or file.series[0].ndim > file.pages[0].ndim
    except Exception:  # tifffile raises errors of any type for a damaged file; Pillow will report it
        return False


def stack_names(root: Path, names: Sequence[str], image_shape: tuple[int, ...]) -> list[str]:
    """Returns the TIFF files below a folder if the first of them has several pages.

    Only the first is opened. If other images outnumber the TIFF files, the list is empty.
    """
    found = [name for name in names if has_suffix(name, TIFF_SUFFIXES)]
    others = sum(has_suffix(name, (*IMAGE_SUFFIXES, *ONE_IMAGE_SUFFIXES)) for name in names) - len(found)
    return found if found and len(found) >= others and _is_for_us(root / found[0], image_shape) else []


def _is_for_us(path: Path, image_shape: tuple[int, ...]) -> bool:
    """Returns whether this module reads a TIFF. Pillow reads pictures with a single page."""
    return len(image_shape) == 4 or is_stack(path)


def open_stacks(root: Path, names: Sequence[str], image_shape: tuple[int, ...]) -> OpenedDataset:
    """Opens TIFF files with several pages.

    The id of an image is FILE, or FILE#NUMBER if the file has several images. Raises UserError if
    a file is damaged, has only one page, or has other axes.
    """
    rank = len(image_shape) - 1
    if importlib.util.find_spec("tifffile") is None:
        raise UserError(f'{root / names[0]} needs tifffile: pip install "diffae_jax[tiff]".')
    if rank != 3:
        check_picture_shape(image_shape)
    check_names(names)

    def places(name: str) -> list[tuple[int, int]]:
        path = root / name
        if not is_stack(path) and path != root / names[0]:
            raise UserError(
                f"{path} has one page, but {names[0]} has several. Keep single pages and stacks in separate folders."
            )
        with image_errors_as_user_errors(path):
            return _Stack(path).places(rank)

    items, ids = [], []
    for name, found in zip(names, each(places, names), strict=True):
        items += [(name, *place) for place in found]
        ids += [name] if len(found) == 1 else [f"{name}#{number}" for number in range(len(found))]
    kind = "TIFF volumes" if rank == 3 else "the pages of TIFF files"
    return OpenedDataset(Stacks(root, ids, items, tuple(image_shape)), kind)


FORMAT = Format(
    lambda path, image_shape: path.is_file() and has_suffix(path, TIFF_SUFFIXES) and _is_for_us(path, image_shape),
    lambda path, part, image_shape: open_stacks(path.parent, [path.name], image_shape),
)
