"""Checks output paths before the work and writes outputs atomically. Never overwrites an input."""

import collections
import contextlib
import csv
import mimetypes
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from diffae_jax.data.formats.arrays import ArrayFile
from diffae_jax.data.formats.files import file_paths
from diffae_jax.data.formats.huggingface import HuggingFace
from diffae_jax.data.formats.nifti import NIFTI_SUFFIXES, save_nifti
from diffae_jax.data.pictures import check_scale, image_grid, save_film, save_picture, save_rows, to_pil
from diffae_jax.data.sources import TransformedSource, read
from diffae_jax.data.transforms import Transform, to_float
from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.files import atomic_write, has_suffix, os_errors_as_user_errors

NIFTI_OUT = ".nii.gz"
IMAGE_FILES = (".png", ".npy")  # for one or several images
PICTURE_FILES = (".png", ".gif")
MAX_IMAGES_IN_PNG = 1024
# a new folder must not end in these, nor in a suffix that `mimetypes` knows
ARRAYS_AND_TABLES = (".npy", ".npz", ".parquet", ".tsv")


def check_free(out: Path, suffixes: Sequence[str], *, folder: bool = False, overwrite: bool = False) -> bool:
    """Returns whether `out` will be a file with one of the suffixes; otherwise it is a folder.

    A folder may have a dot in its name. Raises UserError if the suffix belongs to an
    unsupported file type, or if the path cannot be written. Unless `overwrite`, it also raises
    UserError if a file or a folder with content exists.
    """
    with os_errors_as_user_errors(out, "written"):
        is_file = out.suffix.lower() in suffixes and not out.is_dir()
        names_file = out.suffix.lower() in ARRAYS_AND_TABLES or mimetypes.guess_type(out.name)[0] is not None
        if not is_file and (not folder or (names_file and not out.is_dir())):
            kinds = [f"a file that ends in {' or '.join(suffixes)}"] * bool(suffixes) + ["a folder"] * folder
            raise UserError(f"The type of {out} is not supported here. Use {' or '.join(kinds)}.")
        if not is_file and out.exists() and not out.is_dir():
            raise UserError(f"{out} exists and is not a folder. Use another path.")
        if not overwrite and out.exists() and (is_file or any(out.iterdir())):
            raise UserError(f"{out} already exists. Use another path or --overwrite.")
        parents = out.absolute().parents
        nearest = out if out.is_dir() else next(path for path in parents if path.exists())
        with tempfile.TemporaryFile(dir=nearest):  # permissions do not reveal a read-only disk
            pass
    return is_file


def check_number(out: Path, num_images: int) -> None:
    """Raises UserError if there are more images than one PNG may hold."""
    if out.suffix.lower() == ".png" and num_images > MAX_IMAGES_IN_PNG:
        raise UserError(
            f"A .png holds at most {MAX_IMAGES_IN_PNG:,} images, not {num_images:,}. Use a folder as --out."
        )


def check_picture(out: Path, is_file: bool, num_images: int, image_shape: tuple[int, ...], scale: int | None) -> None:
    """Raises UserError if a PNG or GIF cannot hold the images, or if another file has a scale."""
    if is_file and out.suffix.lower() != ".npy":
        check_number(out, num_images)
        check_scale(scale, image_shape, num_images)
    elif scale is not None:
        raise UserError(f"--scale is for a .png or a .gif, and {out} is neither. Leave out --scale.")


def check_apart(targets: Iterable[Path], images: TransformedSource) -> None:
    """Raises UserError if one of the files to write is one of the input images."""
    existing = [target for target in targets if target.exists()]
    inputs = {_identity(path) for path in input_files(images)} if existing else set()
    for target in existing:
        if _identity(target) in inputs:
            raise UserError(f"{target} is one of the input images, which are never overwritten. Use another --out.")


def input_files(images: TransformedSource) -> list[Path]:
    """Returns the files that images are read from, or none if they are unknown."""
    if isinstance(images.source, ArrayFile):
        return [images.source.path]
    return images.source.files() if isinstance(images.source, HuggingFace) else file_paths(images)


def _identity(path: Path) -> tuple[int, int]:
    """Returns device and inode, which are equal for all paths to one file."""
    with os_errors_as_user_errors(path):
        stat = path.stat()
    return stat.st_dev, stat.st_ino


def are_pictures(image_shape: tuple[int, ...]) -> bool:
    """Whether a PNG can hold an image of this shape; other images are written as npy."""
    return len(image_shape) == 3 and image_shape[-1] in (1, 3)


def names_of(ids: Sequence[str], image_shape: tuple[int, ...], originals: Sequence[Path] = ()) -> list[str]:
    """Returns a file name for each image: its id with the suffix of the output.

    It is .png for a picture, .nii.gz for a volume from a NIfTI file (of `originals`, one per
    image), and .npy for others. If two names would be equal, the suffix is appended instead of
    replaced. Raises UserError if an id is not a path below the folder.
    """
    outside = [name for name in ids if not Path(name).name or Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:  # ids may come from a file
        raise UserError(
            f"{len(outside):,} ids are not paths below the output folder ({list_some(outside)}). Rename them."
        )
    suffixes = [_suffix_for(path, image_shape) for path in originals or [None] * len(ids)]
    names = [_without_suffix(image_id) + suffix for image_id, suffix in zip(ids, suffixes, strict=True)]
    count = collections.Counter(names)
    both = zip(ids, names, suffixes, strict=True)
    names = [f"{image_id}{suffix}" if count[name] > 1 else name for image_id, name, suffix in both]
    if len(set(names)) < len(names):
        twice = collections.Counter(names).most_common(1)[0][0]
        raise UserError(f"Two images would both be written as {twice}. Rename one of them.")
    return names


def _suffix_for(original: Path | None, image_shape: tuple[int, ...]) -> str:
    if are_pictures(image_shape):
        return ".png"
    is_nifti = original is not None and has_suffix(original, NIFTI_SUFFIXES)
    return NIFTI_OUT if is_nifti and len(image_shape) == 4 else ".npy"


def _without_suffix(name: str) -> str:
    """Removes the suffix of a file. A number after a dot, as in an id of DICOM, is no suffix."""
    path = Path(name.removesuffix(".gz"))
    return str(path if path.suffix[1:].isdigit() else path.with_suffix(""))


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yields a scratch folder. Its files move to `folder` on success and are removed on errors."""
    with os_errors_as_user_errors(folder, "written"):
        folder = folder.absolute()
        folder.parent.mkdir(parents=True, exist_ok=True)
        same_disk = folder if folder.is_dir() else folder.parent  # so that files can be renamed
        with tempfile.TemporaryDirectory(prefix=".diffae.", dir=same_disk) as scratch:
            new = Path(scratch) / "new"
            new.mkdir()
            yield new
            if not folder.exists():
                new.rename(folder)
                return
            for parent, _, names in os.walk(new):
                target = folder / Path(parent).relative_to(new)
                target.mkdir(parents=True, exist_ok=True)
                for name in names:
                    (Path(parent) / name).replace(target / name)


def write_images(
    folder: Path,
    names: Sequence[str],
    images: Float[np.ndarray, "n *shape"],
    transform: Transform,
    originals: Sequence[Path] = (),
) -> None:
    """Writes images in [-1, 1] to these names in a folder, as PNG, npy or NIfTI.

    A PNG holds the image pixel for pixel. An npy holds the values [*spatial, C] in the range of
    the data; a PNG next to it shows a part, such as a slice. A NIfTI file holds the same values,
    placed in the world as the volume in the file of `originals`, one per image.
    """
    with atomic_folder(folder) as new:
        for i, (name, image, picture) in enumerate(zip(names, transform.restored(images), to_pil(images), strict=True)):
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            kind = next(suffix for suffix in (NIFTI_OUT, ".npy", ".png") if name.endswith(suffix))
            picture.save(path.with_name(path.name.removesuffix(kind) + ".png"))
            if kind == NIFTI_OUT:
                save_nifti(path, image, originals[i])
            elif kind == ".npy":
                np.save(path, image)


def write_image_file(out: Path, images: Float[np.ndarray, "n *shape"], transform: Transform, scale: int | None) -> None:
    """Writes images in [-1, 1] to one npy or PNG file.

    An npy holds the values [N, *spatial, C] in the range of the data. A PNG holds one image pixel
    for pixel, or several in a grid. A scale enlarges both.
    """
    with os_errors_as_user_errors(out, "written"):
        if out.suffix.lower() == ".npy":
            with atomic_write(out) as scratch:
                np.save(scratch, transform.restored(images))
        else:
            save_picture(out, image_grid(images, scale or (1 if len(images) == 1 else None)))


def write_rows(
    out: Path, images: TransformedSource, columns: dict[str, Float[np.ndarray, "n *shape"]], scale: int | None
) -> None:
    """Writes a PNG with a row for each image: the input, and what each named column has of it."""
    columns = {"input": to_float(read(images, range(len(images)))), **columns}
    rows = {name: np.stack(row) for name, *row in zip(images.ids, *columns.values(), strict=True)}
    with os_errors_as_user_errors(out, "written"):
        save_rows(out, rows, list(columns), scale)


def write_sweep(
    out: Path,
    images: TransformedSource,
    probe: str,
    strengths: Sequence[float],
    edited: Float[np.ndarray, "n strengths *shape"],
    scale: int | None,
) -> None:
    """Writes edits of several strengths: as columns of a PNG, or as frames of a GIF."""
    by_strength = np.moveaxis(edited, 1, 0)
    if out.suffix.lower() == ".png":
        columns = {f"{probe}\n{strength:+g}": each for strength, each in zip(strengths, by_strength, strict=True)}
        write_rows(out, images, columns, scale)
        return
    with os_errors_as_user_errors(out, "written"):
        save_film(out, [image_grid(each, scale) for each in by_strength])


def write_table(out: Path, rows: Iterable[Sequence[object]]) -> None:
    """Writes rows as a CSV. The first row has the names of the columns."""
    with os_errors_as_user_errors(out, "written"), atomic_write(out) as scratch, scratch.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write(
    out: Path,
    is_file: bool,
    names: list[str],
    images: Float[np.ndarray, "n *shape"],
    transform: Transform,
    originals: Sequence[Path] = (),
    scale: int | None = None,
) -> None:
    """Writes images to one file, or as `write_images` to a folder, and prints the path."""
    if is_file:
        write_image_file(out, images, transform, scale)
    else:
        write_images(out, names, images, transform, originals)
    print(f"{len(images):,} images: {shown(str(out))}")
