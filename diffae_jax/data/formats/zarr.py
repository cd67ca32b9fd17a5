"""Arrays in Zarr stores: a folder, or a zip with the content of one."""

import importlib.util
from pathlib import Path
from typing import Any

from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.files import has_suffix

SUFFIX, ZIP_SUFFIX = ".zarr", ".zarr.zip"
METADATA = ("zarr.json", ".zarray", ".zgroup")  # each folder of a store has one of them; version 3, then 2


def is_zarr(path: Path) -> bool:
    """Returns whether an existing path is a Zarr store."""
    if path.is_dir():
        return has_suffix(path, SUFFIX) or any((path / name).exists() for name in METADATA)
    return has_suffix(path, ZIP_SUFFIX)


def open_zarr(path: Path) -> dict[str, Any]:
    """Returns the arrays of a store by name, without reading them. A single array is named "".

    Raises UserError if zarr is missing. zarr may raise any error for a damaged store.
    """
    if importlib.util.find_spec("zarr") is None:
        raise UserError(f'{path} needs zarr: pip install "diffae_jax[zarr]".')
    import zarr

    store = zarr.storage.LocalStore(path, read_only=True) if path.is_dir() else zarr.storage.ZipStore(path, mode="r")
    top = zarr.open(store, mode="r", path="" if path.is_dir() else _folder_in_zip(path))
    if isinstance(top, zarr.Array):
        return {"": top}
    members = top.members(max_depth=None)
    return {
        name: member for name, member in sorted(members, key=lambda item: item[0]) if isinstance(member, zarr.Array)
    }


def _folder_in_zip(path: Path) -> str:
    """Returns the folder of a zip that holds the store: the top, or the only folder there."""
    import zipfile

    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    is_at_top = any(name in names for name in METADATA)
    return "" if is_at_top or len(tops) != 1 else tops.pop()


def check_array(where: str, array: Any) -> list[str]:
    """Returns a note if some chunks are not in the store. Raises UserError if none are.

    zarr reads such chunks as the fill value, and does not write chunks that hold only this value.
    """
    count, written = array.nchunks, array.nchunks_initialized
    if array.size and not written:
        raise UserError(f"{where} has shape {array.shape}, but no values were written to it. Write the store again.")
    if written >= count:
        return []
    return [
        f"{count - written:,} of {count:,} chunks are not in the store and are read as {shown(str(array.fill_value))}. "
        f"This is an error only if the store is incomplete."
    ]
