"""Opens the training and held-out images of a data set, with their labels."""

import dataclasses
import operator
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from diffae_jax.data.detect import DIGITS, is_table, open_images, parts_of, split_part
from diffae_jax.data.formats.digits import DIGITS_HELD_OUT
from diffae_jax.data.formats.files import Files, real_paths
from diffae_jax.data.formats.format import OpenedDataset
from diffae_jax.data.labels.matching import common_folder, folder_labels, read_labels, read_partition
from diffae_jax.data.labels.notes import constant_labels, notes
from diffae_jax.data.selection import select_images
from diffae_jax.data.sequences import SequenceSource, as_sequence, column_of
from diffae_jax.data.sources import Arrays, LabeledSource, Source, Subset, hash_share
from diffae_jax.runtime.errors import UserError, counted, list_some, shown
from diffae_jax.runtime.files import local_path, os_errors_as_user_errors

FOLDERS = "folders"  # instead of a table: the subfolder of each image is its label
SLICE = re.compile(r"\[(-?\d{1,18})?:(-?\d{1,18})?\]")


def with_labels(sources: Sequence[Source], labels: str, *, held_out: str = "", id_column: str = "") -> list[Source]:
    """Returns sources with the labels of a table or, for "folders", of their subfolders.

    The subfolder `held_out` is not a label. The same column of a table names the images of all
    sources. Raises UserError if no image of a source has labels.
    """
    if not labels:
        return list(sources)
    if labels == FOLDERS:
        return [LabeledSource(source, folder_labels(source.ids, held_out)) for source in sources]
    table = read_labels(labels, [name for source in sources for name in source.ids], id_column)
    return [LabeledSource(source, table.of(source.ids)) for source in sources]


def notes_on_labels(labels: str, *splits: Source, id_column: str = "") -> list[str]:
    """Returns notes about problems with the labels, such as images without a row in the table.

    The first split must hold the training images, to which probes are fitted.
    """
    ids = [name for source in splits for name in source.ids]
    table = read_labels(labels, ids, id_column) if labels not in ("", FOLDERS) else None
    names = splits[0].labels
    columns = {name: np.concatenate([source.labels[name] for source in splits if len(source)]) for name in names}
    return [*notes(columns, table, ids), *constant_labels(splits[0].labels)]


def open_splits(
    path: str,
    image_shape: tuple[int, ...],
    *,
    labels: str = "",
    id_column: str = "",
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
        id_column: The column with the names of the images, in tables of labels and held-out
            images. "": the column that matches the images.
        held_out: The held-out images: a split, array or subfolder of the data set, a slice of its
            order such as "[:10000]", the path of a table, or the path of other images.
        held_out_share: Used if `held_out` is "": the fraction of images to hold out, 0 to 0.99. A
            hash of the id decides, so adding images never changes an image's split.
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
        opened = OpenedDataset(as_source(images, image_shape), "a sequence in memory")
    elif not path:
        raise UserError("There are no images to train on. Set --config.data.path=PATH.")
    else:
        opened = open_images(path, image_shape)
    if labels and path == DIGITS:
        raise UserError("The digits already have labels. Remove --config.data.labels.")
    is_selected = select_images(opened.source.ids, include, exclude)
    whole, opened = opened.source, _select(opened, is_selected)
    is_held_out, notes = _split_within(opened.source, path, held_out, held_out_share, id_column)
    if is_held_out is None:
        other = _open_held_out(path, held_out, image_shape)
        notes = [f"Held-out images: {other.kind}, {shown(held_out)}.", *other.notes]
        found = _find_held_out(whole, other.source, held_out)
        is_held_out = None if found is None else found[is_selected]
    if is_held_out is None:
        is_kept = select_images(other.source.ids, include, exclude, all_must_match=False)
        training, kept, label_notes = _label_both(opened.source, _selected(other.source, is_kept), labels, id_column)
        return dataclasses.replace(opened, notes=[*opened.notes, *notes, *label_notes]), training, kept
    opened = dataclasses.replace(opened, notes=[*opened.notes, *notes])
    num = int(is_held_out.sum())
    if held_out and num in (0, len(is_held_out)):
        raise UserError(
            f"data.held_out={shown(held_out)} holds out {counted(num, 'image', of=len(is_held_out))}. Hold out at "
            f"least one image, and leave at least one to train on."
        )
    (source,) = with_labels([opened.source], labels, held_out=held_out, id_column=id_column)
    return opened, *(Subset(source, np.flatnonzero(rows)) for rows in (~is_held_out, is_held_out))


def _select(opened: OpenedDataset, is_selected: Bool[np.ndarray, "n"]) -> OpenedDataset:
    """Returns the selected images of a data set, with a note if some are left out."""
    if is_selected.all():
        return opened
    count = counted(int(is_selected.sum()), "image", of=len(is_selected), verb="is/are")
    note = f"{count} selected by data.include and data.exclude."
    return dataclasses.replace(opened, source=_selected(opened.source, is_selected), notes=[*opened.notes, note])


def _selected(source: Source, is_selected: Bool[np.ndarray, "n"]) -> Source:
    return source if is_selected.all() else Subset(source, np.flatnonzero(is_selected))


def _find_held_out(source: Source, other: Source, held_out: str) -> Bool[np.ndarray, "n"] | None:
    """Returns a mask of the images that `source` shares with the held-out `other`, or None.

    Raises UserError if only some images of `other` are in `source`, or if both are parts of one
    file or data set and overlap.
    """
    if isinstance(source, Files) and isinstance(other, Files):
        held_out_files = set(real_paths(other))
        found = np.array([path in held_out_files for path in real_paths(source)], bool)
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


def _label_both(training: Source, held_out: Source, labels: str, id_column: str) -> tuple[Source, Source, list[str]]:
    """Returns both splits with labels, and notes. Training images keep labels that both have.

    Raises UserError if a training image and a held-out image have the same id: the rows of a table
    of labels would then be ambiguous.
    """
    common = set(training.ids) & set(held_out.ids)
    if labels not in ("", FOLDERS) and common:
        raise UserError(
            f"{counted(len(common), 'id', verb='belongs/belong')} to both a training image and a held-out image "
            f"({list_some(common)}), so the rows of {labels} are ambiguous. Give each image a unique id, or store "
            f"the labels in the data set's own file."
        )
    training, held_out = with_labels([training, held_out], labels, id_column=id_column)
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


def as_source(images: Any, image_shape: tuple[int, ...]) -> Source:
    """Converts a Python sequence of images to a source. Labels of a `Source` become arrays.

    Raises UserError for any other object. The message names what to give instead.
    """
    if isinstance(images, SequenceSource):
        return images
    if isinstance(images, Source):
        labels = {name: column_of(name, values) for name, values in images.labels.items()}
        return images if all(map(_is_same, labels.values(), images.labels.values())) else LabeledSource(images, labels)
    images = as_sequence(images)
    if isinstance(images, str) or not (hasattr(images, "__len__") and hasattr(images, "__getitem__")):
        raise UserError(
            f"`images` is {shown(images)}. It must have a length and be indexable. If the images fit in memory, pass "
            f"list(images)."
        )
    return SequenceSource(images, image_shape)


def _is_same(column: np.ndarray, values: Any) -> bool:
    is_array = isinstance(values, np.ndarray) and values.dtype == column.dtype and values.shape == column.shape
    return is_array and (column.dtype != object or all(map(operator.is_, column, values)))


def _split_within(
    source: Source, path: str, held_out: str, share: float, id_column: str
) -> tuple[Bool[np.ndarray, "n"] | None, list[str]]:
    """Returns a mask of the held-out images, and notes.

    The mask is None if `held_out` names other images.
    """
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
    if is_table(held_out):
        partition = read_partition(held_out, source.ids, id_column)
        return partition.of(source.ids), partition.notes(source.ids)
    below = f"{held_out.rstrip('/')}/"
    for folder in (below, common_folder(source.ids) + below):  # archives often have one folder with all others
        is_below = np.array([name.startswith(folder) for name in source.ids], bool)
        if is_below.any():
            return is_below, []
    return None, []


def _open_held_out(path: str, held_out: str, image_shape: tuple[int, ...]) -> OpenedDataset:
    """Opens held-out images: another part of the same file or data set, or another path."""
    base, _ = split_part(path)
    elsewhere, _ = split_part(held_out)
    with os_errors_as_user_errors(Path(elsewhere)):
        parts = parts_of(local_path(base), image_shape) if path else ()
        is_part = held_out.startswith("#") or ("/" not in held_out and held_out.partition("[")[0] in parts)
        if held_out == DIGITS or (elsewhere and local_path(elsewhere).exists() and not is_part):
            return open_images(held_out, image_shape)
    if not path:
        raise UserError(
            f"data.held_out={shown(held_out)} is not the path of images or of a table, nor a slice such as [:1000]. "
            f"For images in memory, data.held_out must be one of these."
        )
    if local_path(base).exists() and not parts:
        raise UserError(
            f"data.held_out={shown(held_out)} is not a subfolder of {path} with images. Give such a subfolder, the "
            f"path of other images, a table, or a slice such as [:1000]."
        )
    return open_images(f"{base}#{held_out.removeprefix('#')}", image_shape)
