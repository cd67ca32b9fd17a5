"""Groups DICOM files into pictures or volumes, and sorts the slices of a volume."""

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float

from diffae_jax.data.formats.dicom_pixels import num_frames, read_header
from diffae_jax.runtime.errors import UserError, list_some

LABELS = ("PatientAge", "PatientSex", "Modality", "BodyPartExamined", "ViewPosition", "ImageLaterality")
AGE = re.compile(r"(\d{1,3})([DWMY])")
YEARS = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}  # years in each unit of an age
SAME_PLACE = 1e-3  # mm
PARALLEL = 1e-3  # difference of unit vectors
UNEVEN = 1.5  # ratio of distances; a missing slice gives at least 2


@dataclasses.dataclass(frozen=True)
class Slice:
    """The header of a DICOM file. If `series` is "", the file is damaged."""

    name: str  # the path below the folder
    series: str = ""
    frames: int = 1
    position: tuple[float, ...] = ()  # of the first voxel, in mm; () if not given
    orientation: tuple[float, ...] = ()  # of the rows and columns: two unit vectors
    number: int | None = None
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, name: str, header: Any) -> "Slice":
        """Reads the tags of a header. pydicom may raise any error for damaged values."""
        number = header.get("InstanceNumber")
        return cls(
            name,
            str(header.get("SeriesInstanceUID") or "no series"),
            num_frames(header),
            tuple(map(float, header.get("ImagePositionPatient") or ())),
            tuple(map(float, header.get("ImageOrientationPatient") or ())),
            None if number is None else int(number),
            {label: str(header.get(label) or "") for label in LABELS},
        )


@dataclasses.dataclass(frozen=True)
class Item:
    """A picture or a volume: its slices, and the number of the frame in a file of several."""

    slices: Sequence[Slice]
    frame: int | None = None

    @property
    def is_single(self) -> bool:
        """Whether this is a series with a single slice, such as the scout of a CT scan."""
        return len(self.slices) == 1 and self.slices[0].frames == 1 and bool(self.slices[0].series)


def describe(root: Path, name: str) -> Slice | None:
    """Reads the header of a file. None: the file is DICOM data without an image."""
    try:
        header = read_header(root / name)
        return None if "Rows" not in header else Slice.of(name, header)
    except Exception:  # reading the image will report the damage
        return Slice(name)


def pictures_of(slices: Sequence[Slice]) -> dict[str, Item]:
    """Returns the pictures by id: the path of a file, and FILE#FRAME if it has several frames."""
    return {
        f"{item.name}#{frame}" if item.frames > 1 else item.name: Item([item], frame if item.frames > 1 else None)
        for item in slices
        for frame in range(item.frames)
    }


def volumes_of(slices: Sequence[Slice]) -> dict[str, Item]:
    """Returns the volumes by id: each series in a folder, and each file with several frames.

    The id of a series is its folder, or FOLDER/SERIES if the folder has several.
    """
    groups = collections.defaultdict(list)
    for item in slices:
        is_volume = item.frames > 1 or not item.series
        groups[item.name if is_volume else str(PurePosixPath(item.name).parent), is_volume or item.series].append(item)
    count = collections.Counter(place for place, _ in groups)
    return {
        place if count[place] == 1 and place != "." else str(PurePosixPath(place, str(series))): Item(group)
        for (place, series), group in groups.items()
    }


def sort_slices(slices: Sequence[Slice], name: str) -> list[int]:
    """Returns the order of the slices of a volume along the normal of their plane.

    Without positions, InstanceNumber gives the order. Raises UserError if the order is unknown, if
    two slices have the same place, or if the slices are not parallel.
    """
    places = _places(slices, name)
    order = np.argsort(places, kind="stable")
    same = np.flatnonzero(np.diff(places[order]) < SAME_PLACE)
    if len(same):
        first, second = (slices[order[same[0] + i]].name for i in (0, 1))
        raise UserError(
            f"{name} has two slices at the same place ({list_some([first, second])}). Move one of them to another "
            f"folder, or leave it out with data.exclude."
        )
    return order.tolist()


def has_gaps(slices: Sequence[Slice]) -> bool:
    """Returns whether the distances between slices differ, as if slices were missing."""
    try:
        steps = np.diff(np.sort(_places(slices, "")))
    except UserError:
        return False
    return len(steps) > 1 and bool(steps.max() > UNEVEN * np.median(steps))


def label_columns(items: Sequence[Item]) -> dict[str, np.ndarray]:
    """Returns the tags of `LABELS` that differ between images. Ages are in years."""
    columns = {label: [item.slices[0].tags.get(label, "") for item in items] for label in LABELS}
    return {
        label: np.array([_years(text) for text in texts]) if label == "PatientAge" else np.array(texts, object)
        for label, texts in columns.items()
        if len(set(texts)) > 1
    }


def _years(age: str) -> float:
    """Returns an age such as 045Y or 006M in years, or NaN."""
    match = AGE.fullmatch(age)
    return int(match[1]) * YEARS[match[2]] if match else np.nan


def _places(slices: Sequence[Slice], name: str) -> Float[np.ndarray, "n"]:
    """Returns the place of each slice: the distance along the normal in mm, or its number."""
    if all(len(item.position) == 3 and len(item.orientation) == 6 for item in slices):
        orientations = np.array([item.orientation for item in slices])
        if np.abs(orientations - orientations[0]).max() > PARALLEL:
            raise UserError(f"{name} has slices that are not parallel. Move each stack of slices to its own folder.")
        normal = np.cross(orientations[0, :3], orientations[0, 3:])
        return np.array([item.position for item in slices]) @ normal
    if all(item.number is not None for item in slices):
        return np.array([item.number for item in slices], float)
    raise UserError(
        f"{name} has slices with neither a position nor an InstanceNumber, so their order is unknown. Repair or "
        f"remove them."
    )
