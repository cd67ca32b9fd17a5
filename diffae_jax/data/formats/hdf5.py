"""Arrays in HDF5 files."""

import importlib.util
from pathlib import Path
from typing import Any

from diffae_jax.runtime.errors import UserError, shown

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")


def open_hdf5(path: Path) -> dict[str, Any]:
    """Returns the data sets of a file by name, without reading them. Links are not followed.

    Raises UserError if h5py is missing. h5py may raise any error for a damaged file.
    """
    if importlib.util.find_spec("h5py") is None:
        raise UserError(f'{path} needs h5py: pip install "diffae_jax[hdf5]".')
    import h5py

    datasets: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            datasets[name] = item

    h5py.File(path, "r", locking="best-effort").visititems(visit)  # some shared disks have no locks
    return datasets


def check_dataset(path: Path, name: str, dataset: Any) -> None:
    """Raises UserError if the values are not in the file."""
    where = f"{path}#{shown(name)}"
    if dataset.is_virtual or dataset.external:
        raise UserError(f"{where} is stored in other files, which are not read. Copy it into one file with h5repack.")
    if dataset.size and not dataset.id.get_storage_size():
        raise UserError(f"{where} has shape {dataset.shape}, but no values were written to it. Write the file again.")
