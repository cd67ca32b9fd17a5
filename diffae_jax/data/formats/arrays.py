"""Files that hold all images as one array, which stays on the disk: npy, npz and HDF5."""

import contextlib
import dataclasses
import importlib.util
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffae_jax.data.formats.files import told_volume
from diffae_jax.data.sources import channels_last, check_numbers, hash_of_samples, without_cache
from diffae_jax.errors import UserError, name_some, shown
from diffae_jax.files import check_file

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")
SUFFIXES = (".npy", ".npz", *HDF5_SUFFIXES)
IDS = ("ids", "id", "names", "filenames", "file_names")  # of an array beside the images
MAX_LABEL_ROWS = 10_000_000


@dataclasses.dataclass(frozen=True)
class ArrayFile:
    """The rows of one array in a file."""

    path: Path
    array: str  # its name in the file; of an npy ""
    image_shape: tuple[int, ...]  # tells where the channels are
    ids: Sequence[str]
    labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @cached_property
    def _rows(self) -> Any:
        return arrays_of(self.path)[self.array]

    def __getstate__(self) -> dict[str, Any]:
        return without_cache(self)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns one image. Raises UserError where the file is damaged there."""
        with told_volume(self.path):
            image = np.asarray(self._rows[index])
        return channels_last(image, self.image_shape, self.name(index))

    def name(self, index: int) -> str:
        """Returns the file and the number of an image."""
        return f"Image {index} of {self.path}"

    def fingerprint(self) -> str:
        """Returns a hash of some images, the number of all, and the name of the array."""
        return hash_of_samples(self, self.array)


def open_arrays(path: Path, array: str, image_shape: tuple[int, ...]) -> tuple[ArrayFile, list[str]]:
    """Returns the images of an array file and what was inferred: which array they are, which are labels and ids.

    Where no array is named, it is the only one of as many axes as images have, or images and channels. Raises
    UserError where there is none, or more than one.
    """
    check_file(path)
    with told_volume(path):
        found = arrays_of(path)
        rank = len(image_shape)
        fitting = {name: a for name, a in found.items() if a.ndim in (rank, rank + 1) and a.dtype.kind in "buif"}
        name = array or _only(path, found, fitting, image_shape)
        if name not in found:
            raise UserError(f"{path} has no array {shown(name)}; it has {name_some(found)}.")
        images = found[name]
        _check_images(path, name, images, image_shape)
        group = name.rpartition("/")[0]
        beside = {  # in the same group, by their names there
            key.rpartition("/")[2]: a
            for key, a in found.items()
            if key.rpartition("/")[0] == group and a.ndim == 1 and len(a) == len(images) <= MAX_LABEL_ROWS
        }
        ids_name = next((key for key in beside if key.lower() in IDS and beside[key].dtype.kind in "SUOiu"), None)
        labels = {key: _label(np.asarray(a)) for key, a in beside.items() if key != ids_name and _is_label(a)}
        ids = _texts(beside[ids_name]) if ids_name else list(map(str, range(len(images))))
    if len(set(ids)) < len(ids):
        raise UserError(f"{path} has the same id twice in {shown(ids_name)}: give each image one of its own.")
    notes = [f"The images are its array {shown(name)}."] if len(found) > 1 else []
    return ArrayFile(path, name, tuple(image_shape), ids, labels), notes


def arrays_of(path: Path) -> dict[str, Any]:
    """Returns the arrays of a file by name, none of which is in memory where that can be avoided."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return {"": np.load(path, mmap_mode="r", allow_pickle=False)}
    return _npz(path) if suffix == ".npz" else _hdf5(path)


def _only(path: Path, found: Mapping[str, Any], fitting: Mapping[str, Any], image_shape: tuple[int, ...]) -> str:
    if len(fitting) == 1:
        return next(iter(fitting))
    exact = [name for name, a in fitting.items() if a.shape[1:] in (image_shape, image_shape[:-1])]
    if len(exact) == 1:
        return exact[0]
    if fitting:
        raise UserError(
            f"{path} has {len(fitting)} arrays that may be the images ({name_some(fitting)}): name one, as in "
            f"{path}#{sorted(fitting)[0]}."
        )
    shapes = name_some(f"{name or 'its array'} of {a.shape} and {a.dtype}" for name, a in found.items())
    raise UserError(
        f"{path} has no array of images of {len(image_shape) - 1} axes with channels, as "
        f"--config.image_shape={image_shape} asks for; it has {shapes}."
    )


def _check_images(path: Path, name: str, images: Any, image_shape: tuple[int, ...]) -> None:
    where = f"The array {shown(name)} of {path}" if name else str(path)
    if not images.ndim or not len(images):
        raise UserError(f"{where} holds no images: its shape is {images.shape}.")
    check_numbers(images.dtype, where)
    channels_last(np.empty(images.shape[1:], images.dtype) if math.prod(images.shape[1:]) < 2**30 else images[0],
                  image_shape, f"Each image of {where}")  # fmt: skip


def _is_label(array: Any) -> bool:
    return array.dtype.kind in "buifSUO"


def _label(values: np.ndarray) -> np.ndarray:
    """Returns labels as a table has them: int64, float64, or text as objects."""
    if values.dtype.kind in "SUO":
        return np.array(_texts(values), object)
    return values.astype(np.float64 if values.dtype.kind == "f" else np.int64)


def _texts(values: Any) -> list[str]:
    return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in np.asarray(values).tolist()]


def _npz(path: Path) -> dict[str, Any]:
    """Returns the arrays of an npz: those that np.savez wrote are mapped, compressed ones read where memory allows."""
    with told_zip(path), zipfile.ZipFile(path) as archive:
        infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        odd = [info.filename for info in infos if ".." in Path(info.filename).parts or info.filename.startswith("/")]
        if odd:
            raise UserError(f"{path} has entries that lead out of it ({name_some(odd)}): it is not read.")
        return {info.filename.removesuffix(".npy"): _entry(path, archive, info) for info in infos}


def _entry(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(file)
        start = file.tell()
    if dtype.hasobject:
        raise UserError(f"{path} has Python objects in {shown(info.filename)}: save it as an array of numbers or text.")
    order = "F" if fortran_order else "C"
    if info.compress_type == zipfile.ZIP_STORED:
        with path.open("rb") as file:  # an entry begins behind its own header, of 30 bytes, a name and extra fields
            file.seek(info.header_offset + 26)
            lengths = np.frombuffer(file.read(4), "<u2")
        offset = info.header_offset + 30 + int(lengths.sum()) + start
        return np.memmap(path, dtype, "r", offset, shape, order)
    size, limit = math.prod(shape) * dtype.itemsize, memory() // 2
    if size > limit:
        raise UserError(
            f"{path} would take {size / 2**30:,.1f} GiB of memory, more than half of what there is: save it with "
            f"np.savez, not compressed, so that it can stay on the disk."
        )
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


@contextlib.contextmanager
def told_zip(path: Path):
    """Turns what zipfile says of a damaged archive into a UserError with its name."""
    try:
        yield
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read as an npz ({shown(str(error))}): it is damaged or none.") from error


def memory() -> int:
    """Returns the memory of the machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _hdf5(path: Path) -> dict[str, Any]:
    if importlib.util.find_spec("h5py") is None:
        raise UserError(f'{path} needs h5py: pip install "diffae_jax[hdf5]".')
    import h5py

    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            found[name] = item

    h5py.File(path, "r").visititems(visit)
    return found
