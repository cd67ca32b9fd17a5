"""Columns of labels from one record per image, as JSON files hold them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Scalar = bool | int | float | str


def scalars_of(record: Any) -> dict[str, Scalar]:
    """Returns the values of a JSON object that are numbers or text. Other values are no labels."""
    if not isinstance(record, Mapping):
        return {}
    return {name: value for name, value in record.items() if isinstance(value, Scalar)}


def columns_of(records: Sequence[Mapping[str, Scalar]]) -> dict[str, np.ndarray]:
    """Returns the columns of some records by name, in the order in which the names first occur.

    A column holds integers, floats (missing: NaN), or text (missing: ""). A column with both
    numbers and text becomes text.
    """
    names = dict.fromkeys(name for record in records for name in record)
    return {name: _column([record.get(name) for record in records]) for name in names}


def _column(values: Sequence[Scalar | None]) -> np.ndarray:
    known = [value for value in values if value is not None]
    if any(isinstance(value, str) for value in known):
        return np.array(["" if value is None else str(value) for value in values], object)
    is_whole = not any(isinstance(value, float) for value in known) and len(known) == len(values)
    if is_whole and all(-(2**63) <= value < 2**63 for value in known):
        return np.array(values, np.int64)
    return np.array([np.nan if value is None else value for value in values], np.float64)
