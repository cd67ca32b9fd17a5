"""Reads labels from the arrays of HDF5 and npz files."""

from pathlib import Path

from diffae_jax.data.formats.arrays import read_columns
from diffae_jax.data.labels.table import Table


def read_arrays(path: Path) -> Table:
    """Reads an array of names, `ids`, and the arrays of labels in its group.

    Raises UserError if there is no such array, or more than one.
    """
    import pyarrow

    main, columns = read_columns(path)
    kinds = {name: "string" if values.dtype.kind == "O" else values.dtype.name for name, values in columns.items()}
    return Table(path, {name: pyarrow.chunked_array([values], kinds[name]) for name, values in columns.items()}, main)
