"""Reads a table of images in any format."""

from collections.abc import Callable
from pathlib import Path

from diffae_jax.data.labels.json_files import read_json_lines, read_json_table
from diffae_jax.data.labels.parquet import read_parquet
from diffae_jax.data.labels.spreadsheet import read_spreadsheet
from diffae_jax.data.labels.stored_arrays import read_arrays
from diffae_jax.data.labels.table import PARQUET_SUFFIXES, Table
from diffae_jax.data.labels.text_files import read_text_table
from diffae_jax.runtime.files import check_file, os_errors_as_user_errors

READERS: dict[str, Callable[[Path], Table]] = {  # by suffix; all other files are text
    **dict.fromkeys(PARQUET_SUFFIXES, read_parquet),
    ".json": read_json_table,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".xlsx": read_spreadsheet,
    ".h5": read_arrays,
    ".hdf5": read_arrays,
    ".hdf": read_arrays,
    ".npz": read_arrays,
}
PARQUET_MAGIC = b"PAR1"


def read_table(path: Path) -> Table:
    """Reads a table of images. Its suffix or its first bytes show the format.

    Raises UserError, with the line or row, for an invalid table.
    """
    check_file(path)
    with os_errors_as_user_errors(path):
        return (_reader_of(path) or read_text_table)(path)


def is_text_file(path: Path) -> bool:
    """Returns whether a table or list is a text file. Raises UserError if it is missing."""
    check_file(path)
    with os_errors_as_user_errors(path):
        return _reader_of(path) is None


def _reader_of(path: Path) -> Callable[[Path], Table] | None:
    with path.open("rb") as file:
        is_parquet = file.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC
    return read_parquet if is_parquet else READERS.get(path.suffix.lower())
