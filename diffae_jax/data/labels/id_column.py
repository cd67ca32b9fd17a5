"""Finds the column of a table that holds the names of the images."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from diffae_jax.data.labels.arrow import MISSING
from diffae_jax.data.labels.rows import NAME_THE_COLUMN, SUFFIX, Rows, refuse_unmatched
from diffae_jax.data.labels.table import Table, is_id_header, is_unnamed_index, may_be_names
from diffae_jax.runtime.errors import UserError, list_some, shown

NO_NAME = rf"(?i)^([+-]?[0-9.,]+(e[+-]?[0-9]+)?|{'|'.join(MISSING)})$"  # numbers and missing values


def find_id_column(table: Table, images: Sequence[str], named: str = "") -> str:
    """Returns the column that holds the names of the images: `named`, or the best match.

    The best match is the column whose values match the most images. Numbers count only in the main
    column and under a header such as `id`: ages would match images called 1.png to 99.png. An
    unnamed index of numbers is used only if no other column holds the name of an image.

    Args:
        table: The table.
        images: The names of the images. Empty: the main column is the best match.
        named: The name of the column, or "".

    Raises:
        UserError: There is no column `named`, or two columns match an image with different rows,
            or an unnamed index may hold row numbers.
    """
    if named:
        if named not in table.columns:
            raise UserError(f"{table.path} has no column {shown(named)}. Its columns are {list_some(table.columns)}.")
        return named
    if not table.columns or not len(table.columns[table.main]):
        return table.main
    if not images:
        return _check_index(table, ambiguous=True)
    files = _files(images)
    names = {column: _names(table, column, files) for column in table.columns}
    matches = {column: Rows(texts).rows_of(images) for column, texts in names.items() if texts}
    counts = {column: np.count_nonzero(rows >= 0) for column, rows in matches.items()}
    if matches:
        best = max(counts, key=lambda column: (counts[column], column == table.main))
        _check_agreement(table, matches, best, images)
        return best
    is_matched = bool((Rows(table.texts(table.main)).rows_of(images) >= 0).any())
    column = _check_index(table, ambiguous=is_matched)
    if not is_matched:
        refuse_unmatched(table.texts(column), images, "table", table.columns)
    return column


def _names(table: Table, column: str, files: Any) -> list[str]:
    """Returns the values that may be image names, or [] if none is the name of one of `files`."""
    import pyarrow.compute as pc

    values = table.columns[column]
    numbers_count = is_id_header(column) or (column == table.main and not is_unnamed_index(column))
    if not may_be_names(values):
        return []
    unique = values.unify_dictionaries().unique().cast("string").drop_null()
    if not numbers_count:
        unique = unique.filter(pc.invert(pc.match_substring_regex(unique, NO_NAME)))
    if not pc.any(pc.is_in(_files(unique), value_set=files)).as_py():
        return []
    texts = table.texts(column)
    return texts if numbers_count else ["" if re.match(NO_NAME, text) else text for text in texts]


def _files(names: Any) -> Any:
    """Returns the file in each name, with its suffix and then without, as an array of PyArrow."""
    import pyarrow
    import pyarrow.compute as pc

    names = pyarrow.array(names, "string")
    without_end = pc.replace_substring_regex(names, pattern=r"([/\\]\.?)+$", replacement="")
    files = pc.replace_substring_regex(without_end, pattern=r"(?s)^.*[/\\]", replacement="")
    stems = pc.replace_substring_regex(files, pattern=f"(?i){SUFFIX.pattern}", replacement="")
    return pyarrow.concat_arrays([files, stems])


def _check_agreement(
    table: Table, matches: Mapping[str, Int[np.ndarray, "n"]], best: str, images: Sequence[str]
) -> None:
    """Raises UserError if another column matches an image with a different row than the best."""
    for column, rows in matches.items():
        differ = np.flatnonzero((rows >= 0) & (matches[best] >= 0) & (rows != matches[best]))
        if len(differ):
            raise UserError(
                f"{table.path} has the image {shown(images[differ[0]])} in different rows of its columns "
                f"{shown(best)} and {shown(column)}. {NAME_THE_COLUMN}."
            )


def _check_index(table: Table, *, ambiguous: bool) -> str:
    """Returns the main column or, if that is an unnamed index of numbers, another of unique names.

    Raises UserError if there is such a column and the index may hold names too (`ambiguous`). Row
    numbers of a filtered table, used as names, would assign labels to the wrong images.
    """
    if not is_unnamed_index(table.main) or not _is_number(table.convert(table.columns[table.main])):
        return table.main
    other = next((column for column in table.columns if column != table.main and _are_names(table, column)), None)
    if other is not None and ambiguous:
        raise UserError(
            f"{table.path} is ambiguous: image names may be its unnamed index of numbers ({table.main}) or the column "
            f"{shown(other)}. {NAME_THE_COLUMN}."
        )
    return other or table.main


def _are_names(table: Table, column: str) -> bool:
    """Returns whether a column has unique text or, under a header like `id`, unique integers."""
    values = table.convert(table.columns[column])
    is_possible = values.dtype.kind == "O" or (values.dtype.kind == "i" and is_id_header(column))
    return is_possible and "" not in values.tolist() and len(set(values.tolist())) == len(values)


def _is_number(values: np.ndarray) -> bool:
    return values.dtype.kind in "if"
