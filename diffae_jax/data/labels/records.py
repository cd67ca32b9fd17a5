"""Columns of labels from one record per image, as JSON files hold them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffae_jax.data.labels.arrow import array_of, labels_of_values

Scalar = bool | int | float | str


def scalars_of(record: Any) -> dict[str, Scalar]:
    """Returns the values of a JSON object that are numbers or text. Other values are no labels."""
    if not isinstance(record, Mapping):
        return {}
    return {name: value for name, value in record.items() if isinstance(value, Scalar)}


def columns_of(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Returns the values of records by name, in the order in which the names first occur.

    A value that a record lacks is None.
    """
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [record.get(name) for record in records] for name in names}


def labels_of_columns(columns: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
    """Converts columns of Python values to labels.

    A column becomes integers, floats (missing: NaN), or text (missing: ""). A column with both
    numbers and text becomes text.
    """
    return {name: labels_of_values(array_of(values)) for name, values in columns.items()}
