"""Reads the columns of a Parquet file, with PyArrow, which is an optional library."""

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np

from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.files import parse_json

MAX_VALUES = 500_000_000  # a file of a few bytes can hold any number of equal ones
UNNAMED_INDEX = "__index_level_"  # as pandas calls it


def read_parquet(
    path: Path, file: io.BufferedReader, most_rows: int, most_columns: int
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Returns the names of images, from the index that pandas wrote or the first column, and the other columns.

    Raises UserError where PyArrow is missing, before reading for a file of too many rows, columns or values, and for
    columns of neither numbers nor text.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(f'{path} needs PyArrow: pip install "diffae_jax[parquet]", or give a .csv.')
    import pyarrow

    try:
        return _read(path, file, most_rows, most_columns)
    except UserError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as Parquet ({shown(str(error))}): it is damaged.") from error


def _read(
    path: Path, file: io.BufferedReader, most_rows: int, most_columns: int
) -> tuple[list[str], dict[str, np.ndarray]]:
    from pyarrow.parquet import ParquetFile, read_metadata

    metadata = read_metadata(file)
    _check_size(path, metadata, most_rows, most_columns)
    types = {field.name: field.type for field in metadata.schema.to_arrow_schema()}
    id_column = _id_column(path, metadata, list(types))
    for name, kind in types.items():
        _check_type(path, name, kind, is_id=name == id_column)
    if len(types) < metadata.num_columns or not all(types):
        raise UserError(f"{path} must have a name of its own for each of its {metadata.num_columns:,} columns.")
    # text as places in a list of different texts: the same text many times takes little room
    table = ParquetFile(file, metadata=metadata, read_dictionary=list(types), page_checksum_verification=True)
    names = _names(_column(table, id_column), types[id_column])
    columns = {  # one at a time, so that no second copy of all is held
        name: _values(_column(table, name), kind) for name, kind in types.items() if name != id_column
    }
    if id_column.startswith(UNNAMED_INDEX) and not _is_text(types[id_column]):
        _check_index(path, columns)
    return names, columns


def _check_size(path: Path, metadata: Any, most_rows: int, most_columns: int) -> None:
    num_rows, num_columns = metadata.num_rows, metadata.num_columns
    if num_rows > most_rows:
        raise UserError(f"{path} has more than {most_rows:,} rows: leave out images that are not in the data set.")
    if not 1 <= num_columns <= most_columns + 1:
        raise UserError(f"{path} has {num_columns:,} columns: give one of names and up to {most_columns:,} of labels.")
    if num_rows * num_columns > MAX_VALUES:
        raise UserError(
            f"{path} has {num_rows * num_columns:,} values, of {MAX_VALUES:,} at most: leave out columns or images."
        )


def _id_column(path: Path, metadata: Any, columns: list[str]) -> str:
    """Returns the index that pandas wrote as a column, else the first column; row numbers are written as none."""
    described = parse_json((metadata.metadata or {}).get(b"pandas", b"{}"), path)
    index = described.get("index_columns") if isinstance(described, dict) else None
    written = [name for name in index if isinstance(name, str) and name in columns] if isinstance(index, list) else []
    if len(written) > 1:
        raise UserError(f"{path} has an index of {len(written)} columns: one column must name the image.")
    return written[0] if written else columns[0]


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


def _check_type(path: Path, name: str, kind: Any, is_id: bool) -> None:
    from pyarrow import types

    is_whole = types.is_integer(kind)
    is_number = is_whole or types.is_floating(kind) or types.is_boolean(kind) or types.is_null(kind)
    if not _is_text(kind) and not (is_whole if is_id else is_number):
        wanted = "names of images are text or whole numbers" if is_id else "labels are numbers or text"
        raise UserError(f"{path} has a column {shown(name)} of type {shown(str(kind))}, and {wanted}.")


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _column(table: Any, name: str) -> Any:
    """Returns a column. Raises ValueError where it is not whole, which PyArrow does not see unless asked."""
    column = table.read(columns=[name]).column(name)
    column.validate(full=True)
    if len(column) != table.metadata.num_rows:
        raise ValueError(f"{len(column):,} of {table.metadata.num_rows:,} values in a column")
    return column


def _names(column: Any, kind: Any) -> list[str]:
    import pyarrow

    return _values(column, kind).tolist() if _is_text(kind) else column.cast(pyarrow.string()).fill_null("").to_pylist()


def _values(column: Any, kind: Any) -> np.ndarray:
    """Returns whole numbers where none is missing, other numbers as floating point with NaN, or text with ""."""
    import pyarrow

    if _is_text(kind):
        return np.concatenate([np.empty(0, object), *map(_texts, column.chunks)])
    if not column.null_count and not pyarrow.types.is_floating(kind):
        try:
            return column.cast(pyarrow.int64()).to_numpy()
        except pyarrow.ArrowInvalid:  # beyond 64 bits with sign
            pass
    return column.cast(pyarrow.float64(), safe=False).to_numpy()


def _texts(chunk: Any) -> np.ndarray:
    different = [text or "" for text in chunk.dictionary.to_pylist()]
    places = chunk.indices.fill_null(len(different)).to_numpy(zero_copy_only=False)
    return np.array([*different, ""], object)[places]
