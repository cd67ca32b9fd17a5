"""Reads the first sheet of xlsx files, with openpyxl."""

import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffae_jax.data.labels.arrow import array_of, labels_of_values, text_of
from diffae_jax.data.labels.table import Table, named_columns
from diffae_jax.runtime.errors import UserError, reader_errors_as_user_errors


def read_spreadsheet(path: Path) -> Table:
    """Reads the first sheet. Its first row that is not empty holds the names of the columns.

    Raises UserError for a damaged file, or for a row that is longer than the header.
    """
    if importlib.util.find_spec("openpyxl") is None:
        raise UserError(f'{path} needs openpyxl: pip install "diffae_jax[xlsx]".')
    with reader_errors_as_user_errors(path, "xlsx", "Save it again, or as CSV"):
        rows = [row for row in _rows(path) if row]
    if not rows:
        return Table(path, {}, "")
    header = [text_of(name) if name is not None else "" for name in rows[0]]
    longest = max(range(len(rows)), key=lambda row: len(rows[row]))
    if len(rows[longest]) > len(header):
        raise UserError(
            f"{path} has {len(rows[longest])} values in row {longest + 1:,}, but {len(header)} in its header row. Name "
            f"each column."
        )
    columns = [array_of([row[i] if i < len(row) else None for row in rows[1:]]) for i in range(len(header))]
    named = named_columns(path, header, columns)
    return Table(path, named, next(iter(named), ""), first_row=2, convert=labels_of_values)


def _rows(path: Path) -> Iterator[list[Any]]:
    """Yields the values of each row of the first sheet, up to its last value."""
    import openpyxl

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on styles and extensions, which are not read
        workbook = openpyxl.load_workbook(path, read_only=True, data_only=True)
        sheet = workbook.worksheets[0]
        sheet.reset_dimensions()  # the file may declare any size
        for cells in sheet.iter_rows(values_only=True):
            row = [value.strip() or None if isinstance(value, str) else value for value in cells]
            while row and row[-1] is None:
                row.pop()
            yield row
        workbook.close()
