"""A table of images: the name of each image in one column, and a label in each other column."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffae_jax.data.labels.arrow import is_text, labels_of
from diffae_jax.runtime.errors import UserError, list_some, shown

PARQUET_SUFFIXES = (".parquet", ".pq")
TABLE_SUFFIXES = (".csv", ".tsv", ".txt", *PARQUET_SUFFIXES, ".json", ".jsonl", ".ndjson", ".xlsx")
IMAGE = re.compile(r"\.(png|jpe?g|webp|bmp|tiff?|gif|npy|nii|nii\.gz|dcm)$", re.IGNORECASE)
UNNAMED = "Unnamed: 0"  # the name that pandas gives to a first column without a name
ID_HEADERS = (  # without blanks and punctuation
    *("id", "image", "imageid", "imageindex", "imagename", "imagepath", "imagefile", "img", "imgid", "imgname"),
    *("imgpath", "file", "filename", "filepath", "name", "path"),
)
ROW_NUMBERS = re.compile(r"Unnamed: \d|__index_level_\d")  # the start of the name of an unnamed index


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """The columns of a table.

    Args:
        path: The file, for messages.
        columns: By name, a chunked array of PyArrow with numbers or text.
        main: The column that most likely holds the image names: the first, or an index of pandas.
        first_row: The number of the first row in messages.
        convert: Returns the labels in a column: integers, floats (missing: NaN) or text
            (missing: "").
        skipped: Descriptions of columns that hold neither numbers nor text.
    """

    path: Path
    columns: Mapping[str, Any]
    main: str
    first_row: int = 1
    convert: Callable[[Any], np.ndarray] = labels_of
    skipped: Sequence[str] = ()

    def texts(self, column: str) -> list[str]:
        """Returns the values of a column as text, with "" for missing ones."""
        return self.columns[column].cast("string").fill_null("").to_pylist()

    def names(self, column: str) -> tuple[str, ...]:
        """Returns the image names in a column.

        Raises UserError, with the row, if one is missing or occurs twice, and for other values
        than text and integers.
        """
        if not may_be_names(self.columns[column]):
            kind = shown(str(self.columns[column].type))
            raise UserError(
                f"{self.path} has a column {shown(column)} of type {kind}, but image names must be text or integers. "
                f"Choose another column."
            )
        return unique_names(self.path, enumerate(self.texts(column), self.first_row))

    def labels(self, id_column: str) -> dict[str, np.ndarray]:
        """Returns the labels in all columns except that of the names and row numbers."""
        columns = {name: values for name, values in self.columns.items() if name != id_column}
        labels = {name: self.convert(values) for name, values in columns.items()}
        return {name: values for name, values in labels.items() if not _are_row_numbers(name, values)}

    def notes(self, id_column: str) -> list[str]:
        """Returns notes about the column of the names and about columns that are not used."""
        notes = []
        if id_column != self.main:
            notes.append(f"The names of the images are in the column {shown(id_column)} of {self.path}.")
        if count := len(self.skipped):
            notes.append(
                f"{count:,} of {count + len(self.columns):,} columns of {self.path} are not used, because they hold "
                f"neither numbers nor text ({list_some(self.skipped)})."
            )
        return notes


def may_be_names(column: Any) -> bool:
    """Returns whether a column holds text or integers, as image names do."""
    from pyarrow import types

    kind = column.type
    return is_text(kind) or types.is_integer(kind) or types.is_null(kind)


def is_id_header(name: str) -> bool:
    """Returns whether a column has a name such as `Image ID`, which suggests image names."""
    return re.sub(r"[\W_]", "", name.lower()) in ID_HEADERS


def is_unnamed_index(name: str) -> bool:
    """Returns whether a column has the name that pandas gives to an index without a name."""
    return ROW_NUMBERS.match(name) is not None


def _are_row_numbers(name: str, values: np.ndarray) -> bool:
    return is_unnamed_index(name) and values.dtype.kind in "if"


def named_columns(path: Path, header: Sequence[str], columns: Sequence[Any]) -> dict[str, Any]:
    """Returns columns by the names in a header, without empty columns that have no name.

    A first column without a name is an index of pandas. Raises UserError if another column has no
    name, or if two have the same.
    """
    named: dict[str, Any] = {}
    for number, (name, values) in enumerate(zip(header, columns, strict=True), 1):
        if not name and _is_empty(values):
            continue
        name = name or (UNNAMED if number == 1 else "")
        if not name or name in named:
            problem = f"{shown(name)} occurs twice" if name else f"column {number:,} has none"
            raise UserError(f"{path} must have a unique name for each column in its first row, but {problem}.")
        named[name] = values
    return named


def _is_empty(values: Any) -> bool:
    import pyarrow.compute as pc

    return values.null_count == len(values) or (is_text(values.type) and not pc.any(pc.not_equal(values, "")).as_py())


def unique_names(path: Path, names: Iterable[tuple[int, str]]) -> tuple[str, ...]:
    """Returns image names without row numbers. Raises UserError if one is empty or repeated."""
    rows: dict[str, int] = {}
    for row, name in names:
        if not name:
            raise UserError(f"{path} has no image name in row {row:,}. Add the name, or remove the row.")
        if name in rows:
            raise UserError(
                f"{path} has the image {shown(name)} in rows {rows[name]:,} and {row:,}. Give each image one row."
            )
        rows[name] = row
    return tuple(rows)
