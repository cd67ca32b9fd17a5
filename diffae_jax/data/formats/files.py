"""Files that each hold one image (png, jpg, ...) or one volume (NIfTI, npy, HDF5, Zarr)."""

import dataclasses
import functools
import importlib.util
import io
import itertools
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Shaped

from diffae_jax.data.formats.choose import NAMED_SUFFIXES, read_named
from diffae_jax.data.formats.dicom_pixels import DICOM_SUFFIXES, read_dicom
from diffae_jax.data.formats.format import OpenedDataset
from diffae_jax.data.formats.nifti import NIFTI_SUFFIXES, read_nifti
from diffae_jax.data.formats.npy import open_npy, volume_errors_as_user_errors
from diffae_jax.data.formats.pillow import open_picture
from diffae_jax.data.formats.zarr import SUFFIX as ZARR_SUFFIX
from diffae_jax.data.labels.table import TABLE_SUFFIXES
from diffae_jax.data.sources import (
    Source,
    channels_last,
    check_amount,
    check_names,
    hash_of_all,
    without_cache,
)
from diffae_jax.data.transforms import check_picture_shape, pixels_of
from diffae_jax.runtime.errors import UserError, list_some
from diffae_jax.runtime.files import check_file, file_size, has_suffix

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif")
COLORS = ("RGB", "RGBA", "LA", "RGBX")  # modes of Pillow with one byte per channel
TEXTS = (*TABLE_SUFFIXES, ".md", ".npz")  # often next to images, so notes do not list them
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, ".npy")  # in a folder, each of these files is an image
ONE_IMAGE_SUFFIXES = (*VOLUME_SUFFIXES, *NAMED_SUFFIXES)  # arrays that are read entirely


@dataclasses.dataclass(frozen=True)
class Files:
    """Files with one image or volume each, of any size."""

    root: Path
    ids: Sequence[str]  # paths below root
    image_shape: tuple[int, ...]  # gives the rank and the channels
    array: str = ""  # the name of the images in HDF5 and Zarr; "": the only one that fits
    labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns one image in its original size. Raises UserError if it cannot be read."""
        return read_file(self.name(index), self.image_shape, self.array)

    def path(self, index: int) -> Path:
        """Returns the path of an image."""
        return self.root / self.ids[index]

    def name(self, index: int) -> str:
        """Returns the path of an image, as text."""
        return self._beginning + self.ids[index]

    @cached_property
    def _beginning(self) -> str:
        """The text before an id in the path of an image. Paths would take longer than reading."""
        return _beginning(self.root)

    def __getstate__(self) -> dict[str, Any]:
        return without_cache(self)

    def fingerprint(self) -> str:
        """Returns a hash of names and sizes of all files. A copied folder has the same hash."""
        part = [f"#{self.array}"] if self.array else []
        return hash_of_all(itertools.chain(part, names_and_sizes(self.root, self.ids)))


def read_file(path: Path | str, image_shape: tuple[int, ...], array: str = "") -> np.ndarray:
    """Reads the image or volume in a file, [*spatial, C] in its original size.

    In HDF5 and Zarr, `array` is its name, or "" for the only array that fits. Raises UserError,
    with the path, if the file cannot be read or has the wrong rank.
    """
    if file_size(path) is None and not is_store(path):
        check_file(Path(path))
    if has_suffix(path, ONE_IMAGE_SUFFIXES):
        return channels_last(_values(Path(path), image_shape, array), image_shape, str(path))
    if has_suffix(path, DICOM_SUFFIXES):
        return read_dicom(Path(path), image_shape)
    return read_picture(path, str(path))


def read_picture(file: Path | str | io.BytesIO, name: str) -> Shaped[np.ndarray, "h w c"]:
    """Decodes an image. Its content decides the format. Raises UserError if it cannot be read."""
    with open_picture(file, name) as image:
        if image.format == "TIFF" and image.n_frames > 1:
            _refuse_pages(name, image.n_frames)
        if image.format != "BMP" and image.mode in COLORS and any(";16" in str(tile.args) for tile in image.tile):
            return _deep_color(file, name)
        return pixels_of(image)


def _refuse_pages(name: str, count: int) -> None:
    if importlib.util.find_spec("tifffile") is None:
        raise UserError(f'{name} has {count:,} pages, which need tifffile: pip install "diffae_jax[tiff]".')
    raise UserError(
        f"{name} has {count:,} pages, so it is not one image. Keep single pages and stacks in separate folders, and "
        f"give the path of the stacks."
    )


def _deep_color(file: Path | str | io.BytesIO, name: str) -> Shaped[np.ndarray, "h w c"]:
    """Reads 16-bit colors. Pillow would read only the upper 8 bits."""
    if importlib.util.find_spec("cv2") is None:
        raise UserError(f'{name} has 16-bit colors, which need OpenCV: pip install "diffae_jax[deep-color]".')
    import cv2

    content = np.frombuffer(file.getvalue() if isinstance(file, io.BytesIO) else Path(file).read_bytes(), np.uint8)
    pixels = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3:
        raise UserError(f"{name} cannot be read as an image with 16-bit colors. Repair or remove it.")
    order = (2, 1, 0, 3)[: pixels.shape[-1]]  # OpenCV's order is BGR
    return np.ascontiguousarray(pixels[..., order])


def _values(path: Path, image_shape: tuple[int, ...], array: str) -> np.ndarray:
    with volume_errors_as_user_errors(path):
        if has_suffix(path, NIFTI_SUFFIXES):
            return read_nifti(path, image_shape)
        if has_suffix(path, NAMED_SUFFIXES):
            return read_named(path, array, image_shape)
        mapped = open_npy(path)
        check_amount(1, mapped.shape, str(path))  # before reading
        return np.array(mapped)


def file_paths(source: Source) -> list[Path]:
    """Returns the path of each image if the innermost source reads files, else an empty list."""
    return list(map(Path, file_names(source)))


def file_names(source: Source) -> list[str]:
    """Returns the paths of `file_paths` as text."""
    innermost = source
    while hasattr(innermost, "source"):
        innermost = innermost.source
    return [source.name(i) for i in range(len(source))] if isinstance(innermost, Files) else []


def real_paths(source: Source) -> Iterator[str]:
    """Yields the paths of `file_names` without links. Each folder is resolved once."""
    real_folder = functools.cache(os.path.realpath)
    for path in file_names(source):
        folder, name = os.path.split(path)
        real = f"{real_folder(folder).rstrip('/')}/{name}"
        yield os.path.realpath(path) if os.path.islink(real) else real  # noqa: PTH114, many paths take seconds


def open_files(root: Path, names: Sequence[str], image_shape: tuple[int, ...], array: str = "") -> OpenedDataset:
    """Opens the files below a folder that hold images of this rank.

    Args:
        root: The folder.
        names: The paths of all files below it.
        image_shape: The shape [*spatial, C] to train with.
        array: The name of the images in HDF5 and Zarr. "": the only array of a file that fits.

    Returns:
        The images, and a note on other files.

    Raises:
        UserError: There are no images, or names are not UTF-8.
    """
    ids = _names_of_images(names, image_shape)
    is_pictures = bool(ids) and has_suffix(ids[0], IMAGE_SUFFIXES)
    if is_pictures or (not ids and any(has_suffix(name, IMAGE_SUFFIXES) for name in names)):
        check_picture_shape(image_shape)
    if not ids:
        refuse_without_images(root, names, (*IMAGE_SUFFIXES, *VOLUME_SUFFIXES))
    check_names(ids)
    source = Files(root, ids, tuple(image_shape), array)
    return OpenedDataset(source, f"a folder of {'image files' if is_pictures else 'volumes'}", other_files(names, ids))


def refuse_without_images(path: Path, names: Collection[str], suffixes: Sequence[str] = IMAGE_SUFFIXES) -> NoReturn:
    """Raises the UserError for a folder or an archive that only has files of other types."""
    raise UserError(
        f"{path} holds no image files ({', '.join(suffixes)}), not even in subfolders."
        f"{f' It holds {list_some(names)}.' if names else ''} Check the path."
    )


def has_parts(names: Sequence[str], image_shape: tuple[int, ...]) -> bool:
    """Returns whether the images among these files are named arrays, as in HDF5 and Zarr."""
    ids = _names_of_images(names, image_shape)
    return bool(ids) and has_suffix(ids[0], NAMED_SUFFIXES)


def other_files(names: Iterable[str], read: Collection[str]) -> list[str]:
    """Returns a note on the files in a folder that are not read, except for tables and text."""
    known = set(read)
    others = [name for name in names if name not in known and not has_suffix(name, TEXTS)]
    count = f"{len(others):,} file{'s are' if len(others) != 1 else ' is'}"
    reason = "because the file type differs from that of the images"
    return [f"{count} not read, {reason} ({list_some(others)})."] if others else []


def is_hidden(name: str) -> bool:
    """Returns whether a file in an archive is hidden, or was added by macOS."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _names_of_images(names: Sequence[str], image_shape: tuple[int, ...]) -> list[str]:
    """Returns the names of pictures if `image_shape` is that of pictures, else of volumes."""
    kinds = (IMAGE_SUFFIXES,) * (len(image_shape) == 3) + (VOLUME_SUFFIXES, NAMED_SUFFIXES)
    chosen = ([name for name in names if has_suffix(name, kind)] for kind in kinds)
    return next((ids for ids in chosen if ids), [])


def names_below(root: Path) -> Iterator[str]:
    """Yields the relative paths of all files and Zarr folders below a folder that are not hidden.

    Linked folders come last. Each folder is read once, because links may form a cycle.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        for name, folders, names in os.walk(waiting.pop(0), onerror=_refuse_folder):
            parent = Path(name)
            stat = parent.stat()
            identity = (stat.st_dev, stat.st_ino)
            folders[:] = () if identity in seen else sorted(name for name in folders if not name.startswith("."))
            if identity in seen:
                continue
            seen.add(identity)
            stores = [name for name in folders if has_suffix(name, ZARR_SUFFIX)]
            folders[:] = [name for name in folders if name not in stores]
            waiting += [path for path in map(parent.joinpath, folders) if path.is_symlink()]
            below = "" if parent == root else f"{parent.relative_to(root)}/"
            yield from (below + name for name in (*names, *stores) if not name.startswith("."))


def _refuse_folder(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read ({error.strerror}). Check its permissions.") from error


def is_store(path: Path | str) -> bool:
    """Returns whether a path is a folder of Zarr, which counts as a file."""
    return has_suffix(path, ZARR_SUFFIX) and Path(path).is_dir()


def _beginning(root: Path) -> str:
    return str(root / "x").removesuffix("x")


def names_and_sizes(root: Path, names: Iterable[str]) -> Iterator[str]:
    """Yields the name of each file below a folder, and its size, for a fingerprint."""
    beginning = _beginning(root)
    for name in names:
        yield name
        yield size_of(beginning + name)


def size_of(path: Path | str) -> str:
    """Returns the size of a file or Zarr folder in bytes. Raises UserError if it is missing."""
    size = file_size(path)
    if size is not None:
        return str(size)
    path = Path(path)
    if is_store(path):
        return str(sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))
    check_file(path)
    return str(path.stat().st_size)


def open_file(path: Path, image_shape: tuple[int, ...], array: str = "") -> Files:
    """Returns the image or volume of one file. Raises UserError if its rank is wrong."""
    check_names([path.name])
    if not has_suffix(path, ONE_IMAGE_SUFFIXES):
        check_picture_shape(image_shape)
    return Files(path.parent, [path.name], tuple(image_shape), array)
