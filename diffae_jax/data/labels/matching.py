"""Labels of images, and which images are held out from training, from tables that name the images."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from diffae_jax.data.labels.tables import read_list, read_table
from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.files import expand_home

TRAINING = frozenset({"train", "training", "0"})
HELD_OUT = frozenset({"val", "valid", "validation", "test", "testing", "held_out", "dev", "1", "2"})
PARTITION_COLUMNS = ("split", "partition", "set", "subset")
SUFFIX = re.compile(r"(\.nii)?\.[a-z][a-z0-9]{0,4}$", re.IGNORECASE)  # of a file; what begins with a digit is none
MOST_CLASSES = 1000  # that notes look through


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a table, each of which names an image.

    Names match whole, else without their folders, else without suffix too, where only one image and one row are called
    so.
    """

    ids: Sequence[str]

    def unmatched(self, ids: Sequence[str]) -> list[str]:
        """Returns the names in the table, in order, that are none of these images."""
        matched = set(self._places(ids).tolist())
        return [name for row, name in enumerate(self.ids) if row not in matched]

    def unnamed(self, ids: Sequence[str]) -> list[str]:
        """Returns the images of these, in order, that no row names."""
        return [name for name, row in zip(ids, self._places(ids).tolist(), strict=True) if row < 0]

    def _places(self, ids: Sequence[str]) -> Int[np.ndarray, "n"]:
        """Returns the row of each image, or -1."""
        rows = np.full(len(ids), -1)
        for ours_by, theirs_by in ((str, str), (_base, _base), (_stem, _base), (_stem, _stem)):
            ours, theirs = _only(ours_by, ids), _only(theirs_by, self.ids)
            for name in ours.keys() & theirs.keys():
                if rows[ours[name]] < 0:
                    rows[ours[name]] = theirs[name]
        return rows


def _base(name: str) -> str:
    return PurePath(name).name


def _stem(name: str) -> str:
    return SUFFIX.sub("", _base(name))


@dataclasses.dataclass(frozen=True, eq=False)
class Labels(Rows):
    """Columns of labels by name, a row for each of `ids`: float (NaN is missing), whole numbers, or text ("" is)."""

    columns: dict[str, np.ndarray]

    def of(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the columns in the order of these ids of images; those of images without labels are missing.

        Raises UserError where no image has a row.
        """
        rows = self._places(ids)
        if not (rows >= 0).any():
            raise UserError(
                f"None of the {len(self.ids):,} labeled ids ({list_some(self.ids)}) is one of the {len(ids):,} images "
                f"({list_some(ids)}): the first column of labels holds their file names."
            )
        return {name: _taken(values, rows) for name, values in self.columns.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Partition(Rows):
    """Which of the images `ids` [N] are held out from training; images that are not among them are not."""

    is_held_out: Bool[np.ndarray, "n"]

    def of(self, ids: Sequence[str]) -> Bool[np.ndarray, "m"]:
        """Returns for each of these images whether it is held out. Raises UserError where no image has a row."""
        rows = self._places(ids)
        if not (rows >= 0).any():
            raise UserError(
                f"None of the {len(self.ids):,} ids of the partition ({list_some(self.ids)}) is one of the "
                f"{len(ids):,} images ({list_some(ids)}): its first column holds their file names."
            )
        return (rows >= 0) & self.is_held_out[rows]

    def notes(self, ids: Sequence[str]) -> list[str]:
        """Returns in sentences which of its names are none of these images, and which images it does not name."""
        unmatched, unnamed = self.unmatched(ids), self.unnamed(ids)
        told = {
            f"{len(unmatched):,} of {len(self.ids):,} names of the partition are of none of the images": unmatched,
            f"{len(unnamed):,} of {len(ids):,} images are not in the partition, and are trained on": unnamed,
        }
        return [f"{what} ({list_some(names)})." for what, names in told.items() if names]


def _only(key: Callable[[str], str], ids: Sequence[str]) -> dict[str, int]:
    """Returns the place of each name that only one id has."""
    places: dict[str, int] = {}
    for place, name in enumerate(map(key, ids)):
        places[name] = -1 if name in places else place
    return {name: place for name, place in places.items() if place >= 0}


def _taken(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns the values of these rows; row -1 is missing, for which whole numbers become floating point."""
    missing = rows < 0
    if values.dtype.kind == "i" and missing.any():
        values = values.astype(np.float64)
    taken = values[rows]
    if missing.any():
        taken[missing] = "" if taken.dtype.kind == "O" else np.nan
    return taken


def read_labels(path: str | Path) -> Labels:
    """Reads a table of at most 10 million rows, whose first column names the image and whose others are labels.

    A CSV or TSV with a header in UTF-8, a Parquet file, or the attributes of CelebA as its authors wrote them, of which
    -1 becomes 0. Raises UserError, with the line, for what is no such table and for an image that is there twice.
    """
    path = expand_home(path)
    ids, columns = read_table(path)
    if not columns:
        raise UserError(
            f"{path} has no column of labels: the first line names the columns, and the first is the image."
        )
    if not ids:
        raise UserError(f"{path} has the names of columns alone: give every image a line.")
    return Labels(ids, columns)


def read_partition(path: str | Path) -> Partition:
    """Reads which images are held out: a table as of labels, CelebA's `list_eval_partition.txt`, or one name a line.

    Of a table it is the one column, or that of `PARTITION_COLUMNS`, which says `TRAINING` or `HELD_OUT`, in any case.
    Images that are named alone are held out. Raises UserError for other values, with the image, and for no such file.
    """
    path = expand_home(path)
    ids, columns = read_list(path, TRAINING | HELD_OUT) or read_table(path)
    if not ids:
        raise UserError(f"{path} names no image: give every image that is held out a line.")
    if not columns:
        return Partition(ids, np.ones(len(ids), bool))
    name = _partition_column(path, columns)
    words = [_text(value).lower() for value in columns[name].tolist()]
    _check_name(path, name, columns[name].dtype.kind == "O")
    for image, word in zip(ids, words, strict=True):
        if word not in TRAINING | HELD_OUT:
            raise UserError(
                f"{path} has {f'{shown(word)} as' if word else 'no'} {shown(name)} of {shown(image)}: training images "
                f"are {', '.join(sorted(TRAINING))}, held-out ones {', '.join(sorted(HELD_OUT))}."
            )
    return Partition(ids, np.array([word in HELD_OUT for word in words], bool))


def _partition_column(path: Path, columns: Mapping[str, np.ndarray]) -> str:
    called_so = [name for name in columns if name.lower() in PARTITION_COLUMNS]
    chosen = list(columns) if len(columns) == 1 else called_so
    if len(chosen) != 1:
        raise UserError(
            f"{path} has {len(columns):,} columns ({list_some(columns)}), {len(called_so)} of which are called "
            f"{', '.join(PARTITION_COLUMNS)}: one must be, to say which images are held out."
        )
    return chosen[0]


def _check_name(path: Path, name: str, is_text: bool) -> None:
    """Raises UserError where the first line names no columns, and where numbers would mean the opposite."""
    # of numbers, a column called test is about that
    if name in ("0", "1", "2") or (is_text and name.lower() in TRAINING | HELD_OUT):
        raise UserError(f"{path} begins with an image, which would be left out: let the first line name the columns.")
    if not is_text and "train" in name.lower():
        raise UserError(
            f"{path} has numbers as {shown(name)}, of which 1 would be held out: write train and test instead."
        )


def folder_labels(ids: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns as labels [N], called folder, the first folder that each image lies in.

    Raises UserError where images lie in none, or all in one, which is no label.
    """
    loose = [name for name in ids if len(PurePath(name).parts) < 2]
    if loose:
        raise UserError(
            f"{len(loose):,} of {len(ids):,} images lie in no folder ({list_some(loose)}): move each to that of its "
            "class, or give a table of labels."
        )
    folders = [PurePath(name).parts[0] for name in ids]
    if len(set(folders)) < 2:
        raise UserError(
            f"All {len(ids):,} images lie in {len(set(folders))} folder ({list_some(set(folders))}), which is no "
            "label: give the folder above those of the classes, or a table of labels."
        )
    return {"folder": np.array(folders, object)}


def notes(labels: Mapping[str, np.ndarray], table: Labels | None, ids: Sequence[str]) -> list[str]:
    """Returns in sentences what to know of labels [N] of the images `ids`, from that table: what has no counterpart.

    Images without labels, rows without image, classes without image, and labels that tell no images apart.
    """
    told = []
    from_table = [values for name, values in labels.items() if table is None or name in table.columns]
    bare = np.flatnonzero(~np.any([_is_known(values) for values in from_table], 0)) if from_table else []
    if len(bare):
        told.append(f"{len(bare):,} of {len(ids):,} images have no labels ({list_some(ids[i] for i in bare)}).")
    unmatched = table.unmatched(ids) if table else []
    if unmatched:
        told.append(
            f"{len(unmatched):,} of {len(table.ids):,} rows of labels are of none of the images "
            f"({list_some(unmatched)})."
        )
    for name, values in labels.items() if table else ():
        there, here = _classes(table.columns.get(name, np.empty(0))), _classes(values)
        if there - here:
            told.append(
                f"{len(there - here):,} of {len(there):,} classes of {shown(name)} have no image "
                f"({list_some(there - here)})."
            )
    return told + _constant(labels)


def _constant(labels: Mapping[str, np.ndarray]) -> list[str]:
    """Returns a sentence on labels without any value, and one on those of a single value."""
    values = {name: set(column[_is_known(column)].tolist()) for name, column in labels.items()}
    empty = [name for name, found in values.items() if not found]
    constant = [f"{name}={_text(*found)}" for name, found in values.items() if len(found) == 1]
    told = {"no value for any image": empty, "the same value for all images that have one": constant}
    return [
        f"{len(names):,} of {len(labels):,} labels have {what} ({list_some(names)})."
        for what, names in told.items()
        if names
    ]


def _is_known(values: np.ndarray) -> Bool[np.ndarray, "n"]:
    if values.dtype.kind in "OU":
        return np.array([value != "" for value in values], bool)
    return ~np.isnan(values)


def _classes(values: np.ndarray) -> set[str]:
    """Returns the different values of text or whole numbers; none where they are too many or other numbers."""
    found = set(values[_is_known(values)].tolist())
    is_of_classes = all(isinstance(value, str) or float(value).is_integer() for value in found)
    return set(map(_text, found)) if len(found) <= MOST_CLASSES and is_of_classes else set()


def _text(value: Any) -> str:
    """A column of whole numbers with missing ones is floating point, and means the same."""
    return "" if value != value else str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def fingerprint(*splits: Mapping[str, np.ndarray]) -> str:
    """Returns a SHA-256 of the labels of some splits of a data set."""
    plain = [{name: values.tolist() for name, values in labels.items()} for labels in splits]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
