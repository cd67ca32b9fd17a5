"""Reads tables and lists in text files: CSV, TSV, and the files of CelebA."""

import csv
import functools
import itertools
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from diffae_jax.data.labels.arrow import labels_of_cells, read_cells
from diffae_jax.data.labels.table import IMAGE, Table, is_id_header, named_columns, unique_names
from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.files import os_errors_as_user_errors

COUNT = re.compile(r"[0-9]{1,9}")  # the first line of the attribute file of CelebA


def read_list(path: Path, words: Collection[str]) -> tuple[tuple[str, ...], dict[str, np.ndarray]] | None:
    """Reads a list with one image name per line, each followed by one of `words` or by nothing.

    Returns the names, and a column of the words if there are any, or None if the file is a CSV.
    The first line decides whether every line must end in a word. A header line, such as `file`, is
    skipped. Raises UserError for an image that occurs twice.
    """
    with os_errors_as_user_errors(path):
        delimiter, header = _header(path)
        has_tabs = delimiter == "\t" and header[-1].lower() in words
        if len(header) > 1 and not has_tabs:
            return None
        names = read_cells(path, "," if has_tabs else delimiter, 1)[0].to_pylist() if header[0] else []
    if not names:
        return (), {}
    first = names[0].rsplit(None, 1)
    has_words = len(first) > 1 and first[1].lower() in words
    rows = list(enumerate(names, 1))[is_id_header(names[0]) :]
    if not has_words:
        return unique_names(path, rows), {}
    parts = [(row, name.rsplit(None, 1)) for row, name in rows]
    for row, part in parts:
        if len(part) < 2:
            raise UserError(
                f"{path} has only the image {shown(part[0])} in row {row:,}. Add its split, as in the other rows."
            )
    ids = unique_names(path, ((row, name) for row, (name, _) in parts))
    return ids, {"partition": np.array([word for _, (_, word) in parts], object)}


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text. Save it in UTF-8.") from error


def _header(path: Path) -> tuple[str, list[str]]:
    """Returns the delimiter and the first row of a CSV. Some spreadsheets use ; as delimiter."""
    lines = (line for line in _lines(path) if line.strip())
    first = next(lines, "")
    rare = [delimiter for delimiter in ";\t" if delimiter in first and "," not in first]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else rare[0] if rare else ","
    row = next(
        csv.reader(itertools.chain([first], lines), delimiter=delimiter), [""]
    )  # a quoted name may span two lines
    return delimiter, [name.strip() for name in row] or [""]


def read_text_table(path: Path) -> Table:
    """Reads a CSV, whose delimiter is detected, or the attribute file of CelebA.

    Raises UserError, with the line or row, for an invalid table.
    """
    first = next((line for line in _lines(path) if line.strip()), "")
    return _celeba(path) if COUNT.fullmatch(first.strip()) else _csv(path)


def _csv(path: Path) -> Table:
    delimiter, header = _header(path)
    if header == [""]:
        return Table(path, {}, "")
    if any(map(IMAGE.search, header)):
        raise UserError(f"{path} has no header row. Add one, such as `file,smile`.")
    cells = (column[1:] for column in read_cells(path, delimiter, len(header)))
    columns = named_columns(path, header, list(cells))
    convert = functools.partial(labels_of_cells, decimal_comma=delimiter == ";")
    return Table(path, columns, next(iter(columns), ""), first_row=2, convert=convert)


def _celeba(path: Path) -> Table:
    """Reads the attributes of CelebA: count, names, and a row for each image. -1 becomes 0."""
    import pyarrow

    lines = ((number, line.split()) for number, line in enumerate(_lines(path), 1) if line.strip())
    _, (count,) = next(lines)
    _, names = next(lines, (0, []))
    if len(set(names)) < len(names):
        raise UserError(f"{path} must have a unique name for each column in its second line.")
    ids: list[str] = []
    is_positive = bytearray()
    allowed = {"-1", "0", "1"}
    for line, (name, *values) in lines:
        if len(values) != len(names):
            raise UserError(
                f"{path} has {len(values)} values in line {line:,}, but {len(names)} names in line 2. Copy it again."
            )
        ids.append(name)
        allowed -= {"0"} if "-1" in values else {"-1"} if "0" in values else set()
        if not allowed.issuperset(values):
            bad = next(value for value in values if value not in allowed)
            raise UserError(
                f"{path} has {shown(bad)} in line {line:,}, but attributes of CelebA are all -1 or 1, or all 0 or 1. "
                f"Correct the line."
            )
        is_positive += bytes(map("1".__eq__, values))
    if len(ids) != int(count):
        raise UserError(f"{path} has {len(ids):,} images, but its first line says {int(count):,}. Copy it again.")
    values = np.frombuffer(is_positive, np.uint8).reshape(len(ids), len(names)).astype(np.int64)
    columns = {name: pyarrow.chunked_array([values[:, i]]) for i, name in enumerate(names)}
    return Table(path, {"image_id": pyarrow.chunked_array([ids]), **columns}, "image_id", first_row=3)
