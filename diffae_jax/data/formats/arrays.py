"""Files that hold all images as one array, read from disk on access: npy, npz, HDF5 and Zarr."""

import dataclasses
import re
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffae_jax.data.formats.choose import NAMED_SUFFIXES, only_fitting
from diffae_jax.data.formats.files import open_file
from diffae_jax.data.formats.format import Format, OpenedDataset
from diffae_jax.data.formats.hdf5 import HDF5_SUFFIXES, check_dataset, open_hdf5
from diffae_jax.data.formats.npy import Packed, open_npy, open_npz, volume_errors_as_user_errors
from diffae_jax.data.formats.zarr import check_array, is_zarr, open_zarr
from diffae_jax.data.sources import (
    channels_last,
    check_amount,
    check_names,
    check_numbers,
    hash_of_sample_images,
    without_cache,
)
from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.files import check_file, has_suffix

SUFFIXES = (".npy", ".npz", *HDF5_SUFFIXES)
IDS = ("ids", "id", "names", "filenames", "file_names")  # names of an array of ids
SPLIT_WORD = re.compile(r"(?:^|_)(train|training|val|valid|validation|test)(?=_|$)", re.IGNORECASE)
MANY_IN_CHUNK = 16  # images; reading one of them then takes 16 times as long
MAX_TEXT = 4096  # bytes in a label or id
_RECHUNK = ("Use h5repack", "Write the store again")  # the advice for HDF5 and for Zarr

_opening = threading.Lock()  # lets only one thread unpack the array


@dataclasses.dataclass(frozen=True)
class ArrayFile:
    """An array in a file. Each row is an image."""

    path: Path
    array: str  # the name in the file; "" for an npy
    image_shape: tuple[int, ...]  # shows which axis holds the channels
    ids: Sequence[str]
    labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @cached_property
    def _opened(self) -> Any:
        array = arrays_of(self.path)[self.array]
        return array.array() if isinstance(array, Packed) else array

    def __getstate__(self) -> dict[str, Any]:
        return without_cache(self)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns one image. Raises UserError if the file is damaged."""
        with volume_errors_as_user_errors(self.name(index)):
            with _opening:
                rows = self._opened
            image = np.asarray(rows[index])
        return channels_last(image, self.image_shape, self.name(index))

    def name(self, index: int) -> str:
        """Returns the file and the index of an image."""
        return f"Image {index} of {self.path}"

    def overlaps(self, other: "ArrayFile") -> bool:
        """Returns whether another source reads the same array."""
        return (self.path.resolve(), self.array) == (other.path.resolve(), other.array)

    def fingerprint(self) -> str:
        """Returns a hash of a sample of the images, their number, and the name of the array."""
        return hash_of_sample_images(self, self.array)


def open_arrays(path: Path, array: str, image_shape: tuple[int, ...]) -> OpenedDataset:
    """Returns the images of an array file, with labels and ids from its other arrays, and notes.

    If `array` is "", the images are the only array that fits `image_shape`. Raises UserError if
    there is no such array, or more than one.
    """
    if not path.is_dir():
        check_file(path)
    with volume_errors_as_user_errors(path):
        arrays = arrays_of(path)
        if _is_one_volume(path, arrays, array, image_shape):
            return OpenedDataset(open_file(path, image_shape, array), "one file")
        name = array or only_fitting(path, arrays, image_shape, str(path), rows=True)
        if name not in arrays:
            kind = "An npy file" if path.is_file() else "This store"
            available = f"It has {list_some(arrays)}" if "" not in arrays else f"{kind} is a single array. Remove the #"
            raise UserError(f"{path} has no array {shown(name)}. {available}.")
        images = arrays[name]
        missing = _check_images(path, name, images, image_shape)
        columns = _columns_of(arrays, name)
        ids_name = next((key for key in columns if key.lower() in IDS and columns[key].dtype.kind in "SUOTiu"), None)
        labels = {key: _label(_values(a)) for key, a in columns.items() if key != ids_name}
        ids = _texts(_values(columns[ids_name])) if ids_name else list(map(str, range(_length(images))))
    check_names(ids)
    if len(set(ids)) < len(ids):
        raise UserError(f"{path} has the same id twice in {shown(ids_name)}. Give each image a unique id.")
    notes = [*missing, *[f"The images are the array {shown(name)} of the file."] * (len(arrays) > 1)]
    images_in_chunk = (getattr(images, "chunks", None) or (1,))[0]
    if images_in_chunk > MANY_IN_CHUNK:
        notes.append(
            f"Reading is slow: each chunk of the file holds {images_in_chunk:,} images, all of which are unpacked to "
            f"read one. {_RECHUNK[is_zarr(path)]} to store one image per chunk."
        )
    source = ArrayFile(path, name, tuple(image_shape), ids, labels)
    kind = "a Zarr store" if is_zarr(path) else f"an array file ({path.suffix.lower()})"
    return OpenedDataset(source, kind, notes)


def arrays_of(path: Path) -> dict[str, Any]:
    """Returns the arrays of a file by name, without reading them."""
    suffix = path.suffix.lower()
    if is_zarr(path):
        return open_zarr(path)
    if suffix == ".npy":
        return {"": open_npy(path)}
    return dict(open_npz(path) if suffix == ".npz" else open_hdf5(path))


def read_columns(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Reads a file of labels: an array of ids, and the arrays of the same length in its group.

    Returns the name of the ids and the columns by name. The ids are text. Raises UserError if
    there is no array of ids, or more than one.
    """
    with volume_errors_as_user_errors(path):
        arrays = arrays_of(path)
        found = [name for name, array in arrays.items() if _is_of_ids(name.rpartition("/")[2], array)]
        if len(found) != 1:
            raise UserError(
                f"{path} has {len(found)} arrays of image names ({list_some(found) or list_some(arrays)}). Store "
                f"one, called ids, and labels as arrays of the same length."
            )
        labels = {name: _label(_values(array)) for name, array in _columns_of(arrays, found[0]).items()}
        return IDS[0], {IDS[0]: np.array(_texts(_values(arrays[found[0]])), object), **labels}


def _is_of_ids(name: str, array: Any) -> bool:
    name = SPLIT_WORD.sub("", name).strip("_").lower()
    return name in IDS and _is_column(array) and array.dtype.kind in "SUOiu"


def _is_one_volume(path: Path, arrays: Mapping[str, Any], array: str, image_shape: tuple[int, ...]) -> bool:
    """Returns whether an HDF5 file or Zarr folder holds one volume instead of rows of images.

    An array with two axes never counts as one picture, because it may hold flattened pictures.
    """
    considered = [arrays[array]] if array in arrays else arrays.values()
    ranks = {found.ndim for found in considered if found.dtype.kind in "buif"}
    is_volume = len(image_shape) == 4 and 3 in ranks and ranks.isdisjoint({4, 5})
    return has_suffix(path, NAMED_SUFFIXES) and is_volume


def _length(array: Any) -> int:
    return len(array) if hasattr(array, "__len__") else array.shape[0]  # arrays of Zarr have no length


def _values(array: Any) -> np.ndarray:
    values = (array.array() if isinstance(array, Packed) else np.asarray(array)).reshape(-1)
    return values.astype(object) if values.dtype.kind == "T" else values


def _check_images(path: Path, name: str, images: Any, image_shape: tuple[int, ...]) -> list[str]:
    """Raises UserError unless an array holds images. Returns notes on missing values."""
    where = f"{path}#{shown(name)}" if name else str(path)
    if not images.ndim or not _length(images):
        raise UserError(f"{where} holds no images. Its shape is {images.shape}. Check the path.")
    check_numbers(images.dtype, where)
    check_amount(_length(images), images.shape[1:], where)
    example = np.broadcast_to(np.zeros((), images.dtype.newbyteorder("=")), images.shape[1:])  # takes no memory
    channels_last(example, image_shape, f"Each image of {where}")
    if path.suffix.lower() in HDF5_SUFFIXES:
        check_dataset(path, name, images)
    return check_array(where, images) if is_zarr(path) else []


def _columns_of(arrays: Mapping[str, Any], images: str) -> dict[str, Any]:
    """Returns the arrays with one value per image that are in the same group as the images.

    Names lose a word for a split, such as train, so that labels have the same name in both splits.
    """
    group, _, name = images.rpartition("/")
    split, count = _split_of(name), _length(arrays[images])
    columns = {}
    for key, array in arrays.items():
        column_group, _, column = key.rpartition("/")
        is_of_images = column_group == group and key != images and _split_of(column) in ("", split)
        if is_of_images and _is_column(array) and _length(array) == count:
            columns[SPLIT_WORD.sub("", column).strip("_") or column if split else column] = array
    return columns


def _split_of(name: str) -> str:
    words = SPLIT_WORD.findall(name)
    return words[-1].lower() if words else ""


def _is_column(array: Any) -> bool:
    if array.ndim not in (1, 2) or array.shape[1:] not in ((), (1,)) or array.dtype.itemsize > MAX_TEXT:
        return False
    if isinstance(array, np.memmap | Packed):
        return array.dtype.kind in "buifSU"
    if not hasattr(array, "is_virtual"):  # an array of Zarr
        return array.dtype.kind in "buifSUT"
    is_in_other_file = array.is_virtual or array.external
    return not is_in_other_file and (array.dtype.kind in "buifS" or _is_text(array.dtype))


def _is_text(dtype: np.dtype) -> bool:
    import h5py

    return h5py.check_string_dtype(dtype) is not None


def _label(values: np.ndarray) -> np.ndarray:
    """Converts labels to int64, float64, or text as objects."""
    if values.dtype.kind in "SUO":
        return np.array(_texts(values, "replace"), object)
    return values.astype(np.float64 if values.dtype.kind == "f" else np.int64)


def _texts(values: np.ndarray, errors: str = "strict") -> list[str]:
    return [value.decode("utf-8", errors) if isinstance(value, bytes) else str(value) for value in values.tolist()]


def holds_arrays(path: Path) -> bool:
    """Returns whether an existing path is an array file or a Zarr store."""
    return is_zarr(path) or (has_suffix(path, SUFFIXES) and path.is_file())


def _is_array_file(path: Path, image_shape: tuple[int, ...]) -> bool:
    return holds_arrays(path) and not _is_one_image(path, image_shape)


def _is_one_image(path: Path, image_shape: tuple[int, ...]) -> bool:
    """Returns whether an npy holds one image. An array of several images has one more axis.

    The channel axis may be missing.
    """
    if path.suffix.lower() != ".npy":
        return False
    shape = open_npy(path).shape
    has_channels = len(shape) == len(image_shape) and image_shape[-1] == shape[-1] > 1
    return len(shape) < len(image_shape) or shape == image_shape or has_channels


FORMAT = Format(_is_array_file, open_arrays, parts=arrays_of)
