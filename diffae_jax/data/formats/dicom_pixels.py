"""Reads the pixels of one DICOM file, in the units of its modality or through its window."""

import copy
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from diffae_jax.data.sources import check_amount, image_errors_as_user_errors
from diffae_jax.runtime.errors import UserError

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
OF_FRAMES = ("PixelValueTransformationSequence", "FrameVOILUTSequence")  # settings in multi-frame files
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
NOT_WINDOWED = 1e9  # beyond every window
JPEG_12_BIT = "1.2.840.10008.1.2.4.51"  # Pillow decodes only 8 bits of it


def read_dicom(path: Path, image_shape: tuple[int, ...]) -> Shaped[np.ndarray, "*spatial c"]:
    """Reads the picture, or the volume whose slices are frames, in a DICOM file.

    Raises UserError if the file is damaged, or if a picture has several frames.
    """
    _, frames = read_frames(path)
    if len(image_shape) == 4:
        return frames
    if len(frames) > 1:
        raise UserError(
            f"{path} has {len(frames):,} frames, so it cannot be read as one image. Save each frame as a file."
        )
    return frames[0]


def read_header(path: Path, *, with_pixels: bool = False) -> Any:
    """Reads the tags of a file. pydicom may raise any error for a damaged file.

    Raises UserError if pydicom is missing or if the file is not DICOM.
    """
    check_pydicom(path)
    import pydicom

    header = pydicom.dcmread(path, stop_before_pixels=not with_pixels, force=True)  # old files have no preamble
    if "Rows" not in header and "SOPClassUID" not in header:
        raise UserError(f"{path} cannot be read as DICOM. Repair or remove it.")
    return header


def check_pydicom(path: Path) -> None:
    """Raises UserError if pydicom is missing."""
    if importlib.util.find_spec("pydicom") is None:
        raise UserError(f'{path} needs pydicom: pip install "diffae_jax[dicom]".')


def read_frames(
    path: Path, frame: int | None = None, *, window: bool = False
) -> tuple[Any, Shaped[np.ndarray, "frames h w c"]]:
    """Reads the frames of a file. Bright areas have high values, even if the file inverts them.

    Args:
        path: The file.
        frame: The number of the only frame to read. None: all frames.
        window: Whether gray values go through the window of the file (VOI LUT), to uint8.
            Otherwise they have the units of the modality, such as Hounsfield units.

    Returns:
        The header, and the frames: RGB or gray.

    Raises:
        UserError: The file is damaged, needs a missing library, or has no window.
    """
    with image_errors_as_user_errors(path):
        return _read_frames(path, frame, window)


def _read_frames(path: Path, frame: int | None, window: bool) -> tuple[Any, np.ndarray]:
    from pydicom.pixels import pixel_array

    header = read_header(path, with_pixels=frame is None)
    if "Rows" not in header:
        raise UserError(f"{path} is DICOM data without an image. Remove it.")
    count = num_frames(header) if frame is None else 1
    check_amount(1, (count, header.Rows, header.Columns, header.get("SamplesPerPixel", 1)), str(path))
    syntax = header.file_meta.TransferSyntaxUID = _syntax(header, path)
    try:  # for one frame, only its bytes are read
        stored = pixel_array(header) if frame is None else pixel_array(path, index=frame, transfer_syntax_uid=syntax)
    except RuntimeError as error:  # all installed plugins failed
        raise UserError(f"{path} cannot be decoded. Repair it, or try {_plugins(syntax)}.") from error
    for name in PIXELS:  # saves memory: a volume keeps the headers of all slices until it is complete
        header.pop(name, None)
    stored = stored.reshape(count, header.Rows, header.Columns, -1)
    numbers = range(count) if frame is None else [frame]
    frames = [_values(pixels, _settings(header, i), path, window) for pixels, i in zip(stored, numbers, strict=True)]
    return header, np.stack(frames)


def num_frames(header: Any) -> int:
    """Returns the number of frames in a file."""
    return int(header.get("NumberOfFrames") or 1)


def _syntax(header: Any, path: Path) -> str:
    """Returns how the pixels are encoded. Raises UserError if no installed library decodes it."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None:  # in old files
        return ImplicitVRLittleEndian if header.original_encoding[0] else ExplicitVRLittleEndian
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise UserError(f"{path} is compressed as {syntax.name}, which pydicom cannot read. Convert it.") from error
    is_deep = syntax == JPEG_12_BIT and header.BitsStored > 8
    if not decoder.is_available or (is_deep and decoder.available_plugins == ("pillow",)):
        raise UserError(f"{path} is compressed as {syntax.name}, which needs a plugin of pydicom: {_plugins(syntax)}.")
    return syntax


def _plugins(syntax: Any) -> str:
    """Returns the command that installs the plugins of pydicom for a compression."""
    from pydicom.uid import JPEG2000TransferSyntaxes

    return f"pip install pylibjpeg pylibjpeg-{'openjpeg' if syntax in JPEG2000TransferSyntaxes else 'libjpeg'}"


def _settings(header: Any, frame: int) -> Any:
    """Returns a header whose rescaling and window are those of a frame."""
    shared = header.get("SharedFunctionalGroupsSequence", [])[:1]
    groups = [*shared, *header.get("PerFrameFunctionalGroupsSequence", [])[frame : frame + 1]]
    if not groups:
        return header
    merged = copy.copy(header)
    for group in groups:
        for name in OF_FRAMES:
            for settings in group.get(name, []):
                merged.update(settings)
    return merged


def _values(
    stored: Shaped[np.ndarray, "h w samples"], header: Any, path: Path, window: bool
) -> Shaped[np.ndarray, "h w c"]:
    from pydicom.pixels import apply_color_lut

    if header.PhotometricInterpretation == "PALETTE COLOR":
        colors = apply_color_lut(stored[..., 0], header)
        return colors if colors.dtype == np.uint8 else (colors >> 8).astype(np.uint8)
    if stored.shape[-1] > 1:
        return stored
    if header.BitsAllocated == 1:
        stored = stored.astype(bool)
    return _windowed(stored, header, path) if window else _bright(_rescaled(stored, header), header)


def _rescaled(stored: np.ndarray, header: Any) -> np.ndarray:
    """Returns values in the units of the modality, such as Hounsfield units."""
    from pydicom.pixels import apply_modality_lut

    if header.get("ModalityLUTSequence"):
        return apply_modality_lut(stored, header)
    if (header.get("RescaleSlope", 1), header.get("RescaleIntercept", 0)) == (1, 0):
        return stored
    return apply_modality_lut(stored, header).astype(np.float32)


def _bright(values: np.ndarray, header: Any) -> np.ndarray:
    """Inverts values within the range of the stored bits if the lowest value is white."""
    if header.PhotometricInterpretation != "MONOCHROME1":
        return values
    if values.dtype == np.bool_:
        return ~values
    bits, is_signed = header.BitsStored, header.PixelRepresentation == 1
    stored = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if is_signed else [0, 2**bits - 1])
    low, high = sorted(_rescaled(stored, header).tolist())
    return (low + high - values).astype(values.dtype)


def _windowed(stored: np.ndarray, header: Any, path: Path) -> np.ndarray:
    """Applies the window of a file. Raises UserError if it has none."""
    from pydicom.pixels import apply_voi, apply_windowing

    values = _rescaled(stored, header)
    if header.get("VOILUTSequence"):
        shown = apply_voi(np.round(values).astype(np.int32), header)
        low, high = 0, 2 ** int(header.VOILUTSequence[0].LUTDescriptor[2]) - 1
    elif "WindowCenter" in header and "WindowWidth" in header:
        shown = apply_windowing(values, header)
        low, high = apply_windowing(np.array([-NOT_WINDOWED, NOT_WINDOWED]), header)
    else:
        raise UserError(f"{path} has no window. Remove #window, and set data.intensity instead.")
    shown = (shown.astype(np.float64) - low) / (high - low)
    if header.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    return np.round(np.clip(shown, 0, 1) * 255).astype(np.uint8)
