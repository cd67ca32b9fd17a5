"""Reads tables of images: CSV, TSV and Parquet files, and the text files of CelebA."""

import csv
import itertools
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np

from diffae_jax.data.labels.arrow import labels_of_cells, read_cells, read_parquet
from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.files import check_file, os_errors_as_user_errors

IMAGE = re.compile(r"\.(png|jpe?g|webp|bmp|tiff?|gif|npy|nii|nii\.gz|dcm)$", re.IGNORECASE)
PARQUET_SUFFIXES, PARQUET_MAGIC = (".parquet", ".pq"), b"PAR1"
COUNT = re.compile(r"[0-9]{1,9}")  # the first line of the attribute file of CelebA
ID_HEADERS = ("id", "image", "image_id", "img", "file", "file_name", "filename", "name", "path")

Table = tuple[tuple[str, ...], dict[str, np.ndarray]]  # unique image names, and columns by name


def read_table(path: Path) -> Table:
    """Reads a CSV, a TSV, a Parquet file or the attribute file of CelebA.

    Columns hold integers, floats (missing: NaN), or text (missing: ""). Raises UserError, with the
    line or row, for an invalid table and for an image that occurs twice.
    """
    check_file(path)
    with os_errors_as_user_errors(path):
        if _is_parquet(path):
            names, columns = read_parquet(path)
            return _unique(path, enumerate(names, 1)), columns
        return _celeba(path) if COUNT.fullmatch(_first_line(path).strip()) else _csv(path)


def read_list(path: Path, words: Collection[str]) -> Table | None:
    """Reads a list with one image name per line, each followed by one of `words` or by nothing.

    Returns None if the file is a table. The first line shows whether lines have a word. The words
    become a column. A header line, such as `file`, is skipped. Raises UserError for an image that
    occurs twice.
    """
    check_file(path)
    with os_errors_as_user_errors(path):
        if _is_parquet(path):
            return None
        delimiter, header = _header(path)
        if len(header) > 1:
            return None
        names = read_cells(path, delimiter, 1)[0].to_pylist() if header[0] else []
    if not names:
        return (), {}
    first = names[0].rsplit(None, 1)
    has_words = len(first) > 1 and first[1].lower() in words
    rows = list(enumerate(names, 1))[names[0].lower() in ID_HEADERS :]
    if not has_words:
        return _unique(path, rows), {}
    parts = [(row, name.rsplit(None, 1)) for row, name in rows]
    for row, part in parts:
        if len(part) < 2:
            raise UserError(
                f"{path} has only the image {shown(part[0])} in row {row:,}: add its split, as in the other rows."
            )
    ids = _unique(path, ((row, name) for row, (name, _) in parts))
    return ids, {"partition": np.array([word for _, (_, word) in parts], object)}


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix.lower() in PARQUET_SUFFIXES or file.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC


def _first_line(path: Path) -> str:
    """Returns the first line that is not blank."""
    return next((line for line in _lines(path) if line.strip()), "")


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: save it in UTF-8.") from error


def _header(path: Path) -> tuple[str, list[str]]:
    """Returns the delimiter of a CSV, which is ; in some spreadsheets, and its first row."""
    lines = (line for line in _lines(path) if line.strip())
    first = next(lines, "")
    tabs, semicolons = path.suffix.lower() == ".tsv", ";" in first and "," not in first
    delimiter = "\t" if tabs else ";" if semicolons else ","
    row = next(
        csv.reader(itertools.chain([first], lines), delimiter=delimiter), [""]
    )  # a quoted name may span two lines
    return delimiter, [name.strip() for name in row] or [""]


def _csv(path: Path) -> Table:
    delimiter, header = _header(path)
    if header == [""]:
        return (), {}
    _check_header(path, header[1:], "first")
    if IMAGE.search(header[0]):
        raise UserError(f"{path} has no header row: add one, such as `file,smile`.")
    ids, *columns = (column[1:] for column in read_cells(path, delimiter, len(header)))
    names = _unique(path, enumerate(ids.to_pylist(), 2))
    labels = [labels_of_cells(column, decimal_comma=delimiter == ";") for column in columns]
    return names, dict(zip(header[1:], labels, strict=True))


def _celeba(path: Path) -> Table:
    """Reads the attributes of CelebA: count, names, and a row for each image. -1 becomes 0."""
    lines = ((number, line.split()) for number, line in enumerate(_lines(path), 1) if line.strip())
    _, (count,) = next(lines)
    _, names = next(lines, (0, []))
    _check_header(path, names, "second")
    ids: list[tuple[int, str]] = []
    is_positive = bytearray()
    allowed = {"-1", "0", "1"}
    for line, (name, *values) in lines:
        if len(values) != len(names):
            raise UserError(f"{path} has {len(values)} values in line {line:,}, but {len(names)} names in line 2.")
        ids.append((line, name))
        allowed -= {"0"} if "-1" in values else {"-1"} if "0" in values else set()
        if not allowed.issuperset(values):
            bad = next(value for value in values if value not in allowed)
            raise UserError(
                f"{path} has {shown(bad)} in line {line:,}: attributes of CelebA must be all -1 or 1, or all 0 or 1."
            )
        is_positive += bytes(map("1".__eq__, values))
    if len(ids) != int(count):
        raise UserError(f"{path} has {len(ids):,} images, but {int(count):,} by its first line: copy the file again.")
    values = np.frombuffer(is_positive, np.uint8).reshape(len(ids), len(names))
    return _unique(path, ids), {name: values[:, i].astype(np.int64) for i, name in enumerate(names)}


def _check_header(path: Path, names: list[str], line: str) -> None:
    if not all(names) or len(set(names)) < len(names):
        raise UserError(f"{path} must have a unique name for each column in its {line} line.")


def _unique(path: Path, names: Iterable[tuple[int, str]]) -> tuple[str, ...]:
    """Returns image names without their rows. Raises UserError if one is empty or occurs twice."""
    rows: dict[str, int] = {}
    for row, name in names:
        if not name:
            raise UserError(f"{path} has no image name in row {row:,}: give each image one row.")
        if name in rows:
            raise UserError(
                f"{path} has the image {shown(name)} in rows {rows[name]:,} and {row:,}: give each image one row."
            )
        rows[name] = row
    return tuple(rows)
