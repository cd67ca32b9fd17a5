"""A folder of files, each an image (png, jpg, webp, bmp, tif) or a volume (NIfTI, npy)."""

import dataclasses
import importlib.util
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped
from PIL import Image

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
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # not EPS: to read it is to run a program
COLORS = ("RGB", "RGBA", "LA", "RGBX")  # modes of Pillow with one byte a channel
TEXTS = (".csv", ".tsv", ".txt", ".parquet", ".json", ".md", ".npz")  # which beside images are no images
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, ".npy")


@dataclasses.dataclass(frozen=True)
class Files:
    """Files of any size, an image or a volume each."""

    root: Path
    ids: Sequence[str]  # paths below root
    image_shape: tuple[int, ...]  # tells rank and channels
    labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns one image in its own size. Raises UserError with the path of a file that cannot be read."""
        return read_file(self.path(index), self.image_shape)

    def path(self, index: int) -> Path:
        """Returns where an image is."""
        return self.root / self.ids[index]

    def name(self, index: int) -> str:
        """Returns the path of an image."""
        return str(self.path(index))

    def fingerprint(self) -> str:
        """Returns a hash of the names and sizes of all files: a copy of a folder has that of the folder."""
        return hash_of(*(text for i, name in enumerate(self.ids) for text in (name, _size(self.path(i)))))


def read_file(path: Path, image_shape: tuple[int, ...]) -> np.ndarray:
    """Returns the image or volume that a file holds, [*spatial, C] in its own size.

    Raises UserError, with the path, for a file that cannot be read or is of another rank.
    """
    check_file(path)
    if has_suffix(path, VOLUME_SUFFIXES):
        return channels_last(_volume(path), image_shape, str(path))
    return read_picture(path, str(path))


def read_picture(file: Path | io.BytesIO, name: str) -> Shaped[np.ndarray, "h w c"]:
    """Returns the pixels of an encoded image, whatever its name says it is. Raises UserError where it is none."""
    with image_errors_as_user_errors(name), Image.open(file, formats=FORMATS) as image:
        if image.format == "TIFF" and image.n_frames > 1:
            raise UserError(f"{name} has {image.n_frames:,} pages: save each by itself, or all of them as an npy.")
        if image.mode in COLORS and any(";16" in str(tile.args) for tile in image.tile):
            return _deep_color(file, name)
        return pixels_of(image)


def _deep_color(file: Path | io.BytesIO, name: str) -> Shaped[np.ndarray, "h w c"]:
    """Returns colors of 16 bits, of which Pillow would read the upper 8."""
    if importlib.util.find_spec("cv2") is None:
        raise UserError(f'{name} has colors of 16 bits, which need OpenCV: pip install "diffae_jax[deep-color]".')
    import cv2

    content = np.frombuffer(file.getvalue() if isinstance(file, io.BytesIO) else file.read_bytes(), np.uint8)
    pixels = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3:
        raise UserError(f"{name} cannot be read as an image (its colors of 16 bits): repair or remove it.")
    order = (2, 1, 0, 3)[: pixels.shape[-1]]  # OpenCV has blue first
    return np.ascontiguousarray(pixels[..., order])


def _volume(path: Path) -> np.ndarray:
    with volume_errors_as_user_errors(path):
        if has_suffix(path, NIFTI_SUFFIXES):
            return _nifti(path)
        mapped = open_npy(path)
        check_amount(1, mapped.shape, str(path))  # before it is read
        return np.array(mapped)


def _nifti(path: Path) -> np.ndarray:
    if importlib.util.find_spec("nibabel") is None:
        raise UserError(f'{path} needs NiBabel: pip install "diffae_jax[nifti]".')
    import nibabel

    volume = nibabel.load(path)
    check_amount(1, volume.shape, str(path))  # before anything is unpacked
    values = np.asanyarray(nibabel.as_closest_canonical(volume).dataobj)  # so that all look the same way
    return values.astype(np.float32) if values.dtype.kind == "f" else np.array(values)


def file_paths(source: Source) -> list[Path]:
    """Returns the file of each image of a source that reads files, through whatever was made of it; else nothing."""
    innermost = source
    while hasattr(innermost, "source"):
        innermost = innermost.source
    return [Path(source.name(i)) for i in range(len(source))] if isinstance(innermost, Files) else []


def has_suffix(path: Path | str, suffixes: str | tuple[str, ...]) -> bool:
    """Whether a path ends so, in whatever case."""
    return str(path).lower().endswith(suffixes)


def open_folder(root: Path, image_shape: tuple[int, ...]) -> tuple[Files, list[str]]:
    """Returns the files below a folder that hold images of that rank, and a note on others that were left out.

    Raises UserError where there are none, and for names that are not UTF-8.
    """
    names = sorted(_names_below(root))
    pictures = [name for name in names if has_suffix(name, IMAGE_SUFFIXES)]
    volumes = [name for name in names if has_suffix(name, VOLUME_SUFFIXES)]
    ids = pictures if pictures and len(image_shape) == 3 else volumes
    if ids is pictures or (pictures and not ids):
        check_picture_shape(image_shape)
    if not ids:
        kinds = ", ".join((*IMAGE_SUFFIXES, *VOLUME_SUFFIXES))
        raise UserError(
            f"{root} holds no image files ({kinds}), nor do the folders in it"
            f"{f'; it holds {list_some(names)}' if names else ''}."
        )
    check_names(ids)
    known = set(ids)
    others = [name for name in names if name not in known and not has_suffix(name, TEXTS)]
    left_out = f"{len(others):,} files of another kind are not read ({list_some(others)})."
    return Files(root, ids, tuple(image_shape)), [left_out] if others else []


def _names_below(root: Path) -> Iterator[str]:
    """Yields the paths of all files below a folder that are not hidden, relative to it.

    Folders that links lead to are read, too, after the others and each once: links may lead in a circle.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        for name, folders, names in os.walk(waiting.pop(0), onerror=_refuse_folder):
            parent = Path(name)
            stat = parent.stat()
            place = (stat.st_dev, stat.st_ino)
            folders[:] = () if place in seen else sorted(name for name in folders if not name.startswith("."))
            if place in seen:
                continue
            seen.add(place)
            waiting += [path for path in map(parent.joinpath, folders) if path.is_symlink()]
            below = "" if parent == root else f"{parent.relative_to(root)}/"
            yield from (below + name for name in names if not name.startswith("."))


def _refuse_folder(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read ({error.strerror}): its images would be missing.") from error


def _size(path: Path) -> str:
    check_file(path)
    return str(path.stat().st_size)


def open_file(path: Path, image_shape: tuple[int, ...]) -> Files:
    """Returns the image or volume of one file. Raises UserError where its rank is another."""
    check_names([path.name])
    if not has_suffix(path, VOLUME_SUFFIXES):
        check_picture_shape(image_shape)
    return Files(path.parent, [path.name], tuple(image_shape))
