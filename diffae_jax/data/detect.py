"""Finds out what a path holds, opens it, and tells training images from held-out ones."""

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
from diffae_jax.data.labels.matching import folder_labels, notes, read_labels, read_partition
from diffae_jax.data.sources import Arrays, LabeledSource, SequenceSource, Source, Subset, hash_share
from diffae_jax.data.transforms import Transform
from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.files import check_file, expand_home, os_errors_as_user_errors

DIGITS = "digits"  # in place of a path
FOLDERS = "folders"  # in place of a table of labels: the folder of each image is its label
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
TABLES = (".csv", ".tsv", ".txt", ".parquet", ".pq")
SLICE = re.compile(r"\[(-?\d{1,18})?:(-?\d{1,18})?\]")


@dataclasses.dataclass(frozen=True)
class OpenedDataset:
    """Images, what kind of thing holds them, and what was inferred about it."""

    source: Source
    kind: str
    notes: Sequence[str] = ()


def open_images(path: str | os.PathLike, image_shape: tuple[int, ...]) -> OpenedDataset:
    """Opens whatever holds images: a folder, an array file, LMDB, a data set of TFDS, one image, or the word digits.

    A part is named behind a #: FILE.h5#ARRAY, FILE.npz#ARRAY, mnist#test. Raises UserError, saying what was found,
    where there are no images, or none of the rank that the shape asks for.
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
    """Returns what happens to the images of a config, by the intensity that was measured where it was."""
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
        raise UserError(f"{text} has no part {shown(part)}: a part is that of an npz, HDF5 or TFDS.")
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
        raise UserError(f"{path} is a table or a text, not images: it may be --config.data.labels or data.held_out.")
    return OpenedDataset(files.open_file(path, image_shape), "one file")


def _is_one_image(path: Path, image_shape: tuple[int, ...]) -> bool:
    """Whether an npy is a single image: of several there is one axis more. One of channels may be left out."""
    if path.suffix.lower() != ".npy":
        return False
    shape = open_npy(path).shape
    has_channels = len(shape) == len(image_shape) and image_shape[-1] == shape[-1] > 1
    return len(shape) < len(image_shape) or shape == image_shape or has_channels


def with_labels(source: Source, labels: str) -> Source:
    """Returns a source with the labels of a table, or, for "folders", of its subfolders.

    Raises UserError for labels that are not of its images.
    """
    if not labels:
        return source
    return LabeledSource(source, folder_labels(source.ids) if labels == FOLDERS else read_labels(labels).of(source.ids))


def notes_on_labels(labels: str, *splits: Source) -> list[str]:
    """Returns in sentences what is odd about the labels of a data set: images and rows without the other, say."""
    table = read_labels(labels) if labels not in ("", FOLDERS) else None
    names = splits[0].labels
    columns = {name: np.concatenate([source.labels[name] for source in splits if len(source)]) for name in names}
    return notes(columns, table, [name for source in splits for name in source.ids])


def open_splits(
    path: str,
    image_shape: tuple[int, ...],
    *,
    labels: str = "",
    held_out: str = "",
    held_out_share: float = 0.0,
    images: Any = None,
) -> tuple[OpenedDataset, Source, Source]:
    """Opens a data set, from a path or as a Python sequence, and returns it, its training and its held-out images.

    `held_out` names those that are kept from training: by a split, array or subfolder of the data set, by a slice
    such as [:10000] of its order, by a table, or by the path of other images. Otherwise a share of all is chosen by a
    hash of their ids, so an image stays on its side when others come or go. Raises UserError with what is wrong.
    """
    if images is not None:
        path = ""  # which a config may name all the same
        opened = OpenedDataset(_sequence_source(images, image_shape), "a sequence in memory")
    elif not path:
        raise UserError("No images were named: give what holds them with --config.data.path=PATH.")
    else:
        opened = open_images(path, image_shape)
    if labels and path == DIGITS:
        raise UserError("The digits have labels of their own: leave out --config.data.labels.")
    is_held_out, notes = _given_split(opened.source, path, held_out, held_out_share)
    if is_held_out is None:
        other = _other(path, held_out, image_shape)
        notes = [f"Held out: {other.kind}, {shown(held_out)}.", *other.notes]
        is_held_out = _among(opened.source, other.source, held_out)
    if is_held_out is None:
        training, kept, more = _both(opened.source, other.source, labels)
        return dataclasses.replace(opened, notes=[*opened.notes, *notes, *more]), training, kept
    opened = dataclasses.replace(opened, notes=[*opened.notes, *notes])
    if held_out and (is_held_out.all() or not is_held_out.any()):
        raise UserError(
            f"data.held_out={shown(held_out)} holds out {is_held_out.sum():,} of {len(is_held_out):,} images: some "
            f"must be trained on, and some held out."
        )
    source = with_labels(opened.source, labels)
    return opened, *(Subset(source, np.flatnonzero(rows)) for rows in (~is_held_out, is_held_out))


def _among(source: Source, other: Source, held_out: str) -> Bool[np.ndarray, "n"] | None:
    """Returns which images are among those to hold out, which were opened by themselves; None where none are.

    Raises UserError where only some of those to hold out are, or two parts of a file or data set have some in common.
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
            f"data.held_out={shown(held_out)} has images in common with those to train on: name two parts, such as "
            f"train and test, or a slice such as [:1000]."
        )
    return None


def _both(training: Source, held_out: Source, labels: str) -> tuple[Source, Source, list[str]]:
    """Returns both sides with their labels, of training those alone that both have, and what to say of that.

    Raises UserError where a table would give the labels of a training image to a held-out one of the same id.
    """
    both = set(training.ids) & set(held_out.ids)
    if labels not in ("", FOLDERS) and both:
        raise UserError(
            f"{len(both):,} ids are of a training and of a held-out image ({list_some(both)}), so {labels} does not "
            f"tell whose labels it has: give images ids of their own, or labels as arrays beside them."
        )
    training, held_out = with_labels(training, labels), with_labels(held_out, labels)
    shared = {name: values for name, values in training.labels.items() if name in held_out.labels}
    lacking = training.labels.keys() - shared.keys()
    if not lacking:
        return training, held_out, []
    # by held-out images probes are measured
    return (
        LabeledSource(training, shared),
        held_out,
        [f"Labels that held-out images lack are not used ({list_some(lacking)})."],
    )


def _sequence_source(images: Any, image_shape: tuple[int, ...]) -> Source:
    if isinstance(images, Source):
        return images
    if not (hasattr(images, "__len__") and hasattr(images, "__getitem__")):
        raise UserError(
            f"The images are {shown(images)}, and must have a length and give an image for each number below it: "
            f"list(images) does where they fit into memory."
        )
    return SequenceSource(images, image_shape)


def _given_split(
    source: Source, path: str, held_out: str, share: float
) -> tuple[Bool[np.ndarray, "n"] | None, list[str]]:
    """Returns which images are held out, or None where they are elsewhere, and what to say of that."""
    count = len(source)
    if not held_out:
        if path == DIGITS and not share:
            return np.arange(count) >= count - DIGITS_HELD_OUT, []
        return np.array([hash_share(name) < share for name in source.ids], bool), []
    if rows := SLICE.fullmatch(held_out):
        start, stop = (int(text) if text else None for text in rows.groups())
        found = np.zeros(count, bool)
        found[start:stop] = True
        return found, []
    if files.has_suffix(held_out, TABLES):
        partition = read_partition(held_out)
        return partition.of(source.ids), partition.notes(source.ids)
    prefix = f"{held_out.rstrip('/')}/"
    found = np.array([name.startswith(prefix) for name in source.ids], bool)
    return (found, []) if found.any() else (None, [])


def _other(path: str, held_out: str, image_shape: tuple[int, ...]) -> OpenedDataset:
    """Opens held-out images that are not among the others: another part of the same file or data set, or a path."""
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
            f"data.held_out={shown(held_out)} is no path, table or slice such as [:1000], as images in memory need it."
        )
    if folder.is_dir() and not (folder / tfds.INFO).exists():
        raise UserError(
            f"data.held_out={shown(held_out)} is no subfolder of {path} with images, and no path, table or slice such "
            f"as [:1000] either."
        )
    return open_images(f"{base}#{held_out.removeprefix('#')}", image_shape)


def _parts(base: str, path: Path) -> Collection[str]:
    """Returns the names of the arrays of a file, or of the splits of a data set."""
    if path.is_file() and files.has_suffix(path, arrays.SUFFIXES):
        return arrays.arrays_of(path)
    return tfds.splits_of(path) if (path / tfds.INFO).exists() else ()
