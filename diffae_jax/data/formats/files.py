"""A folder of files, each an image (png, jpg, webp, bmp, tif, gif) or a volume (NIfTI, npy)."""

import dataclasses
import importlib.util
import io
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from diffae_jax.data.formats.format import Format, OpenedDataset
from diffae_jax.data.formats.npy import open_npy, volume_errors_as_user_errors
from diffae_jax.data.sources import (
    Source,
    channels_last,
    check_amount,
    check_names,
    hash_of,
    image_errors_as_user_errors,
)
from diffae_jax.data.transforms import check_picture_shape, pixels_of
from diffae_jax.runtime.errors import UserError, list_some
from diffae_jax.runtime.files import check_file

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # not EPS, which runs Ghostscript
COLORS = ("RGB", "RGBA", "LA", "RGBX")  # modes of Pillow with one byte per channel
TEXTS = (".csv", ".tsv", ".txt", ".parquet", ".json", ".md", ".npz")  # often next to images; not reported
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, ".npy")


@dataclasses.dataclass(frozen=True)
class Files:
    """Files with one image or volume each, of any size."""

    root: Path
    ids: Sequence[str]  # paths below root
    image_shape: tuple[int, ...]  # gives the rank and the channels
    labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns one image in its original size. Raises UserError if it cannot be read."""
        return read_file(self.path(index), self.image_shape)

    def path(self, index: int) -> Path:
        """Returns the path of an image."""
        return self.root / self.ids[index]

    def name(self, index: int) -> str:
        """Returns the path of an image, as text."""
        return str(self.path(index))

    def fingerprint(self) -> str:
        """Returns a hash of the names and sizes of all files. A copied folder has the same."""
        return hash_of(*(text for i, name in enumerate(self.ids) for text in (name, _size(self.path(i)))))


def read_file(path: Path, image_shape: tuple[int, ...]) -> np.ndarray:
    """Reads the image or volume in a file, [*spatial, C] in its original size.

    Raises UserError, with the path, if the file cannot be read or has the wrong rank.
    """
    check_file(path)
    if has_suffix(path, VOLUME_SUFFIXES):
        return channels_last(_volume(path), image_shape, str(path))
    return read_picture(path, str(path))


def read_picture(file: Path | io.BytesIO, name: str) -> Shaped[np.ndarray, "h w c"]:
    """Decodes an image. Its content decides the format. Raises UserError if it cannot be read."""
    with image_errors_as_user_errors(name), Image.open(file, formats=FORMATS) as image:
        if image.format == "TIFF" and image.n_frames > 1:
            raise UserError(f"{name} has {image.n_frames:,} pages: save each page as a file, or all pages as an npy.")
        if image.mode in COLORS and any(";16" in str(tile.args) for tile in image.tile):
            return _deep_color(file, name)
        return pixels_of(image)


def _deep_color(file: Path | io.BytesIO, name: str) -> Shaped[np.ndarray, "h w c"]:
    """Reads colors of 16 bit. Pillow would only read the upper 8 bit."""
    if importlib.util.find_spec("cv2") is None:
        raise UserError(f'{name} has 16-bit colors, which need OpenCV: pip install "diffae_jax[deep-color]".')
    import cv2

    content = np.frombuffer(file.getvalue() if isinstance(file, io.BytesIO) else file.read_bytes(), np.uint8)
    pixels = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3:
        raise UserError(f"{name} cannot be read as an image with 16-bit colors: repair or remove it.")
    order = (2, 1, 0, 3)[: pixels.shape[-1]]  # OpenCV's order is BGR
    return np.ascontiguousarray(pixels[..., order])


def _volume(path: Path) -> np.ndarray:
    with volume_errors_as_user_errors(path):
        if has_suffix(path, NIFTI_SUFFIXES):
            return _nifti(path)
        mapped = open_npy(path)
        check_amount(1, mapped.shape, str(path))  # before reading
        return np.array(mapped)


def _nifti(path: Path) -> np.ndarray:
    if importlib.util.find_spec("nibabel") is None:
        raise UserError(f'{path} needs NiBabel: pip install "diffae_jax[nifti]".')
    import nibabel

    volume = nibabel.load(path)
    check_amount(1, volume.shape, str(path))  # before unpacking
    values = np.asanyarray(nibabel.as_closest_canonical(volume).dataobj)  # the same orientation for all
    return values.astype(np.float32) if values.dtype.kind == "f" else np.array(values)


def file_paths(source: Source) -> list[Path]:
    """Returns the path of each image if the innermost source reads files, else an empty list."""
    innermost = source
    while hasattr(innermost, "source"):
        innermost = innermost.source
    return [Path(source.name(i)) for i in range(len(source))] if isinstance(innermost, Files) else []


def has_suffix(path: Path | str, suffixes: str | tuple[str, ...]) -> bool:
    """Returns whether a path has one of these suffixes, in upper or lower case."""
    return str(path).lower().endswith(suffixes)


def open_folder(root: Path, image_shape: tuple[int, ...]) -> OpenedDataset:
    """Returns the files below a folder that hold images of this rank, and notes on other files.

    Raises UserError if there are none, or for names that are not UTF-8.
    """
    names = sorted(_names_below(root))
    pictures = [name for name in names if has_suffix(name, IMAGE_SUFFIXES)]
    volumes = [name for name in names if has_suffix(name, VOLUME_SUFFIXES)]
    ids = pictures if pictures and len(image_shape) == 3 else volumes
    if ids is pictures or (pictures and not ids):
        check_picture_shape(image_shape)
    if not ids:
        refuse_without_images(root, names, (*IMAGE_SUFFIXES, *VOLUME_SUFFIXES))
    check_names(ids)
    known = set(ids)
    kind = f"a folder of {'volumes' if ids is volumes else 'image files'}"
    notes = note_on_others([name for name in names if name not in known])
    return OpenedDataset(Files(root, ids, tuple(image_shape)), kind, notes)


def refuse_without_images(path: Path, names: Collection[str], suffixes: Sequence[str] = IMAGE_SUFFIXES) -> NoReturn:
    """Raises the UserError for a folder or an archive that only has files of other types."""
    raise UserError(
        f"{path} holds no image files ({', '.join(suffixes)}), neither directly nor in subfolders."
        f"{f' It holds {list_some(names)}.' if names else ''}"
    )


def note_on_others(names: Iterable[str]) -> list[str]:
    """Returns a sentence on files that are not read. Tables and texts are not reported."""
    others = [name for name in names if not has_suffix(name, TEXTS)]
    count = f"{len(others):,} file{'s are' if len(others) != 1 else ' is'}"
    return [f"{count} not read, because the type differs ({list_some(others)})."] if others else []


def is_hidden(name: str) -> bool:
    """Returns whether a file in an archive is hidden, or was added by macOS."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _names_below(root: Path) -> Iterator[str]:
    """Yields the relative paths of all files below a folder that are not hidden.

    Linked folders come last. Each folder is read once, as links may form a cycle.
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
            waiting += [path for path in map(parent.joinpath, folders) if path.is_symlink()]
            below = "" if parent == root else f"{parent.relative_to(root)}/"
            yield from (below + name for name in names if not name.startswith("."))


def _refuse_folder(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read ({error.strerror}): check its permissions.") from error


def _size(path: Path) -> str:
    check_file(path)
    return str(path.stat().st_size)


def open_file(path: Path, image_shape: tuple[int, ...]) -> Files:
    """Returns the image or volume of one file. Raises UserError if its rank is wrong."""
    check_names([path.name])
    if not has_suffix(path, VOLUME_SUFFIXES):
        check_picture_shape(image_shape)
    return Files(path.parent, [path.name], tuple(image_shape))


FOLDER = Format(lambda path, image_shape: path.is_dir(), lambda path, part, image_shape: open_folder(path, image_shape))
