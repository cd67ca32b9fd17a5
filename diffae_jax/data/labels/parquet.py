"""Reads the columns of Parquet files."""

import json
from pathlib import Path
from typing import Any

from diffae_jax.data.labels.arrow import arrow_errors_as_user_errors, is_number, is_text
from diffae_jax.data.labels.table import Table
from diffae_jax.runtime.errors import UserError


def read_parquet(path: Path) -> Table:
    """Reads the columns that hold numbers or text. Raises UserError for a damaged file."""
    from pyarrow.parquet import ParquetFile

    with arrow_errors_as_user_errors(path, "Parquet"):
        schema = ParquetFile(path).schema_arrow
        if not all(schema.names) or len(set(schema.names)) < len(schema.names):
            raise UserError(f"{path} has columns with no name or the same name. Give each column a unique name.")
        main = _main_column(path, schema)
        usable = [field.name for field in schema if _is_usable(field.type)]
        # a dictionary stores each repeated text once
        file = ParquetFile(path, read_dictionary=usable, page_checksum_verification=True)
        columns = {name: _column(file, name) for name in usable}
    main = main if main in columns else next(iter(columns), "")
    skipped = [f"{field.name} of type {field.type}" for field in schema if field.name not in columns]
    return Table(path, columns, main, skipped=skipped)


def _main_column(path: Path, schema: Any) -> str:
    """Returns the name of the pandas index if it is a column, else that of the first column."""
    if not schema.names:
        raise UserError(f"{path} has no columns. Write a column of image names, and columns of labels.")
    described = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
    index = described.get("index_columns") if isinstance(described, dict) else None
    in_file = [name for name in index if name in schema.names] if isinstance(index, list) else []
    if len(in_file) > 1:
        raise UserError(f"{path} has an index of {len(in_file)} columns. Write the image names in a single column.")
    return in_file[0] if in_file else schema.names[0]


def _is_usable(kind: Any) -> bool:
    from pyarrow import types

    return is_number(kind) or is_text(kind) or types.is_null(kind)


def _column(file: Any, name: str) -> Any:
    """Reads a column. Raises ValueError if it is damaged: PyArrow does not check by default."""
    column = file.read(columns=[name]).column(name)
    column.validate(full=True)
    if len(column) != file.metadata.num_rows:
        raise ValueError(f"a column has {len(column):,} values instead of {file.metadata.num_rows:,}")
    return column
