"""Labels of images from a table: a CSV or TSV file whose first column names the image."""

import csv
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from diffae_jax.errors import UserError, name_some, shown
from diffae_jax.files import check_file, told

MAX_ROWS = 10_000_000
MAX_COLUMNS = 1000
MAX_LINE_BYTES = 2**16


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """Columns of labels by name, a row for each of `ids`: float (NaN is missing), whole numbers, or text ("" is)."""

    ids: Sequence[str]
    columns: dict[str, np.ndarray]

    def of(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the columns in the order of these ids of images; those of images without labels are missing.

        Names match whole, else without their folders, else without suffix too, where only one image and one row are
        called so. Raises UserError where none matches.
        """
        rows = self._rows(ids)
        if not (rows >= 0).any():
            raise UserError(
                f"None of the {len(self.ids):,} labelled ids ({name_some(self.ids)}) is one of the {len(ids):,} images "
                f"({name_some(ids)}): the first column of labels holds their file names."
            )
        return {name: _taken(values, rows) for name, values in self.columns.items()}

    def unmatched(self, ids: Sequence[str]) -> list[str]:
        """Returns the labelled ids, in order, that are none of these images."""
        matched = set(self._rows(ids).tolist())
        return [name for row, name in enumerate(self.ids) if row not in matched]

    def _rows(self, ids: Sequence[str]) -> np.ndarray:
        rows = np.full(len(ids), -1)
        for key in (str, lambda name: PurePath(name).name, lambda name: PurePath(name).stem):
            ours, theirs = _only(key, ids), _only(key, self.ids)
            for name in ours.keys() & theirs.keys():
                if rows[ours[name]] < 0:
                    rows[ours[name]] = theirs[name]
        return rows


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
    """Reads a table in UTF-8 with a header, of at most 10 million rows; .tsv files are separated by tabs.

    Raises UserError, with the line, for what is no such table and for an image that is there twice.
    """
    path = Path(path).expanduser()
    check_file(path)
    rows = _rows_of(path)
    _, header = next(rows, (0, []))
    names = header[1:]
    if not names:
        raise UserError(
            f"{path} has no column of labels: the first line names the columns, and the first is the image."
        )
    if len(names) > MAX_COLUMNS or not all(names) or len(set(names)) < len(names):
        raise UserError(
            f"{path} must have up to {MAX_COLUMNS:,} columns, each with a name of its own, in its first line."
        )
    ids: dict[str, None] = {}
    columns: list[list[str]] = [[] for _ in names]
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(f"{path} has {len(row)} values in line {line:,}, and {len(header)} names in its first.")
        if not row[0] or row[0] in ids:
            is_what = f"the image {shown(row[0])} for the second time" if row[0] else "no name of an image"
            raise UserError(f"{path} has {is_what} in line {line:,}: give every image one line.")
        if len(ids) == MAX_ROWS:
            raise UserError(f"{path} has more than {MAX_ROWS:,} rows: leave out images that are not in the data set.")
        ids[row[0]] = None
        for column, value in zip(columns, row[1:], strict=True):
            column.append(value)
    if not ids:
        raise UserError(f"{path} has the names of columns alone: give every image a line.")
    return Labels(tuple(ids), {name: _typed(column) for name, column in zip(names, columns, strict=True)})


def fingerprint(*splits: Mapping[str, np.ndarray]) -> str:
    """Returns a SHA-256 of the labels of some splits of a data set."""
    plain = [{name: values.tolist() for name, values in labels.items()} for labels in splits]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _rows_of(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows that are not blank, stripped, with the line that each ends in."""
    with told(path), path.open("rb") as file:
        reader = csv.reader(_lines(file, path), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            for row in reader:
                if any(row):
                    yield reader.line_num, [value.strip() for value in row]
        except csv.Error as error:
            raise UserError(f"{path} is no table of CSV: {shown(str(error))} in line {reader.line_num:,}.") from error


def _lines(file: Any, path: Path) -> Iterator[str]:
    number = 0
    while content := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(content) > MAX_LINE_BYTES:
            raise UserError(
                f"{path} has more than {MAX_LINE_BYTES:,} bytes in line {number:,}: it is no table of labels."
            )
        try:
            yield content.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not text in UTF-8, first in line {number:,}: save it as that.") from error


def _typed(column: list[str]) -> np.ndarray:
    """Returns whole numbers where all are, floating point ones where all that are not missing are numbers, or text."""
    is_text = any("_" in value for value in column)  # Python would read 1_0 as 10
    for parse, dtype in () if is_text else ((int, np.int64), (lambda value: float(value or "nan"), np.float64)):
        try:
            return np.array([parse(value) for value in column], dtype)
        except (ValueError, OverflowError):
            continue
    # as objects: an array of text takes for each the room of the longest
    return np.array(column, object)
