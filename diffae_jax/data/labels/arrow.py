"""Reads image names and columns of labels from CSV and Parquet files, with PyArrow."""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diffae_jax.runtime.errors import UserError, shown

MISSING = ("", "na", "n/a", "nan", "null", "none")
UNNAMED_INDEX = "__index_level_"  # the name that pandas gives it


def read_cells(path: Path, delimiter: str, num_columns: int) -> list[Any]:
    """Returns the columns of a CSV and its header as stripped text, without empty rows.

    Raises UserError, with the row, for a wrong number of cells, an open quote, or text that is not
    UTF-8.
    """
    import pyarrow.compute as pc
    from pyarrow import csv, string

    content = path.read_bytes()
    names = list(map(str, range(num_columns)))
    with _arrow_errors_as_user_errors(path, "a table"):
        table = csv.read_csv(
            io.BytesIO(content),
            csv.ReadOptions(column_names=names, use_threads=False),  # with threads, errors have no row number
            csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            csv.ConvertOptions(column_types=dict.fromkeys(names, string()), strings_can_be_null=False),
        )
    last = table.column(num_columns - 1)
    if content.count(b'"') % 2 and len(last) and "\n" in last[-1].as_py():
        raise UserError(f"{path} has a quote that is never closed, so it contains the last rows: close it.")
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
        return _labels(texts.cast(pyarrow.int64()))  # three times as fast for most labels
    is_missing = pc.is_in(pc.utf8_lower(texts), value_set=pyarrow.array(MISSING))
    numbers = pc.replace_substring_regex(pc.if_else(is_missing, None, texts), pattern=r"^\+", replacement="")
    for kind in (pyarrow.int64(), pyarrow.float64()):
        with contextlib.suppress(pyarrow.ArrowInvalid):
            return _labels(numbers.cast(kind))
    return _labels(texts)


def read_parquet(path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """Returns image names, from the pandas index or the first column, and the other columns.

    Raises UserError for a damaged file, and for columns that hold neither numbers nor text.
    """
    from pyarrow.parquet import ParquetFile

    with _arrow_errors_as_user_errors(path, "Parquet"):
        schema = ParquetFile(path).schema_arrow
        if not all(schema.names) or len(set(schema.names)) < len(schema.names):
            raise UserError(f"{path} has {len(schema.names):,} columns, each of which must have a unique name.")
        id_column = _id_column(path, schema)
        for field in schema:
            _check_type(path, field, is_id=field.name == id_column)
        # a dictionary stores each repeated text once
        file = ParquetFile(path, read_dictionary=schema.names, page_checksum_verification=True)
        names = _names(_column(file, id_column))
        columns = {name: _labels(_column(file, name)) for name in schema.names if name != id_column}
        if id_column.startswith(UNNAMED_INDEX) and not _is_text(schema.field(id_column).type):
            _check_index(path, columns)
    return names, columns


@contextlib.contextmanager
def _arrow_errors_as_user_errors(path: Path, kind: str) -> Iterator[None]:
    """Converts errors of PyArrow into a UserError with the path."""
    import pyarrow

    try:
        yield
    except UserError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as {kind} ({shown(str(error))}): check the file.") from error


def _id_column(path: Path, schema: Any) -> str:
    """Returns the name of the pandas index if it is a column, else that of the first column."""
    if not schema.names:
        raise UserError(f"{path} has no columns: the first must hold image names, and the others labels.")
    described = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
    index = described.get("index_columns") if isinstance(described, dict) else None
    in_file = [name for name in index if name in schema.names] if isinstance(index, list) else []
    if len(in_file) > 1:
        raise UserError(f"{path} has an index of {len(in_file)} columns: a single column must hold the image names.")
    return in_file[0] if in_file else schema.names[0]


def _check_index(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Raises UserError if an unnamed index of numbers may hold row numbers, not image names.

    Row numbers of a filtered table, used as names, would assign labels to the wrong images.
    """
    first, values = next(iter(columns.items()), ("", np.empty(0)))
    could_be_names = values.dtype.kind == "O" and "" not in values and len(set(values)) == len(values)
    if could_be_names:
        raise UserError(
            f"{path} is ambiguous: image names may be its unnamed index of numbers or the column {shown(first)}. Give "
            "the index a name if it holds the image names, else write the table with index=False."
        )


def _check_type(path: Path, field: Any, is_id: bool) -> None:
    from pyarrow import types

    kind = field.type
    is_whole = types.is_integer(kind)
    is_number = is_whole or types.is_floating(kind) or types.is_boolean(kind) or types.is_null(kind)
    if not _is_text(kind) and not (is_whole if is_id else is_number):
        valid = "image names must be text or integers" if is_id else "labels must be numbers or text"
        raise UserError(f"{path} has a column {shown(field.name)} of type {shown(str(kind))}, but {valid}.")


def labels_of_column(column: Any) -> np.ndarray | None:
    """Returns the labels in an Arrow column of numbers or text, or None for any other type."""
    from pyarrow import types

    kind = column.type
    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    return _labels(column) if is_number or _is_text(kind) else None


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _column(file: Any, name: str) -> Any:
    """Reads a column. Raises ValueError if it is damaged: PyArrow does not check by default."""
    column = file.read(columns=[name]).column(name)
    column.validate(full=True)
    if len(column) != file.metadata.num_rows:
        raise ValueError(f"{len(column):,} of {file.metadata.num_rows:,} values in a column")
    return column


def _names(column: Any) -> list[str]:
    return column.cast("string").fill_null("").to_pylist()


def _labels(column: Any) -> np.ndarray:
    """Returns integers if none is missing, other numbers as floats with NaN, or text with ""."""
    import pyarrow

    if _is_text(column.type):
        return np.concatenate([np.empty(0, object), *map(_texts, column.dictionary_encode().chunks)])
    if not column.null_count and not pyarrow.types.is_floating(column.type):
        with contextlib.suppress(pyarrow.ArrowInvalid):  # exceeds int64
            return column.cast("int64").to_numpy()
    return column.cast("float64", safe=False).to_numpy()


def _texts(chunk: Any) -> np.ndarray:
    unique = [text or "" for text in chunk.dictionary.to_pylist()]
    indices = chunk.indices.fill_null(len(unique)).to_numpy(zero_copy_only=False)
    return np.array([*unique, ""], object)[indices]
