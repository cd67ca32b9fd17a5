"""What the shell writes: checked before the work begins, there whole or not at all, and never over an input."""

import collections
import contextlib
import csv
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from diffae_jax.data.formats.arrays import ArrayFile
from diffae_jax.data.formats.files import file_paths
from diffae_jax.data.pictures import save_grid, to_pil
from diffae_jax.data.sources import TransformedSource
from diffae_jax.data.transforms import Transform
from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.files import atomic_write, os_errors_as_user_errors

IMAGE_FILES = (".png", ".npy")  # that hold one image or several
MOST_IN_PICTURE = 1024  # images in the rows of one
SUFFIXES_OF_FILES = (
    ".csv",
    ".gif",
    ".jpeg",
    ".jpg",
    ".npy",
    ".npz",
    ".parquet",
    ".png",
    ".tsv",
    ".webp",
)  # never of a folder


def check_free(out: Path, suffixes: Sequence[str], *, folder: bool = False, overwrite: bool = False) -> bool:
    """Whether `out` is to be a file; a folder otherwise, where one is allowed.

    A folder may have a dot in its name. Raises UserError for the suffix of another kind of file, for a place that
    cannot be written and, unless `overwrite`, for one that is taken by a file or a folder that holds anything.
    """
    with os_errors_as_user_errors(out, "written"):
        is_file = out.suffix.lower() in suffixes and not out.is_dir()
        if not is_file and (not folder or (out.suffix.lower() in SUFFIXES_OF_FILES and not out.is_dir())):
            kinds = [f"a file that ends in {' or '.join(suffixes)}"] * bool(suffixes) + ["a folder"] * folder
            raise UserError(f"{out} cannot be written: give {' or '.join(kinds)}.")
        if not is_file and out.exists() and not out.is_dir():
            raise UserError(f"{out} is there and is no folder: give another.")
        if not overwrite and out.exists() and (is_file or any(out.iterdir())):
            raise UserError(f"{out} is there already: give another path, or --overwrite.")
        above = out.absolute().parents
        nearest = out if out.is_dir() else next(path for path in above if path.exists())
        with tempfile.TemporaryFile(dir=nearest):  # rights alone tell little: of a disk that can only be read, say
            pass
    return is_file


def check_number(out: Path, num_images: int) -> None:
    """Raises UserError for more images than one picture may hold."""
    if out.suffix.lower() == ".png" and num_images > MOST_IN_PICTURE:
        raise UserError(f"A .png holds at most {MOST_IN_PICTURE:,} images, not {num_images:,}: give a folder as --out.")


def check_apart(targets: Iterable[Path], images: TransformedSource) -> None:
    """Raises UserError where one of the files to write is one of the images."""
    taken = [target for target in targets if target.exists()]
    inputs = {_file(path) for path in input_files(images)} if taken else set()
    for target in taken:
        if _file(target) in inputs:
            raise UserError(f"{target} is one of the images to read, which are never overwritten: give another --out.")


def input_files(images: TransformedSource) -> list[Path]:
    """Returns the files that images are read from, where that is known."""
    return [images.source.path] if isinstance(images.source, ArrayFile) else file_paths(images)


def _file(path: Path) -> tuple[int, int]:
    """What tells a file from another, whatever its names."""
    with os_errors_as_user_errors(path):
        stat = path.stat()
    return stat.st_dev, stat.st_ino


def are_pictures(image_shape: tuple[int, ...]) -> bool:
    """Whether a PNG holds such images whole; of others it shows a part, and their values go to an npy."""
    return len(image_shape) == 3 and image_shape[-1] in (1, 3)


def names_of(ids: Sequence[str], image_shape: tuple[int, ...]) -> list[str]:
    """Returns the name of a file for each image: its own with the suffix .png, or .npy where they are no pictures.

    Where two would be one, the suffix comes behind the whole name. Raises UserError for ids that lead elsewhere.
    """
    suffix = ".png" if are_pictures(image_shape) else ".npy"
    outside = [name for name in ids if not Path(name).name or Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:  # ids that a file supplied
        raise UserError(
            f"{len(outside):,} ids are no names in the folder to write ({list_some(outside)}): rename them."
        )
    names = [str(Path(name.removesuffix(".gz")).with_suffix(suffix)) for name in ids]
    count = collections.Counter(names)
    names = [f"{own}{suffix}" if count[name] > 1 else name for own, name in zip(ids, names, strict=True)]
    if len(set(names)) < len(names):
        twice = collections.Counter(names).most_common(1)[0][0]
        raise UserError(f"Two of the images would both be written as {twice}: rename one of them.")
    return names


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yields a scratch folder whose files come to lie in `folder` when all went well, and are gone otherwise."""
    with os_errors_as_user_errors(folder, "written"):
        folder = folder.absolute()
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = folder if folder.is_dir() else folder.parent
        with tempfile.TemporaryDirectory(prefix=".diffae.", dir=beside) as scratch:
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
    folder: Path, names: Sequence[str], images: Float[np.ndarray, "n *shape"], transform: Transform
) -> None:
    """Writes images in [-1, 1] under these names below a folder: as PNG, pixel for pixel, or as npy.

    An npy holds the values of the data [*spatial, C], and a PNG beside it shows a part: a slice, say.
    """
    with atomic_folder(folder) as new:
        for name, image, picture in zip(names, transform.restored(images), to_pil(images), strict=True):
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path.with_suffix(".png"))
            if path.suffix == ".npy":
                np.save(path, image)


def write_image_file(out: Path, images: Float[np.ndarray, "n *shape"], transform: Transform) -> None:
    """Writes images as one file: an npy of the values of the data [N, *spatial, C], or a PNG.

    A PNG holds one image pixel for pixel, and several in rows.
    """
    with os_errors_as_user_errors(out, "written"):
        if out.suffix.lower() == ".npy":
            with atomic_write(out) as scratch:
                np.save(scratch, transform.restored(images))
        elif len(images) > 1:
            save_grid(out, images)
        else:
            with atomic_write(out) as scratch:
                to_pil(images)[0].save(scratch)


def write_table(out: Path, rows: Iterable[Sequence[object]]) -> None:
    """Writes rows, the names of the columns first, as a CSV."""
    with os_errors_as_user_errors(out, "written"), atomic_write(out) as scratch, scratch.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write(
    out: Path, is_file: bool, names: list[str], images: Float[np.ndarray, "n *shape"], transform: Transform
) -> None:
    """Writes images as one file, or each under its name below a folder; says where."""
    if is_file:
        write_image_file(out, images, transform)
    else:
        write_images(out, names, images, transform)
    print(f"{len(images):,} images: {shown(str(out))}")
