"""Reads CSV and Parquet files with PyArrow: names of images and columns of labels."""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diffae_jax.runtime.errors import UserError, shown

MISSING = ("", "na", "n/a", "nan", "null", "none")
UNNAMED_INDEX = "__index_level_"  # as pandas calls it


def read_cells(path: Path, delimiter: str, num_columns: int) -> list[Any]:
    """Returns the columns of a CSV with its header, as stripped text, without rows that are empty.

    Raises UserError, with the row, for one of another length, a quote without end and what is not UTF-8.
    """
    import pyarrow.compute as pc
    from pyarrow import csv, string

    content = path.read_bytes()
    names = list(map(str, range(num_columns)))
    with _arrow_errors_as_user_errors(path, "a table"):
        table = csv.read_csv(
            io.BytesIO(content),
            csv.ReadOptions(column_names=names, use_threads=False),  # several threads count no rows
            csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            csv.ConvertOptions(column_types=dict.fromkeys(names, string()), strings_can_be_null=False),
        )
    last = table.column(num_columns - 1)
    if content.count(b'"') % 2 and len(last) and "\n" in last[-1].as_py():
        raise UserError(f"{path} has a quote without end, in which its last rows lie: close it.")
    table = type(table).from_arrays([pc.utf8_trim_whitespace(column) for column in table.columns], names)
    is_empty = pc.equal(table.column(0), "")
    for column in table.columns[1:]:
        is_empty = pc.and_(is_empty, pc.equal(column, ""))
    return table.filter(pc.invert(is_empty)).columns


def labels_of_cells(texts: Any) -> np.ndarray:
    """Returns whole numbers where all are, floating point ones where all that are not missing are numbers, or text."""
    import pyarrow
    import pyarrow.compute as pc

    with contextlib.suppress(pyarrow.ArrowInvalid):
        return _labels(texts.cast(pyarrow.int64()))  # most labels, in a third of the time
    is_missing = pc.is_in(pc.utf8_lower(texts), value_set=pyarrow.array(MISSING))
    numbers = pc.replace_substring_regex(pc.if_else(is_missing, None, texts), pattern=r"^\+", replacement="")
    for kind in (pyarrow.int64(), pyarrow.float64()):
        with contextlib.suppress(pyarrow.ArrowInvalid):
            return _labels(numbers.cast(kind))
    return _labels(texts)


def read_parquet(path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """Returns the names of images, from the index that pandas wrote or the first column, and the other columns.

    Raises UserError for a damaged file and for columns of neither numbers nor text.
    """
    from pyarrow.parquet import ParquetFile

    with _arrow_errors_as_user_errors(path, "Parquet"):
        schema = ParquetFile(path).schema_arrow
        if not all(schema.names) or len(set(schema.names)) < len(schema.names):
            raise UserError(f"{path} must have a name of its own for each of its {len(schema.names):,} columns.")
        id_column = _id_column(path, schema)
        for field in schema:
            _check_type(path, field, is_id=field.name == id_column)
        # text as places in a list of different texts: the same text many times takes little room
        file = ParquetFile(path, read_dictionary=schema.names, page_checksum_verification=True)
        names = _names(_column(file, id_column))
        columns = {name: _labels(_column(file, name)) for name in schema.names if name != id_column}
        if id_column.startswith(UNNAMED_INDEX) and not _is_text(schema.field(id_column).type):
            _check_index(path, columns)
    return names, columns


@contextlib.contextmanager
def _arrow_errors_as_user_errors(path: Path, what: str) -> Iterator[None]:
    """Turns what PyArrow says of a file into a UserError with its name."""
    import pyarrow

    try:
        yield
    except UserError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as {what} ({shown(str(error))}): it is damaged or none.") from error


def _id_column(path: Path, schema: Any) -> str:
    """Returns the index that pandas wrote as a column, else the first column; row numbers are written as none."""
    if not schema.names:
        raise UserError(f"{path} has no columns: give one of names and others of labels.")
    described = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
    index = described.get("index_columns") if isinstance(described, dict) else None
    in_file = [name for name in index if name in schema.names] if isinstance(index, list) else []
    if len(in_file) > 1:
        raise UserError(f"{path} has an index of {len(in_file)} columns: one column must name the image.")
    return in_file[0] if in_file else schema.names[0]


def _check_index(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Raises UserError where numbers could be names of images or of the rows that pandas kept out of a longer table.

    Taken for names, the numbers of rows would give images the labels of others.
    """
    first, values = next(iter(columns.items()), ("", np.empty(0)))
    could_be_names = values.dtype.kind == "O" and "" not in values and len(set(values)) == len(values)
    if could_be_names:
        raise UserError(
            f"{path} has an index of numbers without a name, and names in {shown(first)}: give the index a name where "
            "it names the images, else write with index=False."
        )


def _check_type(path: Path, field: Any, is_id: bool) -> None:
    from pyarrow import types

    kind = field.type
    is_whole = types.is_integer(kind)
    is_number = is_whole or types.is_floating(kind) or types.is_boolean(kind) or types.is_null(kind)
    if not _is_text(kind) and not (is_whole if is_id else is_number):
        wanted = "names of images are text or whole numbers" if is_id else "labels are numbers or text"
        raise UserError(f"{path} has a column {shown(field.name)} of type {shown(str(kind))}, and {wanted}.")


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _column(file: Any, name: str) -> Any:
    """Returns a column. Raises ValueError where it is not whole, which PyArrow does not see unless asked."""
    column = file.read(columns=[name]).column(name)
    column.validate(full=True)
    if len(column) != file.metadata.num_rows:
        raise ValueError(f"{len(column):,} of {file.metadata.num_rows:,} values in a column")
    return column


def _names(column: Any) -> list[str]:
    return column.cast("string").fill_null("").to_pylist()


def _labels(column: Any) -> np.ndarray:
    """Returns whole numbers where none is missing, other numbers as floating point with NaN, or text with ""."""
    import pyarrow

    if _is_text(column.type):
        return np.concatenate([np.empty(0, object), *map(_texts, column.dictionary_encode().chunks)])
    if not column.null_count and not pyarrow.types.is_floating(column.type):
        with contextlib.suppress(pyarrow.ArrowInvalid):  # beyond 64 bits with sign
            return column.cast("int64").to_numpy()
    return column.cast("float64", safe=False).to_numpy()


def _texts(chunk: Any) -> np.ndarray:
    different = [text or "" for text in chunk.dictionary.to_pylist()]
    places = chunk.indices.fill_null(len(different)).to_numpy(zero_copy_only=False)
    return np.array([*different, ""], object)[places]
