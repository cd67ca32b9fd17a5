"""Files that hold all images as one array, which stays on the disk: npy, npz and HDF5."""

import dataclasses
import re
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffae_jax.data.formats.hdf5 import check_dataset, open_hdf5
from diffae_jax.data.formats.npy import Packed, open_npy, open_npz, volume_errors_as_user_errors
from diffae_jax.data.sources import (
    channels_last,
    check_amount,
    check_names,
    check_numbers,
    hash_of_sample_images,
    without_cache,
)
from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.files import check_file

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")
SUFFIXES = (".npy", ".npz", *HDF5_SUFFIXES)
IDS = ("ids", "id", "names", "filenames", "file_names")  # of an array beside the images
SPLIT_WORD = re.compile(r"(?:^|_)(train|training|val|valid|validation|test)(?=_|$)", re.IGNORECASE)
MANY_IN_CHUNK = 16  # images: reading takes so many times as long
MAX_TEXT = 4096  # bytes of a label or id

_opening = threading.Lock()  # or each thread would unpack the array


@dataclasses.dataclass(frozen=True)
class ArrayFile:
    """The rows of one array in a file."""

    path: Path
    array: str  # its name in the file; of an npy ""
    image_shape: tuple[int, ...]  # tells where the channels are
    ids: Sequence[str]
    labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @cached_property
    def _opened(self) -> Any:
        found = arrays_of(self.path)[self.array]
        return found.array() if isinstance(found, Packed) else found

    def __getstate__(self) -> dict[str, Any]:
        return without_cache(self)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns one image. Raises UserError where the file is damaged there."""
        with volume_errors_as_user_errors(self.name(index)):
            with _opening:
                rows = self._opened
            image = np.asarray(rows[index])
        return channels_last(image, self.image_shape, self.name(index))

    def name(self, index: int) -> str:
        """Returns the file and the number of an image."""
        return f"Image {index} of {self.path}"

    def overlaps(self, other: "ArrayFile") -> bool:
        """Whether another has the same images."""
        return (self.path.resolve(), self.array) == (other.path.resolve(), other.array)

    def fingerprint(self) -> str:
        """Returns a hash of some images, the number of all, and the name of the array."""
        return hash_of_sample_images(self, self.array)


def open_arrays(path: Path, array: str, image_shape: tuple[int, ...]) -> tuple[ArrayFile, list[str]]:
    """Returns the images of an array file and what was inferred: which array they are, which are labels and ids.

    Where no array is named, it is the only one of as many axes as images have, or images and channels. Raises
    UserError where there is none, or more than one.
    """
    check_file(path)
    with volume_errors_as_user_errors(path):
        found = arrays_of(path)
        name = array or _only(path, found, image_shape)
        if name not in found:
            have = f"it has {list_some(found)}" if "" not in found else "an npy is a single array"
            raise UserError(f"{path} has no array {shown(name)}; {have}.")
        images = found[name]
        _check_images(path, name, images, image_shape)
        beside = _beside(found, name)
        ids_name = next((key for key in beside if key.lower() in IDS and beside[key].dtype.kind in "SUOiu"), None)
        labels = {key: _label(_values(a)) for key, a in beside.items() if key != ids_name}
        ids = _texts(_values(beside[ids_name])) if ids_name else list(map(str, range(len(images))))
    check_names(ids)
    if len(set(ids)) < len(ids):
        raise UserError(f"{path} has the same id twice in {shown(ids_name)}: give each image one of its own.")
    notes = [f"The images are its array {shown(name)}."] if len(found) > 1 else []
    together = (getattr(images, "chunks", None) or (1,))[0]
    if together > MANY_IN_CHUNK:
        notes.append(
            f"Its chunks hold {together:,} images each, all of which are unpacked for one: h5repack with chunks of one "
            f"image makes reading faster."
        )
    return ArrayFile(path, name, tuple(image_shape), ids, labels), notes


def arrays_of(path: Path) -> dict[str, Any]:
    """Returns the arrays of a file by name, unread: mapped or packed ones of numpy, or data sets of HDF5."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return {"": open_npy(path)}
    return dict(open_npz(path) if suffix == ".npz" else open_hdf5(path))


def _values(array: Any) -> np.ndarray:
    return (array.array() if isinstance(array, Packed) else np.asarray(array)).reshape(-1)


def _only(path: Path, found: Mapping[str, Any], image_shape: tuple[int, ...]) -> str:
    rank, (*spatial, channels) = len(image_shape), image_shape
    fitting = {name: a for name, a in found.items() if a.ndim in (rank, rank + 1) and a.dtype.kind in "buif"}
    if len(fitting) == 1:
        return next(iter(fitting))
    sizes = [tuple(image_shape), (channels, *spatial)] + ([tuple(spatial)] if channels == 1 else [])
    exact = [name for name, a in fitting.items() if tuple(a.shape[1:]) in sizes]
    if len(exact) == 1:
        return exact[0]
    if fitting:
        raise UserError(
            f"{path} has {len(fitting)} arrays that may be the images ({list_some(fitting)}): name one, as in "
            f"{path}#{sorted(exact or fitting)[0]}."
        )
    shapes = list_some(f"{name or 'its array'} of {a.shape} and {a.dtype}" for name, a in found.items())
    raise UserError(
        f"{path} has no array of images of {rank - 1} axes with channels, as --config.image_shape={image_shape} asks "
        f"for; it has {shapes or 'none'}."
    )


def _check_images(path: Path, name: str, images: Any, image_shape: tuple[int, ...]) -> None:
    where = f"The array {shown(name)} of {path}" if name else str(path)
    if not images.ndim or not len(images):
        raise UserError(f"{where} holds no images: its shape is {images.shape}.")
    check_numbers(images.dtype, where)
    check_amount(len(images), images.shape[1:], where)
    like_one = np.broadcast_to(np.zeros((), images.dtype.newbyteorder("=")), images.shape[1:])  # takes no memory
    channels_last(like_one, image_shape, f"Each image of {where}")
    if path.suffix.lower() in HDF5_SUFFIXES:
        check_dataset(path, name, images)


def _beside(found: Mapping[str, Any], images: str) -> dict[str, Any]:
    """Returns the arrays of one value an image in the group of the images, by their names there.

    The word that tells the split of the images is taken from names, so that labels of both splits are called the same.
    """
    group, _, name = images.rpartition("/")
    split, count = _split_of(name), len(found[images])
    columns = {}
    for key, array in found.items():
        its_group, _, its_name = key.rpartition("/")
        is_of_images = its_group == group and key != images and _split_of(its_name) in ("", split)
        if is_of_images and _is_column(array) and len(array) == count:
            columns[SPLIT_WORD.sub("", its_name).strip("_") or its_name if split else its_name] = array
    return columns


def _split_of(name: str) -> str:
    words = SPLIT_WORD.findall(name)
    return words[-1].lower() if words else ""


def _is_column(array: Any) -> bool:
    if array.ndim not in (1, 2) or array.shape[1:] not in ((), (1,)) or array.dtype.itemsize > MAX_TEXT:
        return False
    if isinstance(array, np.memmap | Packed):
        return array.dtype.kind in "buifSU"
    is_elsewhere = array.is_virtual or array.external
    return not is_elsewhere and (array.dtype.kind in "buifS" or _is_text(array.dtype))


def _is_text(dtype: np.dtype) -> bool:
    import h5py

    return h5py.check_string_dtype(dtype) is not None


def _label(values: np.ndarray) -> np.ndarray:
    """Returns labels as a table has them: int64, float64, or text as objects."""
    if values.dtype.kind in "SUO":
        return np.array(_texts(values, "replace"), object)
    return values.astype(np.float64 if values.dtype.kind == "f" else np.int64)


def _texts(values: np.ndarray, errors: str = "strict") -> list[str]:
    return [value.decode("utf-8", errors) if isinstance(value, bytes) else str(value) for value in values.tolist()]
