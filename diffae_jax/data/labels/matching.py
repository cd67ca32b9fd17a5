"""Matches the rows of tables to images: labels, and which images are held out."""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np
from jaxtyping import Bool

from diffae_jax.data.labels.arrow import text_of
from diffae_jax.data.labels.id_column import find_id_column
from diffae_jax.data.labels.multi_labels import split_columns
from diffae_jax.data.labels.rows import Rows
from diffae_jax.data.labels.table import Table
from diffae_jax.data.labels.tables import is_text_file, read_table
from diffae_jax.data.labels.text_files import read_list
from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.files import local_path

TRAINING = frozenset({"train", "training", "0"})
HELD_OUT = frozenset({"val", "valid", "validation", "test", "testing", "held_out", "dev", "1", "2"})
SPLIT_FOLDERS = {name for name in TRAINING | HELD_OUT if not name.isdigit()}  # a folder named 0 is a class, not a split
PARTITION_COLUMNS = ("split", "partition", "set", "subset")


@dataclasses.dataclass(frozen=True, eq=False)
class Labels(Rows):
    """Columns of labels by name: floats (missing: NaN), integers, or text (missing: "")."""

    columns: dict[str, np.ndarray]

    def of(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the columns in the order of these images. Images without a row have no values.

        Raises UserError if no image has a row.
        """
        rows = self.rows_of(ids)
        self.check_any(rows, ids, "table of labels")
        return {name: _take(values, rows) for name, values in self.columns.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Partition(Rows):
    """Which of the images `ids` are held out from training. All other images are trained on."""

    is_held_out: Bool[np.ndarray, "n"]

    def of(self, ids: Sequence[str]) -> Bool[np.ndarray, "m"]:
        """Returns whether each image is held out. Raises UserError if no image has a row."""
        rows = self.rows_of(ids)
        self.check_any(rows, ids, "held-out table")
        return (rows >= 0) & self.is_held_out[rows]

    def notes(self, ids: Sequence[str]) -> list[str]:
        """Returns notes about names without an image and images without a name."""
        unmatched, unnamed = self.unmatched(ids), self.unnamed(ids)
        problems = {
            f"{len(unmatched):,} of {len(self.ids):,} names in the held-out table match no image": unmatched,
            f"{len(unnamed):,} of {len(ids):,} images are not in the held-out table, so they are trained on": unnamed,
        }
        sentences = [f"{problem} ({list_some(names)})." for problem, names in problems.items() if names]
        return [*self.notes_on_table, *sentences]


def _take(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns the values of these rows. Row -1 gives NaN or "", so integers become floats."""
    missing = rows < 0
    if values.dtype.kind == "i" and missing.any():
        values = values.astype(np.float64)
    taken = values[rows]
    if missing.any():
        taken[missing] = "" if taken.dtype.kind == "O" else np.nan
    return taken


def read_labels(path: str | Path, images: Sequence[str] = (), id_column: str = "") -> Labels:
    """Reads a table in which one column names the image and the other columns are labels.

    The file is a CSV or TSV in UTF-8 with a header, the attribute file of CelebA, Parquet, JSON,
    JSON Lines, xlsx, HDF5 or npz. Raises UserError, with the row, for an invalid table and for an
    image that occurs twice.

    Args:
        path: The file.
        images: The names of the images, which show the column of names, as for `find_id_column`.
        id_column: The column of names, or "".
    """
    return labels_in(read_table(local_path(path)), images, id_column)


def labels_in(table: Table, images: Sequence[str], id_column: str = "") -> Labels:
    """Returns the labels in a table, as for `read_labels`."""
    if len(table.columns) < 2:
        unusable = f" Not usable: {list_some(table.skipped)}." if table.skipped else ""
        raise UserError(
            f"{table.path} has no column of labels. Write a header row, a column of image names, and columns of "
            f"numbers or text as labels.{unusable}"
        )
    column = find_id_column(table, images, id_column)
    ids = table.names(column)
    if not ids:
        raise UserError(f"{table.path} only has a header row. Add a row for each image.")
    labels, notes = split_columns(table.labels(column))
    if not labels:
        raise UserError(f"{table.path} has no column of labels besides row numbers. Add a column of labels.")
    notes = [*table.notes(column), *notes]
    return Labels(ids, labels, columns_of_table=tuple(table.columns), notes_on_table=notes)


def read_partition(path: str | Path, images: Sequence[str] = (), id_column: str = "") -> Partition:
    """Reads a table, or a list with one name per line, that says which images are held out.

    The file is a table as for labels, `list_eval_partition.txt` of CelebA, or a list. A list names
    the held-out images. A table has the split of each image in its only column besides the name,
    or in one of `PARTITION_COLUMNS`. Raises UserError for an invalid file, or for an unknown
    split, and names the image.

    Args:
        path: The file.
        images: The names of the images, which show the column of names, as for `find_id_column`.
        id_column: The column of names, or "".
    """
    path = local_path(path)
    listed = read_list(path, TRAINING | HELD_OUT) if is_text_file(path) else None
    details: dict[str, Sequence[str]] = {}
    if listed is None:
        table = read_table(path)
        column = find_id_column(table, images, id_column)
        listed = table.names(column), table.labels(column)
        details = {"columns_of_table": tuple(table.columns), "notes_on_table": table.notes(column)}
    ids, columns = listed
    if not ids:
        raise UserError(f"{path} names no image. Add a line for each held-out image.")
    if not columns:
        return Partition(ids, np.ones(len(ids), bool), **details)
    name = _partition_column(path, columns)
    words = [text_of(value).lower() for value in columns[name].tolist()]
    _check_name(path, name, columns[name].dtype.kind == "O")
    for image, word in zip(ids, words, strict=True):
        if word not in TRAINING | HELD_OUT:
            problem = f"the unknown {shown(name)} {shown(word)}" if word else f"no {shown(name)}"
            raise UserError(
                f"{path} gives {shown(image)} {problem}. Use "
                f"{', '.join(sorted(TRAINING))} for training, and {', '.join(sorted(HELD_OUT))} for held-out images."
            )
    return Partition(ids, np.array([word in HELD_OUT for word in words], bool), **details)


def _partition_column(path: Path, columns: Mapping[str, np.ndarray]) -> str:
    candidates = [name for name in columns if name.lower() in PARTITION_COLUMNS]
    chosen = list(columns) if len(columns) == 1 else candidates
    if len(chosen) != 1:
        raise UserError(
            f"{path} has {len(columns):,} columns ({list_some(columns)}), {len(candidates)} of which are named "
            f"{', '.join(PARTITION_COLUMNS)}. Name exactly one column split, the one with the split of each image."
        )
    return chosen[0]


def _check_name(path: Path, name: str, is_text: bool) -> None:
    """Raises UserError if the header row is missing, or if 1 in the column may mean training."""
    # a column of numbers may be named test
    if name in ("0", "1", "2") or (is_text and name.lower() in TRAINING | HELD_OUT):
        raise UserError(f"{path} has no header row. Add one, such as `file,split`.")
    if not is_text and "train" in name.lower():
        raise UserError(
            f"{path} has numbers in the column {shown(name)}, and 1 means held out despite the name. Write train and "
            f"test."
        )


def common_folder(ids: Sequence[str]) -> str:
    """Returns the path of the folder that contains all images, with a slash at its end, or ""."""
    folders = set(_folders_of(ids))
    pairs = zip(min(folders, default=()), max(folders, default=()), strict=False)
    return "".join(f"{part}/" for part, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _folders_of(ids: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns the folders in the path of each image."""
    parts = functools.cache(lambda folder: PurePath(f"{folder}x").parts[:-1])  # many images share a folder
    split = (name.rpartition("/") for name in ids)
    return [
        parts(folder + slash) if file not in ("", ".") else PurePath(folder + slash + file).parts[:-1]
        for folder, slash, file in split
    ]


def folder_labels(ids: Sequence[str], held_out: str = "") -> dict[str, np.ndarray]:
    """Returns the top-level folder of each image as the label "folder".

    Skips a folder that contains all others, as in an archive of a folder. Skips the folder
    `held_out`. Skips train, val, test and similar folders if all folders are splits. So
    `train/cat/1.jpg` has the label `cat`. Raises UserError if an image is in no folder, or if all
    are in the same one.
    """
    folders = _folders_of(ids)
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
            f"{len(loose):,} of {len(ids):,} images are in no subfolder ({list_some(loose)}). Move each image to the "
            "folder of its class, or use a table of labels."
        )
    classes = [parts[0] for parts in folders]
    if len(set(classes)) < 2:
        raise UserError(
            f"All {len(ids):,} images are in the same subfolder ({list_some(set(classes))}), so all have one label. "
            "Give the parent of the class folders, or use a table of labels."
        )
    return {"folder": np.array(classes, object)}


def fingerprint(*splits: Mapping[str, np.ndarray]) -> str:
    """Returns a SHA-256 of the labels of some splits of a data set."""
    plain = [{name: values.tolist() for name, values in labels.items()} for labels in splits]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
