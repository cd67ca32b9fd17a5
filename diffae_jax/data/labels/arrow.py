"""Columns of tables as PyArrow arrays: reads them from a CSV, and converts them to labels."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffae_jax.runtime.errors import UserError, shown

MISSING = ("", "na", "n/a", "#n/a", "nan", "null", "none")


def read_cells(path: Path, delimiter: str, num_columns: int) -> list[Any]:
    """Returns the columns of a CSV as stripped text, each with its header first.

    Drops empty rows. Raises UserError, with the row, for a wrong number of cells, an open quote,
    or text that is not UTF-8.
    """
    import pyarrow.compute as pc
    from pyarrow import csv, string

    content = path.read_bytes()
    names = list(map(str, range(num_columns)))
    with arrow_errors_as_user_errors(path, "a table"):
        table = csv.read_csv(
            io.BytesIO(content),
            csv.ReadOptions(column_names=names, use_threads=False),  # with threads, errors have no row number
            csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            csv.ConvertOptions(column_types=dict.fromkeys(names, string()), strings_can_be_null=False),
        )
    last = table.column(num_columns - 1)
    if content.count(b'"') % 2 and len(last) and "\n" in last[-1].as_py():
        raise UserError(f"{path} has an unclosed quote, so its last rows are read as one cell. Close the quote.")
    table = type(table).from_arrays([pc.utf8_trim_whitespace(column) for column in table.columns], names)
    is_empty = pc.equal(table.column(0), "")
    for column in table.columns[1:]:
        is_empty = pc.and_(is_empty, pc.equal(column, ""))
    return table.filter(pc.invert(is_empty)).columns


def labels_of_cells(texts: Any, *, decimal_comma: bool = False) -> np.ndarray:
    """Converts texts to integers or, if values are missing, to floats. Keeps other texts.

    With `decimal_comma`, 20,5 is a number, as spreadsheets of many languages write it.
    """
    import pyarrow
    import pyarrow.compute as pc

    if decimal_comma:
        points = pc.replace_substring_regex(texts, pattern=r"^([+-]?[0-9]+),([0-9]+)$", replacement=r"\1.\2")
        numbers = labels_of_cells(points)
        return numbers if numbers.dtype.kind in "if" else labels_of_cells(texts)
    with contextlib.suppress(pyarrow.ArrowInvalid):
        return labels_of(texts.cast(pyarrow.int64()))  # three times as fast for most labels
    is_missing = pc.is_in(pc.utf8_lower(texts), value_set=pyarrow.array(MISSING))
    numbers = pc.replace_substring_regex(pc.if_else(is_missing, None, texts), pattern=r"^\+", replacement="")
    for kind in (pyarrow.int64(), pyarrow.float64()):
        with contextlib.suppress(pyarrow.ArrowInvalid):
            return labels_of(numbers.cast(kind))
    return labels_of(texts)


def labels_of_values(column: Any) -> np.ndarray:
    """Converts a column of `array_of`. Text is read like the cells of a CSV."""
    return labels_of_cells(column) if is_text(column.type) else labels_of(column)


def array_of(values: Sequence[Any]) -> Any:
    """Returns Python values as integers, floats or, if one of them is neither, as text."""
    import pyarrow

    known = [value for value in values if value is not None]
    if not all(isinstance(value, bool | int | float) for value in known):
        return pyarrow.chunked_array([[None if value is None else text_of(value) for value in values]], "string")
    if not any(isinstance(value, float) for value in known):
        with contextlib.suppress(OverflowError):  # exceeds int64
            return pyarrow.chunked_array([[None if value is None else int(value) for value in values]], "int64")
    with contextlib.suppress(OverflowError):  # exceeds float64
        return pyarrow.chunked_array([[None if value is None else float(value) for value in values]], "float64")
    return pyarrow.chunked_array([[None if value is None else str(value) for value in values]], "string")


def text_of(value: Any) -> str:
    """Formats a value. A whole float has no decimals."""
    return "" if value != value else str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


@contextlib.contextmanager
def arrow_errors_as_user_errors(path: Path, kind: str) -> Iterator[None]:
    """Converts errors of PyArrow into a UserError with the path."""
    import pyarrow

    try:
        yield
    except UserError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as {kind} ({shown(str(error))}). Check the file.") from error


def labels_of_column(column: Any) -> np.ndarray | None:
    """Returns the labels in an Arrow column of numbers or text, or None for any other type."""
    return labels_of(column) if is_number(column.type) or is_text(column.type) else None


def is_number(kind: Any) -> bool:
    """Returns whether a type is that of integers, floats or truth values."""
    from pyarrow import types

    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def is_text(kind: Any) -> bool:
    """Returns whether a type is that of text, or of a dictionary of text."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def labels_of(column: Any) -> np.ndarray:
    """Returns integers if none is missing, other numbers as floats with NaN, or text with ""."""
    import pyarrow

    if is_text(column.type):
        return np.concatenate([np.empty(0, object), *map(_texts, column.dictionary_encode().chunks)])
    if not column.null_count and not pyarrow.types.is_floating(column.type):
        with contextlib.suppress(pyarrow.ArrowInvalid):  # exceeds int64
            return column.cast("int64").to_numpy()
    return column.cast("float64", safe=False).to_numpy()


def _texts(chunk: Any) -> np.ndarray:
    unique = [text or "" for text in chunk.dictionary.to_pylist()]
    indices = chunk.indices.fill_null(len(unique)).to_numpy(zero_copy_only=False)
    return np.array([*unique, ""], object)[indices]
