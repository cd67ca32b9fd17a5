"""Splits columns with several values per image, such as `Mass|Edema`, into a column per value."""

from collections.abc import Mapping

import numpy as np

from diffae_jax.runtime.errors import list_some, shown

SEPARATOR = "|"
MOST_VALUES = 100  # in a column; a column with more has texts, not lists


def split_columns(labels: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Splits columns with several values per image. Returns all labels, and notes about the split.

    The column `finding` with the values `Mass|Edema` and `Mass` becomes `finding=Edema` and
    `finding=Mass`. These are 1 if an image has the value, 0 if not, and NaN if it has no value.
    """
    columns, notes = {}, []
    for name, values in labels.items():
        parts = _split(values)
        columns |= {f"{name}={part}": column for part, column in parts.items()} or {name: values}
        if parts:
            notes.append(
                f"The column {shown(name)} has several values per image, separated by {SEPARATOR}. Each of its "
                f"{len(parts):,} values becomes a label with 0 and 1 ({list_some(parts)})."
            )
    return columns, notes


def _split(values: np.ndarray) -> dict[str, np.ndarray]:
    """Returns a column for each value in a list of values. Empty: the column has no lists."""
    if values.dtype.kind != "O" or not any(SEPARATOR in value for value in values):
        return {}
    unique, inverse = np.unique(values.astype(str), return_inverse=True)
    lists = [{part.strip() for part in text.split(SEPARATOR)} for text in unique]
    parts = sorted(set().union(*lists) - {""})
    if len(parts) > MOST_VALUES:
        return {}
    is_known = unique != ""
    columns = {part: np.array([part in items for items in lists], np.int64) for part in parts}
    if is_known.all():
        return {part: column[inverse] for part, column in columns.items()}
    return {part: np.where(is_known, column, np.nan)[inverse] for part, column in columns.items()}
