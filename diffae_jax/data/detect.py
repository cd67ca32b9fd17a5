"""Detects the format of a path, opens it, and splits training images from held-out images."""

import dataclasses
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from diffae_jax.config import parse_intensity
from diffae_jax.data.formats import arrays, files, lmdb, tfds
from diffae_jax.data.formats.digits import DIGITS_HELD_OUT, all_digits
from diffae_jax.data.formats.npy import open_npy
from diffae_jax.data.labels.matching import constant_labels, folder_labels, notes, read_labels, read_partition
from diffae_jax.data.selection import select_images
from diffae_jax.data.sources import Arrays, LabeledSource, SequenceSource, Source, Subset, hash_share
from diffae_jax.data.transforms import Transform
from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.files import check_file, expand_home, os_errors_as_user_errors

DIGITS = "digits"  # instead of a path
FOLDERS = "folders"  # instead of a table: the subfolder of each image is its label
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
TABLES = (".csv", ".tsv", ".txt", ".parquet", ".pq")
SLICE = re.compile(r"\[(-?\d{1,18})?:(-?\d{1,18})?\]")


@dataclasses.dataclass(frozen=True)
class OpenedDataset:
    """A data set whose format was detected.

    Args:
        source: The images.
        kind: The format for messages, such as "a folder of image files".
        notes: Sentences on what was inferred, such as which array of a file holds the images.
    """

    source: Source
    kind: str
    notes: Sequence[str] = ()


def open_images(path: str | os.PathLike, image_shape: tuple[int, ...]) -> OpenedDataset:
    """Detects the format of a path and opens it.

    Args:
        path: A folder, an array file, LMDB, the name or folder of a TFDS data set, one image, or
            "digits". A part follows a #, as in FILE.h5#ARRAY, FILE.npz#ARRAY or mnist#test.
        image_shape: The shape [*spatial, C] to train with. Only its rank and channels are used.

    Returns:
        The images in their original sizes, the format, and notes.

    Raises:
        UserError: The path holds no images, or no images of this rank.
    """
    text = os.fspath(path)
    if text == DIGITS:
        return OpenedDataset(all_digits(image_shape), "the digits of scikit-learn")
    whole = expand_home(text)
    with os_errors_as_user_errors(whole):
        if whole.exists() or "#" not in text:
            return _open(text, whole, "", image_shape)
        name, _, part = text.rpartition("#")
        return _open(name, expand_home(name), part, image_shape)


def transform_of(config: ConfigDict, measured: str | None = None) -> Transform:
    """Returns the transform of a config. A measured intensity replaces that of the config."""
    intensity = parse_intensity(config.data.intensity if measured is None else measured)
    is_range = intensity is not None and not intensity[2]
    return Transform(tuple(config.image_shape), config.data.crop, intensity[:2] if is_range else None)


def _open(text: str, path: Path, part: str, image_shape: tuple[int, ...]) -> OpenedDataset:
    if (path / tfds.INFO).exists() or (not path.exists() and tfds.is_name(text)):
        source, notes = tfds.open_tfds(text if not path.exists() else str(path), part, image_shape)
        return OpenedDataset(source, "a data set of TensorFlow Datasets", notes)
    if not path.exists():
        raise UserError(f"{text} is missing: check the path.")
    if files.has_suffix(path, arrays.SUFFIXES) and path.is_file() and not _is_one_image(path, image_shape):
        source, notes = arrays.open_arrays(path, part, image_shape)
        return OpenedDataset(source, f"an array file ({path.suffix.lower()})", notes)
    if part:
        raise UserError(f"{text} has no part {shown(part)}: only npz, HDF5 and TFDS have parts. Remove the #.")
    if (path / lmdb.DATA).exists() or (path.is_file() and files.has_suffix(path, (".lmdb", ".mdb"))):
        return OpenedDataset(lmdb.open_lmdb(path, image_shape), "LMDB in the official layout")
    if path.is_dir():
        source, notes = files.open_folder(path, image_shape)
        volumes = files.has_suffix(source.ids[0], files.VOLUME_SUFFIXES)
        return OpenedDataset(source, f"a folder of {'volumes' if volumes else 'image files'}", notes)
    check_file(path)
    if files.has_suffix(path, ARCHIVES) and not files.has_suffix(path, files.NIFTI_SUFFIXES):
        raise UserError(f"{path} is an archive: unpack it and give the folder.")
    if files.has_suffix(path, TABLES):
        raise UserError(f"{path} is a table or text file, not images. Use it as --config.data.labels or data.held_out.")
    return OpenedDataset(files.open_file(path, image_shape), "one file")


def _is_one_image(path: Path, image_shape: tuple[int, ...]) -> bool:
    """Whether an npy holds a single image: several have one axis more. Channels may be missing."""
    if path.suffix.lower() != ".npy":
        return False
    shape = open_npy(path).shape
    has_channels = len(shape) == len(image_shape) and image_shape[-1] == shape[-1] > 1
    return len(shape) < len(image_shape) or shape == image_shape or has_channels


def with_labels(source: Source, labels: str, held_out: str = "") -> Source:
    """Returns a source with the labels of a table or, for "folders", of its subfolders.

    The subfolder `held_out` is not a label. Raises UserError if no label belongs to any of its
    images.
    """
    if not labels:
        return source
    if labels == FOLDERS:
        return LabeledSource(source, folder_labels(source.ids, held_out))
    return LabeledSource(source, read_labels(labels).of(source.ids))


def notes_on_labels(labels: str, *splits: Source) -> list[str]:
    """Returns sentences on problems of the labels, such as images without a row in the table.

    The first split is that of training, on which probes are fitted.
    """
    table = read_labels(labels) if labels not in ("", FOLDERS) else None
    names = splits[0].labels
    columns = {name: np.concatenate([source.labels[name] for source in splits if len(source)]) for name in names}
    ids = [name for source in splits for name in source.ids]
    return [*notes(columns, table, ids), *constant_labels(splits[0].labels)]


def open_splits(
    path: str,
    image_shape: tuple[int, ...],
    *,
    labels: str = "",
    held_out: str = "",
    held_out_share: float = 0.0,
    include: str = "",
    exclude: str = "",
    images: Any = None,
) -> tuple[OpenedDataset, Source, Source]:
    """Opens a data set and splits it into training images and held-out images.

    Args:
        path: A path as for `open_images`.
        image_shape: The shape [*spatial, C] to train with. Only its rank and channels are used.
        labels: The path of a table of labels, "folders", or "" for the labels of the data set.
        held_out: The held-out images: a split, array or subfolder of the data set, a slice of its
            order such as "[:10000]", the path of a table, or the path of other images.
        held_out_share: Used if `held_out` is "": the fraction of images to hold out, 0 to 0.99. A
            hash of its id decides for each image, so other images never change its split.
        include: Patterns of the names of images to use, as for `select_images`. "": all images.
        exclude: Patterns of the names of images to leave out.
        images: A Python sequence or a `Source` of images, used instead of `path`.

    Returns:
        The data set, its training images and its held-out images.

    Raises:
        UserError: A path, table or part is missing or damaged, or the splits share images.
    """
    if images is not None:
        path = ""  # the config may have a path as well
        opened = OpenedDataset(_sequence_source(images, image_shape), "a sequence in memory")
    elif not path:
        raise UserError("There are no images to train on: set --config.data.path=PATH.")
    else:
        opened = open_images(path, image_shape)
    if labels and path == DIGITS:
        raise UserError("The digits already have labels: remove --config.data.labels.")
    is_selected = select_images(opened.source.ids, include, exclude)
    whole, opened = opened.source, _select(opened, is_selected)
    is_held_out, notes = _split_within(opened.source, path, held_out, held_out_share)
    if is_held_out is None:
        other = _open_held_out(path, held_out, image_shape)
        notes = [f"Held-out images: {other.kind}, {shown(held_out)}.", *other.notes]
        found = _find_held_out(whole, other.source, held_out)
        is_held_out = None if found is None else found[is_selected]
    if is_held_out is None:
        is_kept = select_images(other.source.ids, include, exclude, all_must_match=False)
        training, kept, label_notes = _label_both(opened.source, _selected(other.source, is_kept), labels)
        return dataclasses.replace(opened, notes=[*opened.notes, *notes, *label_notes]), training, kept
    opened = dataclasses.replace(opened, notes=[*opened.notes, *notes])
    if held_out and (is_held_out.all() or not is_held_out.any()):
        raise UserError(
            f"data.held_out={shown(held_out)} holds out {is_held_out.sum():,} of {len(is_held_out):,} images. Hold out "
            f"at least one image, and leave at least one to train on."
        )
    source = with_labels(opened.source, labels, held_out)
    return opened, *(Subset(source, np.flatnonzero(rows)) for rows in (~is_held_out, is_held_out))


def _select(opened: OpenedDataset, is_selected: Bool[np.ndarray, "n"]) -> OpenedDataset:
    """Returns the selected images of a data set, with a note if these are not all."""
    if is_selected.all():
        return opened
    count = f"{is_selected.sum():,} of {len(is_selected):,} images"
    note = f"{count} are selected by data.include and data.exclude."
    return dataclasses.replace(opened, source=_selected(opened.source, is_selected), notes=[*opened.notes, note])


def _selected(source: Source, is_selected: Bool[np.ndarray, "n"]) -> Source:
    return source if is_selected.all() else Subset(source, np.flatnonzero(is_selected))


def _find_held_out(source: Source, other: Source, held_out: str) -> Bool[np.ndarray, "n"] | None:
    """Returns which images of `source` are also in `other`, the held-out images. None if none are.

    Raises UserError if only some images of `other` are in `source`, or if both are parts of one
    file or data set and overlap.
    """
    if isinstance(source, files.Files) and isinstance(other, files.Files):
        held_out_files = {path.resolve() for path in files.file_paths(other)}
        found = np.array([path.resolve() in held_out_files for path in files.file_paths(source)], bool)
        if found.sum() == len(held_out_files):
            return found
        overlaps = bool(found.any())
    else:
        overlaps = type(source) is type(other) and (isinstance(source, Arrays) or source.overlaps(other))
    if overlaps:
        raise UserError(
            f"data.held_out={shown(held_out)} has images in common with the training images. Give two separate parts, "
            f"such as train and test, or a slice such as [:1000]."
        )
    return None


def _label_both(training: Source, held_out: Source, labels: str) -> tuple[Source, Source, list[str]]:
    """Returns both splits with labels, and notes. Training keeps only the labels that both have.

    Raises UserError if a training image and a held-out image have the same id: the rows of a table
    of labels would then be ambiguous.
    """
    common = set(training.ids) & set(held_out.ids)
    if labels not in ("", FOLDERS) and common:
        raise UserError(
            f"{len(common):,} ids belong to both a training image and a held-out image ({list_some(common)}), so the "
            f"rows of {labels} are ambiguous. Give each image a unique id, or store labels as arrays in its file."
        )
    training, held_out = with_labels(training, labels), with_labels(held_out, labels)
    shared = {name: values for name, values in training.labels.items() if name in held_out.labels}
    lacking = training.labels.keys() - shared.keys()
    if not lacking:
        return training, held_out, []
    # probes are evaluated on the held-out images
    return (
        LabeledSource(training, shared),
        held_out,
        [f"These labels are not used, because the held-out images lack them: {list_some(lacking)}."],
    )


def _sequence_source(images: Any, image_shape: tuple[int, ...]) -> Source:
    if isinstance(images, Source):
        return images
    if not (hasattr(images, "__len__") and hasattr(images, "__getitem__")):
        raise UserError(
            f"`images` is {shown(images)}. It must have a length and be indexable. If the images fit in memory, pass "
            f"list(images)."
        )
    return SequenceSource(images, image_shape)


def _split_within(
    source: Source, path: str, held_out: str, share: float
) -> tuple[Bool[np.ndarray, "n"] | None, list[str]]:
    """Returns which images are held out, and notes. None if the held-out images are elsewhere."""
    count = len(source)
    if not held_out:
        if path == DIGITS and not share:
            return np.arange(count) >= count - DIGITS_HELD_OUT, []
        return np.array([hash_share(name) < share for name in source.ids], bool), []
    if rows := SLICE.fullmatch(held_out):
        start, stop = (int(text) if text else None for text in rows.groups())
        is_held_out = np.zeros(count, bool)
        is_held_out[start:stop] = True
        return is_held_out, []
    if files.has_suffix(held_out, TABLES):
        partition = read_partition(held_out)
        return partition.of(source.ids), partition.notes(source.ids)
    prefix = f"{held_out.rstrip('/')}/"
    is_below = np.array([name.startswith(prefix) for name in source.ids], bool)
    return (is_below, []) if is_below.any() else (None, [])


def _open_held_out(path: str, held_out: str, image_shape: tuple[int, ...]) -> OpenedDataset:
    """Opens held-out images: another part of the same file or data set, or another path."""
    is_whole = "#" not in path or expand_home(path).exists()
    base = path if is_whole else path.rpartition("#")[0]
    folder = expand_home(base)
    elsewhere = expand_home(held_out)
    with os_errors_as_user_errors(elsewhere):
        is_part = path and "/" not in held_out and held_out.partition("[")[0] in _parts(base, folder)
        whole = held_out.rpartition("#")[0]
        is_path = elsewhere.exists() or (whole and expand_home(whole).exists())
        if held_out == DIGITS or (is_path and not is_part):
            return open_images(held_out, image_shape)
    if not path:
        raise UserError(
            f"data.held_out={shown(held_out)} is not the path of images or of a table, nor a slice such as [:1000]. "
            f"Images in memory need one of these."
        )
    if folder.is_dir() and not (folder / tfds.INFO).exists():
        raise UserError(
            f"data.held_out={shown(held_out)} is not a subfolder of {path} with images. Give such a subfolder, the "
            f"path of other images, a table, or a slice such as [:1000]."
        )
    return open_images(f"{base}#{held_out.removeprefix('#')}", image_shape)


def _parts(base: str, path: Path) -> Collection[str]:
    """Returns the names of the arrays in a file, or of the splits of a data set."""
    if path.is_file() and files.has_suffix(path, arrays.SUFFIXES):
        return arrays.arrays_of(path)
    return tfds.splits_of(path) if (path / tfds.INFO).exists() else ()
