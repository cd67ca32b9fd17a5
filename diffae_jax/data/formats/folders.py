"""Opens a folder. Its files are listed once. Their names and first bytes show the format."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from diffae_jax.data.formats import dicom, files, tiff
from diffae_jax.data.formats.format import Format, OpenedDataset
from diffae_jax.runtime.errors import UserError, shown


def open_folder(root: Path, part: str, image_shape: tuple[int, ...]) -> OpenedDataset:
    """Returns the images below a folder: DICOM, TIFF stacks, or one image or volume per file.

    Raises UserError if there are no images of this rank.
    """
    names = sorted(files.names_below(root))
    if slices := dicom.dicom_names(root, names):
        return _noted(dicom.open_dicom(root, slices, part, image_shape), names, slices)
    if part and not files.has_parts(names, image_shape):
        raise UserError(
            f"{root} has no part {shown(part)}. Only folders of HDF5, Zarr or DICOM have parts. Remove the #."
        )
    if stacks := tiff.stack_names(root, names, image_shape):
        return _noted(tiff.open_stacks(root, stacks, image_shape), names, stacks)
    return files.open_files(root, names, image_shape, part)


def _noted(opened: OpenedDataset, names: Sequence[str], read: Sequence[str]) -> OpenedDataset:
    return dataclasses.replace(opened, notes=[*opened.notes, *files.other_files(names, read)])


FORMAT = Format(lambda path, image_shape: path.is_dir(), open_folder, parts=lambda path: ())
