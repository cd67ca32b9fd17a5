"""NIfTI files: volumes or pictures with canonical axes.

As in NiBabel, canonical axes point to the right, the front and the top of the body (RAS+).
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from diffae_jax.data.sources import check_amount
from diffae_jax.data.transforms import covering_box
from diffae_jax.runtime.errors import UserError

NIFTI_SUFFIXES = (".nii", ".nii.gz")
MOST_CHANNELS = 16  # in the fourth axis; more are time points


def read_nifti(path: Path, image_shape: tuple[int, ...]) -> Shaped[np.ndarray, "*any"]:
    """Reads the values of a file, [*spatial] or [*spatial, C] with canonical axes.

    An axis of length 1 is removed if `image_shape` has two spatial axes. Raises UserError for a
    fourth axis that is not the channels. NiBabel may raise any error for a damaged file.
    """
    from nibabel.orientations import apply_orientation

    image, orientation = _opened(path)
    check_amount(1, image.shape, str(path))  # before unpacking
    values = np.asanyarray(image.dataobj)
    values = apply_orientation(values.reshape(values.shape + (1,) * (3 - values.ndim)), orientation)
    if values.ndim == 5 and values.shape[3] == 1:  # vectors are in the fifth axis
        values = values[:, :, :, 0]
    rank, channels = len(image_shape) - 1, image_shape[-1]
    if values.ndim == 4 and rank == 3 and values.shape[3] not in (1, channels):
        _refuse_series(path, values.shape[3], channels)
    if image.ndim < 3 or rank == 2:
        values = _without_depth(values)
    return values.astype(np.float32) if values.dtype.kind == "f" else np.array(values)


def nifti_shape(path: Path) -> tuple[int, ...]:
    """Returns the shape [*spatial, C] of a file from its header. Pictures have two spatial axes.

    Raises UserError for a series of many volumes.
    """
    image, orientation = _opened(path)
    size = _canonical_size(image, orientation)
    channels = image.shape[-1] if image.ndim > 3 else 1
    if channels > MOST_CHANNELS:
        _refuse_series(path, channels, 1)
    if 1 in size:
        size.remove(1)
    return *size, channels


def save_nifti(path: Path, image: Shaped[np.ndarray, "x y z c"], original: Path) -> None:
    """Writes a volume that was scaled and cropped from the one in the file `original`.

    Its affine maps the center of each voxel to the same place in the world as in `original`.
    """
    import nibabel

    read, orientation = _opened(original)
    size = _canonical_size(read, orientation)
    canonical = read.affine @ nibabel.orientations.inv_ornt_aff(orientation, _padded(read.shape)[:3])
    starts, stops = map(np.array, covering_box(size, image.shape[:-1]))
    scale = (stops - starts) / image.shape[:-1]
    # voxel i covers [i, i + 1] on the axes of the box, so its center is at i + 0.5
    within = nibabel.affines.from_matvec(np.diag(scale), starts + scale / 2 - 0.5)
    written = nibabel.Nifti1Image(image[..., 0] if image.shape[-1] == 1 else image, canonical @ within)
    header = read.header
    code = int(header["sform_code"]) or int(header["qform_code"]) or "aligned"
    written.set_sform(written.affine, code)
    written.set_qform(written.affine, code)
    units = header.get_xyzt_units()[0]
    written.header.set_xyzt_units(xyz=units if units != "unknown" else None)
    nibabel.save(written, path)


def _opened(path: Path) -> tuple[Any, np.ndarray]:
    """Returns the unread image of a file, and the orientation of its three spatial axes."""
    if importlib.util.find_spec("nibabel") is None:
        raise UserError(f'{path} needs NiBabel: pip install "diffae_jax[nifti]".')
    import nibabel

    image = nibabel.load(path)
    if not hasattr(image, "affine"):  # of CIFTI
        raise UserError(f"{path} holds a {type(image).__name__}, not a volume or picture. Remove it.")
    return image, nibabel.orientations.io_orientation(image.affine)


def _padded(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape + (1,) * (3 - len(shape))


def _canonical_size(image: Any, orientation: np.ndarray) -> list[int]:
    shape = _padded(image.shape)
    return [shape[axis] for axis in np.argsort(orientation[:, 0])]


def _without_depth(values: np.ndarray) -> np.ndarray:
    """Removes the last spatial axis of length 1, if any."""
    axes = [axis for axis in range(3) if values.shape[axis] == 1]
    return values.squeeze(axes[-1]) if axes else values


def _refuse_series(path: Path, count: int, channels: int) -> None:
    fix = f", or set the channels of --config.image_shape to {count}" if count <= MOST_CHANNELS else ""
    raise UserError(
        f"{path} has {count:,} volumes (points in time or channels), not {channels}. Save each volume as a file{fix}."
    )
