"""DICOM files: each frame is a picture, or each series of slices is a volume."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from diffae_jax.data.formats.dicom_pixels import DICOM_SUFFIXES, check_pydicom, read_frames
from diffae_jax.data.formats.dicom_series import (
    Item,
    Slice,
    describe,
    has_gaps,
    label_columns,
    pictures_of,
    sort_slices,
    volumes_of,
)
from diffae_jax.data.formats.files import IMAGE_SUFFIXES, ONE_IMAGE_SUFFIXES, names_and_sizes
from diffae_jax.data.formats.format import Format, OpenedDataset
from diffae_jax.data.sources import check_names, each, hash_of, image_errors_as_user_errors
from diffae_jax.data.transforms import check_picture_shape
from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.files import has_suffix

WINDOW = "window"  # PATH#window applies the window of each file to its gray values
MAGIC_START, MAGIC = 128, b"DICM"
DIRECTORY = "DICOMDIR"  # lists other files
MANY_SLICES = 4  # slices per series from which a note proposes volumes


@dataclasses.dataclass(frozen=True)
class Dicom:
    """Pictures or volumes in DICOM files."""

    root: Path
    ids: Sequence[str]
    files: Sequence[tuple[str, ...]]  # below root: the slices of each volume, or one file
    frames: Sequence[int | None]  # the frame of each picture; None: all
    image_shape: tuple[int, ...]
    window: bool
    labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns a picture [h, w, C] or a volume [slices, h, w, C]. Raises UserError for damage.

        The slices of a volume are in the order of their positions.
        """
        paths = [self.root / name for name in self.files[index]]
        if len(paths) == 1:
            _, frames = read_frames(paths[0], self.frames[index], window=self.window)
            return frames[0] if len(self.image_shape) == 3 else frames
        read = [read_frames(path, window=self.window) for path in paths]
        sizes = {frames.shape[1:] for _, frames in read}
        if len(sizes) > 1:
            raise UserError(f"{self.name(index)} has slices of different sizes. Move some to another folder.")
        with image_errors_as_user_errors(self.name(index)):  # tags may be damaged
            slices = [Slice.of(path.name, header) for path, (header, _) in zip(paths, read, strict=True)]
            return np.concatenate([read[i][1] for i in sort_slices(slices, self.name(index))])

    def name(self, index: int) -> str:
        """Returns the path of a file, with #FRAME if it has several, or the folder of a series."""
        return str(self.root / self.ids[index])

    def overlaps(self, other: "Dicom") -> bool:
        """Returns whether another source reads one of the files."""
        mine, theirs = ({(source.root / name).resolve() for name in source.names()} for source in (self, other))
        return not mine.isdisjoint(theirs)

    def names(self) -> list[str]:
        """Returns the paths of all files, below the folder."""
        return list(dict.fromkeys(name for names in self.files for name in names))

    def fingerprint(self) -> str:
        """Returns a hash of the names and sizes of all files, and of the part."""
        return hash_of(str(self.window), *self.ids, *names_and_sizes(self.root, self.names()))


def dicom_names(root: Path, names: Sequence[str]) -> list[str]:
    """Returns the DICOM files among the files below a folder, unless other images outnumber them.

    If the first file without a suffix is DICOM, all such files are recognized by their first
    bytes.
    """
    found = [name for name in names if has_suffix(name, DICOM_SUFFIXES)]
    others = sum(has_suffix(name, (*IMAGE_SUFFIXES, *ONE_IMAGE_SUFFIXES)) for name in names)
    bare = [name for name in names if _has_no_suffix(name)] if len(names) > 2 * others else []
    if bare and _has_magic(root / bare[0]):
        found += [name for name in bare if _has_magic(root / name)]
    return sorted(found) if len(found) >= others else []


def open_dicom(root: Path, names: Sequence[str], part: str, image_shape: tuple[int, ...]) -> OpenedDataset:
    """Opens DICOM files: each frame is a picture, or each series in a folder is a volume.

    The labels are the tags of `LABELS` that differ between images. Damaged files are reported when
    they are read.

    Args:
        root: The folder.
        names: The paths of the files below it.
        part: "window" for uint8 values by the window of each file, or "".
        image_shape: The shape [*spatial, C] to train with. Its rank gives pictures or volumes.

    Returns:
        The images, and notes on files without images and on missing slices.

    Raises:
        UserError: No file holds an image, pydicom is missing, or the part is unknown.
    """
    if part not in ("", WINDOW):
        raise UserError(f"{root} has no part {shown(part)}. The only part of DICOM is {WINDOW}.")
    is_volume = len(image_shape) == 4
    if not is_volume:
        check_picture_shape(image_shape)
    check_names(names)
    check_pydicom(root)
    described = dict(zip(names, each(lambda name: describe(root, name), names), strict=True))
    slices = [item for item in described.values() if item is not None]
    if not slices:
        where = root / names[0] if len(names) == 1 else root
        raise UserError(f"{where} holds no DICOM image, only other data of DICOM. Give the image files.")
    items = volumes_of(slices) if is_volume else pictures_of(slices)
    flat = {name for name, item in items.items() if is_volume and image_shape[0] > 1 and item.is_single}
    if len(flat) == len(items):
        flat = set()  # their size is reported when they are read
    items = {name: item for name, item in items.items() if name not in flat}
    source = Dicom(
        root,
        list(items),
        [tuple(part.name for part in item.slices) for item in items.values()],
        [item.frame for item in items.values()],
        tuple(image_shape),
        part == WINDOW,
        label_columns(list(items.values())),
    )
    empty = [name for name, item in described.items() if item is None]
    notes = _notes_on_volumes(items, flat) if is_volume else _notes_on_series(slices)
    if empty:
        count = f"{len(empty):,} DICOM file{'s hold' if len(empty) != 1 else ' holds'}"
        notes.append(f"{count} no image ({list_some(empty)}).")
    return OpenedDataset(source, f"DICOM {'volumes' if is_volume else 'pictures'}", notes)


def _notes_on_volumes(items: Mapping[str, Item], flat: Collection[str]) -> list[str]:
    single = f"{len(flat):,} series with a single slice {'is' if len(flat) == 1 else 'are'} not read"
    notes = [f"{single} ({list_some(flat)})."] if flat else []
    if gaps := [name for name, item in items.items() if has_gaps(item.slices)]:
        count = f"{len(gaps):,} volume{'s' * (len(gaps) != 1)}"
        notes.append(f"Slices seem to be missing, or are unevenly spaced, in {count} ({list_some(gaps)}).")
    return notes


def _notes_on_series(slices: Sequence[Slice]) -> list[str]:
    """Returns a note if the pictures are slices of volumes."""
    placed = [item for item in slices if item.position]
    count = len(volumes_of(placed))
    if len(placed) < MANY_SLICES * max(count, 1):
        return []
    return [
        f"The pictures are slices of {count:,} series. With three spatial axes in --config.image_shape, each series is "
        f"one volume."
    ]


def _has_no_suffix(name: str) -> bool:
    """Returns whether a name has no suffix. Numbers do not count, as in 1.2.840.113619."""
    path = Path(name)
    return path.name != DIRECTORY and (not path.suffix or path.suffix[1:].isdigit())


def _has_magic(path: Path) -> bool:
    if not path.is_file():  # such as a pipe
        return False
    with path.open("rb") as file:
        file.seek(MAGIC_START)
        return file.read(len(MAGIC)) == MAGIC


def _is_dicom(path: Path, image_shape: tuple[int, ...]) -> bool:
    is_named = path.is_file() and has_suffix(path, DICOM_SUFFIXES)
    return is_named or (_has_no_suffix(path.name) and _has_magic(path))


FORMAT = Format(
    _is_dicom,
    lambda path, part, image_shape: open_dicom(path.parent, [path.name], part, image_shape),
    parts=lambda path: (WINDOW,),
)
