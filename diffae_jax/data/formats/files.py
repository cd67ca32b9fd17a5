"""A folder of files, each an image (png, jpg, webp, bmp, tif) or a volume (NIfTI, npy)."""

import contextlib
import dataclasses
import importlib.util
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from diffae_jax.data.sources import Source, channels_last, check_names, hash_of, told_image
from diffae_jax.data.transforms import check_picture_shape, pixels_of
from diffae_jax.errors import UserError, name_some, shown

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
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
        sizes = (str(self.path(index).stat().st_size) for index in range(len(self)))
        return hash_of(*(text for pair in zip(self.ids, sizes, strict=True) for text in pair))


def read_file(path: Path, image_shape: tuple[int, ...]) -> np.ndarray:
    """Returns the image or volume that a file holds, [*spatial, C] in its own size.

    Raises UserError, with the path, for a file that cannot be read or is of another rank.
    """
    if has_suffix(path, VOLUME_SUFFIXES):
        return channels_last(_volume(path), image_shape, str(path))
    with told_image(path), Image.open(path) as image:
        return pixels_of(image)


def _volume(path: Path) -> np.ndarray:
    if not has_suffix(path, NIFTI_SUFFIXES):
        with told_volume(path):
            return np.array(np.load(path, mmap_mode="r", allow_pickle=False))  # mapped: its size is checked first
    if importlib.util.find_spec("nibabel") is None:
        raise UserError(f'{path} needs NiBabel: pip install "diffae_jax[nifti]".')
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    with told_volume(path, ImageFileError, HeaderDataError):
        volume = nibabel.as_closest_canonical(nibabel.load(path))  # so that all look the same way
        values = np.asanyarray(volume.dataobj)
    return values.astype(np.float32) if values.dtype.kind == "f" else values


@contextlib.contextmanager
def told_volume(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """Turns what readers of arrays say of a damaged file, these errors too, into a UserError with its name."""
    try:
        yield
    except (
        OSError,
        ValueError,
        EOFError,
        TypeError,
        KeyError,
        MemoryError,
        OverflowError,
        zlib.error,
        *errors,
    ) as error:
        raise UserError(f"{path} cannot be read as an array ({shown(str(error))}): repair or remove it.") from error


def file_paths(source: Source) -> list[Path]:
    """Returns the file of each image of a source that reads files, through whatever was made of it; else nothing."""
    innermost = source
    while hasattr(innermost, "source"):
        innermost = innermost.source
    return [Path(source.name(i)) for i in range(len(source))] if isinstance(innermost, Files) else []


def has_suffix(path: Path | str, suffixes: tuple[str, ...]) -> bool:
    """Whether a path ends so, in whatever case."""
    return str(path).lower().endswith(suffixes)


def open_folder(root: Path, image_shape: tuple[int, ...]) -> tuple[Files, list[str]]:
    """Returns the files below a folder that hold images of that rank, and a note on others that were left out.

    Raises UserError where there are none, and for names that are not UTF-8.
    """
    names = sorted(
        str((Path(parent) / name).relative_to(root))
        for parent, _, names in os.walk(root)
        for name in names
        if has_suffix(name, (*IMAGE_SUFFIXES, *VOLUME_SUFFIXES))
        and "/." not in f"/{(Path(parent) / name).relative_to(root)}"
    )
    pictures = [name for name in names if has_suffix(name, IMAGE_SUFFIXES)]
    volumes = [name for name in names if has_suffix(name, VOLUME_SUFFIXES)]
    ids, others = (pictures, volumes) if pictures and len(image_shape) == 3 else (volumes, pictures)
    if not ids and others:
        check_picture_shape(image_shape)
    if not ids:
        kinds = ", ".join((*IMAGE_SUFFIXES, *VOLUME_SUFFIXES))
        raise UserError(f"{root} holds no image files ({kinds}), nor do the folders in it.")
    if ids is pictures:
        check_picture_shape(image_shape)
    check_names(ids)
    left_out = f"{len(others):,} files of another kind are not read ({name_some(others)})."
    return Files(root, ids, tuple(image_shape)), [left_out] if others else []


def open_file(path: Path, image_shape: tuple[int, ...]) -> Files:
    """Returns the image or volume of one file. Raises UserError where its rank is another."""
    check_names([path.name])
    if not has_suffix(path, VOLUME_SUFFIXES):
        check_picture_shape(image_shape)
    return Files(path.parent, [path.name], tuple(image_shape))
