"""Matches the rows of tables to images: labels, and which images are held out."""

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from diffae_jax.data.labels.tables import read_list, read_table
from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.files import expand_home

TRAINING = frozenset({"train", "training", "0"})
HELD_OUT = frozenset({"val", "valid", "validation", "test", "testing", "held_out", "dev", "1", "2"})
SPLIT_FOLDERS = {name for name in TRAINING | HELD_OUT if not name.isdigit()}  # a folder 0 is a class
PARTITION_COLUMNS = ("split", "partition", "set", "subset")
SUFFIX = re.compile(r"(\.nii)?\.[a-z][a-z0-9]{0,4}$", re.IGNORECASE)  # of a file; a suffix does not begin with a digit
MOST_CLASSES = 1000  # that notes compare


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a table, each of which names an image.

    A row matches an image if the names are equal, or if one name ends in the other: `0.png` and
    `photos/a/0.png` both match `a/0.png`, but `val/0.png` does not match `train/0.png`. The suffix
    of the file may be missing. A row and an image that have several such partners do not match.
    """

    ids: Sequence[str]

    def unmatched(self, ids: Sequence[str]) -> list[str]:
        """Returns the names in the table that match none of these images."""
        matched = set(self._rows_of(ids).tolist())
        return [name for row, name in enumerate(self.ids) if row not in matched]

    def unnamed(self, ids: Sequence[str]) -> list[str]:
        """Returns those of these images that have no row."""
        return [name for name, row in zip(ids, self._rows_of(ids).tolist(), strict=True) if row < 0]

    def _rows_of(self, ids: Sequence[str]) -> Int[np.ndarray, "n"]:
        """Returns the row of each image, or -1."""
        rows = np.full(len(ids), -1)
        index_of = {name: row for row, name in enumerate(self.ids)}
        for image, name in enumerate(ids):
            rows[image] = index_of.get(name, -1)
        matched = set(rows[rows >= 0].tolist())
        for shorten_image, shorten_row in (
            (_parts, _parts),
            (_parts_of_stem, _parts),
            (_parts_of_stem, _parts_of_stem),
        ):
            if len(matched) == len(self.ids) or (rows >= 0).all():
                break
            for image, row in _partners(list(map(shorten_image, ids)), list(map(shorten_row, self.ids))):
                if rows[image] < 0 and row not in matched:
                    rows[image] = row
                    matched.add(row)
        return rows

    def _check_any(self, rows: Int[np.ndarray, "n"], ids: Sequence[str], table: str) -> None:
        """Raises UserError if no image has a row. Reports folders that differ."""
        if (rows >= 0).any():
            return
        problem = (
            f"None of the {len(self.ids):,} names in the {table} ({list_some(self.ids)}) matches one of the "
            f"{len(ids):,} images ({list_some(ids)})"
        )
        images = {_parts(name)[-1]: name for name in ids}
        same_file = next((name for name in self.ids if _parts(name)[-1] in images), None)
        if same_file is None:
            raise UserError(f"{problem}: its first column must hold the file names.")
        raise UserError(
            f"{problem}: {shown(same_file)} and {shown(images[_parts(same_file)[-1]])} have different folders, or "
            f"several have this file name. Give each row the folders of its image."
        )


Parts = tuple[str, ...]  # the folders and the file of a name


def _parts(name: str) -> Parts:
    """Splits a name at slashes, or at backslashes if it has no slash."""
    separator = "/" if "/" in name else "\\"
    return tuple(part for part in name.split(separator) if part not in ("", ".")) or ("",)


def _parts_of_stem(name: str) -> Parts:
    *folders, file = _parts(name)
    return (*folders, SUFFIX.sub("", file))


def _partners(images: Sequence[Parts], rows: Sequence[Parts]) -> Iterator[tuple[int, int]]:
    """Yields (image, row) if one name ends in the other and neither has a second partner.

    Longer common endings come first.
    """
    longest = max(map(len, images), default=0), max(map(len, rows), default=0)
    for length in range(min(longest), 0, -1):
        groups: dict[Parts, tuple[list[int], list[int]]] = {}
        for side, names in enumerate((images, rows)):
            for index, name in enumerate(names):
                if len(name) >= length:
                    groups.setdefault(name[-length:], ([], []))[side].append(index)
        for with_images, with_rows in groups.values():
            if not with_images or not with_rows:
                continue
            # with folders left on both sides, the folders differ
            short_rows = [row for row in with_rows if len(rows[row]) == length]
            short_images = [image for image in with_images if len(images[image]) == length]
            for image in with_images:
                candidates = with_rows if len(images[image]) == length else short_rows
                if len(candidates) == 1:
                    (row,) = candidates
                    if len(with_images if len(rows[row]) == length else short_images) == 1:
                        yield image, row


@dataclasses.dataclass(frozen=True, eq=False)
class Labels(Rows):
    """Columns of labels by name: floats (missing: NaN), integers, or text (missing: "")."""

    columns: dict[str, np.ndarray]

    def of(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the columns in the order of these images. Images without a row have no values.

        Raises UserError if no image has a row.
        """
        rows = self._rows_of(ids)
        self._check_any(rows, ids, "table of labels")
        return {name: _take(values, rows) for name, values in self.columns.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Partition(Rows):
    """Which of the images `ids` are held out from training. All other images are trained on."""

    is_held_out: Bool[np.ndarray, "n"]

    def of(self, ids: Sequence[str]) -> Bool[np.ndarray, "m"]:
        """Returns whether each image is held out. Raises UserError if no image has a row."""
        rows = self._rows_of(ids)
        self._check_any(rows, ids, "held-out table")
        return (rows >= 0) & self.is_held_out[rows]

    def notes(self, ids: Sequence[str]) -> list[str]:
        """Returns sentences on names without an image and images without a name."""
        unmatched, unnamed = self.unmatched(ids), self.unnamed(ids)
        problems = {
            f"{len(unmatched):,} of {len(self.ids):,} names in the held-out table match no image": unmatched,
            f"{len(unnamed):,} of {len(ids):,} images are not in the held-out table, so they are trained on": unnamed,
        }
        return [f"{problem} ({list_some(names)})." for problem, names in problems.items() if names]


def _take(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns the values of these rows. Row -1 is missing, for which integers become floats."""
    missing = rows < 0
    if values.dtype.kind == "i" and missing.any():
        values = values.astype(np.float64)
    taken = values[rows]
    if missing.any():
        taken[missing] = "" if taken.dtype.kind == "O" else np.nan
    return taken


def read_labels(path: str | Path) -> Labels:
    """Reads a table whose first column names the image and whose other columns are labels.

    The file is a CSV or TSV in UTF-8 with a header, a Parquet file, or the attribute file of
    CelebA. In the file of CelebA, -1 becomes 0. Raises UserError, with the row, for an invalid
    table and for an image that occurs twice.
    """
    path = expand_home(path)
    ids, columns = read_table(path)
    if not columns:
        raise UserError(
            f"{path} has no column of labels: it needs a header row, a first column of file names, and label columns."
        )
    if not ids:
        raise UserError(f"{path} only has a header row: add a row for each image.")
    return Labels(ids, columns)


def read_partition(path: str | Path) -> Partition:
    """Reads which images are held out from a table or from a list with one name per line.

    The file is a table as for labels, `list_eval_partition.txt` of CelebA, or a list. A list names
    the held-out images. A table has the split of each image in its only column besides the name,
    or in one of `PARTITION_COLUMNS`. Raises UserError for unknown splits, with the image, and for
    an invalid file.
    """
    path = expand_home(path)
    ids, columns = read_list(path, TRAINING | HELD_OUT) or read_table(path)
    if not ids:
        raise UserError(f"{path} names no image: add a line for each held-out image.")
    if not columns:
        return Partition(ids, np.ones(len(ids), bool))
    name = _partition_column(path, columns)
    words = [_text(value).lower() for value in columns[name].tolist()]
    _check_name(path, name, columns[name].dtype.kind == "O")
    for image, word in zip(ids, words, strict=True):
        if word not in TRAINING | HELD_OUT:
            raise UserError(
                f"{path} has {f'{shown(word)} as' if word else 'no'} {shown(name)} of {shown(image)}. Use "
                f"{', '.join(sorted(TRAINING))} for training, and {', '.join(sorted(HELD_OUT))} for held-out images."
            )
    return Partition(ids, np.array([word in HELD_OUT for word in words], bool))


def _partition_column(path: Path, columns: Mapping[str, np.ndarray]) -> str:
    candidates = [name for name in columns if name.lower() in PARTITION_COLUMNS]
    chosen = list(columns) if len(columns) == 1 else candidates
    if len(chosen) != 1:
        raise UserError(
            f"{path} has {len(columns):,} columns ({list_some(columns)}), {len(candidates)} of which are named "
            f"{', '.join(PARTITION_COLUMNS)}. Exactly one must have such a name: it holds the split of each image."
        )
    return chosen[0]


def _check_name(path: Path, name: str, is_text: bool) -> None:
    """Raises UserError if the header row is missing, or if 1 would mean training in its column."""
    # a column of numbers may be named test
    if name in ("0", "1", "2") or (is_text and name.lower() in TRAINING | HELD_OUT):
        raise UserError(f"{path} has no header row: add one, such as `file,split`.")
    if not is_text and "train" in name.lower():
        raise UserError(
            f"{path} has numbers in the column {shown(name)}, where 1 would mean held out. Write train and test "
            f"instead."
        )


def common_folder(ids: Sequence[str]) -> str:
    """Returns the path of the folder that contains all images, with a slash at its end, or ""."""
    folders = [PurePath(name).parts[:-1] for name in ids]
    pairs = zip(min(folders, default=()), max(folders, default=()), strict=False)
    return "".join(f"{part}/" for part, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def folder_labels(ids: Sequence[str], held_out: str = "") -> dict[str, np.ndarray]:
    """Returns the top-level folder of each image as the label "folder".

    A folder that contains all others is skipped, as archives of a folder have one. Folders of
    splits are also skipped: `held_out`, and train, val, test and similar names if there are no
    others. So `train/cat/1.jpg` has the label `cat`. Raises UserError if an image is in no folder,
    or if all are in the same one.
    """
    folders = [PurePath(name).parts[:-1] for name in ids]
    common = common_folder(ids)
    depth = common.count("/")
    depth -= depth > 0 and any(len(parts) == depth for parts in folders)  # that folder also has images
    folders = [parts[depth:] for parts in folders]
    names = {parts[0] for parts in folders if parts}
    held_out = held_out.removeprefix(common).rstrip("/")
    only_splits = all(name.lower() in SPLIT_FOLDERS or name == held_out for name in names)
    skipped = names if only_splits else {held_out}
    folders = [parts[1:] if parts and parts[0] in skipped else parts for parts in folders]
    loose = [name for name, parts in zip(ids, folders, strict=True) if not parts]
    if loose:
        raise UserError(
            f"{len(loose):,} of {len(ids):,} images are in no subfolder ({list_some(loose)}): move each image to the "
            "folder of its class, or use a table of labels."
        )
    classes = [parts[0] for parts in folders]
    if len(set(classes)) < 2:
        raise UserError(
            f"All {len(ids):,} images are in the same subfolder ({list_some(set(classes))}), so all have one label. "
            "Give the folder above the folders of the classes, or use a table of labels."
        )
    return {"folder": np.array(classes, object)}


def notes(labels: Mapping[str, np.ndarray], table: Labels | None, ids: Sequence[str]) -> list[str]:
    """Returns sentences on problems of the labels of the images `ids`, which come from `table`.

    These are images without labels, and rows and classes without images.
    """
    sentences = []
    from_table = [values for name, values in labels.items() if table is None or name in table.columns]
    bare = np.flatnonzero(~np.any([_is_known(values) for values in from_table], 0)) if from_table else []
    if len(bare):
        sentences.append(f"{len(bare):,} of {len(ids):,} images have no labels ({list_some(ids[i] for i in bare)}).")
    unmatched = table.unmatched(ids) if table else []
    if unmatched:
        sentences.append(
            f"{len(unmatched):,} of {len(table.ids):,} rows in the table of labels match no image "
            f"({list_some(unmatched)})."
        )
    for name, values in labels.items() if table else ():
        in_table, in_images = _classes(table.columns.get(name, np.empty(0))), _classes(values)
        if in_table - in_images:
            sentences.append(
                f"{len(in_table - in_images):,} of {len(in_table):,} classes of {shown(name)} have no image "
                f"({list_some(in_table - in_images)})."
            )
    return sentences


def constant_labels(labels: Mapping[str, np.ndarray]) -> list[str]:
    """Returns sentences on labels of the training images with no value or a single one.

    No probe can be fitted to these.
    """
    values = {name: set(column[_is_known(column)].tolist()) for name, column in labels.items()}
    empty = [name for name, unique in values.items() if not unique]
    constant = [f"{name}={_text(*unique)}" for name, unique in values.items() if len(unique) == 1]
    problems = {
        "no value for any training image": empty,
        "the same value for all training images that have one": constant,
    }
    return [
        f"{len(names):,} of {len(labels):,} labels have {problem} ({list_some(names)})."
        for problem, names in problems.items()
        if names
    ]


def _is_known(values: np.ndarray) -> Bool[np.ndarray, "n"]:
    if values.dtype.kind in "OU":
        return np.array([value != "" for value in values], bool)
    return ~np.isnan(values)


def _classes(values: np.ndarray) -> set[str]:
    """Returns the unique values of text or integers, or nothing if there are too many."""
    unique = set(values[_is_known(values)].tolist())
    are_classes = all(isinstance(value, str) or float(value).is_integer() for value in unique)
    return set(map(_text, unique)) if len(unique) <= MOST_CLASSES and are_classes else set()


def _text(value: Any) -> str:
    """Formats a value. An integer looks the same in a column of floats."""
    return "" if value != value else str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def fingerprint(*splits: Mapping[str, np.ndarray]) -> str:
    """Returns a SHA-256 of the labels of some splits of a data set."""
    plain = [{name: values.tolist() for name, values in labels.items()} for labels in splits]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
