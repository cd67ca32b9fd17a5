"""Reads tables of images: CSV, TSV and Parquet files, and the text files that come with CelebA."""

import contextlib
import csv
import io
import itertools
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from diffae_jax.data.labels.parquet import read_parquet
from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.files import check_file, told

IMAGE = re.compile(r"\.(png|jpe?g|webp|bmp|tiff?|gif|npy|nii|nii\.gz|dcm)$", re.IGNORECASE)
MISSING = ("", "na", "n/a", "nan", "null", "none")
MAX_ROWS = 10_000_000
MAX_COLUMNS = 1000
MAX_LINE_BYTES = 2**16
PARQUET_SUFFIXES, PARQUET_MAGIC = (".parquet", ".pq"), b"PAR1"
COUNT = re.compile(r"[0-9]{1,9}")  # the first line of CelebA's attributes
ID_HEADERS = ("id", "image", "image_id", "img", "file", "file_name", "filename", "name", "path")

Table = tuple[tuple[str, ...], dict[str, np.ndarray]]  # names of images, each once, and columns by name


def read_table(path: Path) -> Table:
    """Reads a file with names of images first: a CSV, a TSV, a Parquet file or CelebA's attributes, told by content.

    Columns are whole numbers, floating point with NaN for what is missing, or text with "". Raises UserError, with the
    line or row, for what is no such table and for an image that is there twice.
    """
    with _opened(path) as file:
        if _is_parquet(path, file):
            names, columns = read_parquet(path, file, MAX_ROWS, MAX_COLUMNS)
            ids: dict[str, None] = {}
            for row, name in enumerate(names, 1):
                _add(ids, name, path, f"row {row:,}")
            return tuple(ids), columns
        first = next((line for line in _lines(path, file) if line.strip()), "")
        file.seek(0)
        return _celeba(path, file) if COUNT.fullmatch(first.strip()) else _csv(path, file)


def read_list(path: Path, words: Collection[str]) -> Table | None:
    """Reads a text file without header: names of images alone, or each followed by blanks and one of these words.

    Returns None for a table. The words of the lines are a column; whether lines have any is told from the first. One
    that says what a column of names is called is left out. Raises UserError for an image that is there twice.
    """
    with _opened(path) as file:
        if _is_parquet(path, file):
            return None
        ids: dict[str, None] = {}
        column: list[str] = []
        has_words = False
        for place, (line, row) in enumerate(_rows_of(path, file)):
            if len(row) > 1 and not place:
                return None
            if len(row) > 1:
                raise UserError(f"{path} has {len(row)} values in line {line:,}, and one in its first.")
            parts = row[0].rsplit(None, 1)
            if not place:
                has_words = len(parts) > 1 and parts[1].lower() in words
                if row[0].lower() in ID_HEADERS:
                    continue
            if has_words and len(parts) < 2:
                raise UserError(f"{path} has nothing behind the image {shown(row[0])} in line {line:,}.")
            _add(ids, parts[0] if has_words else row[0], path, f"line {line:,}")
            column += parts[1:] if has_words else ()
    return tuple(ids), {"partition": np.array(column, object)} if has_words else {}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    check_file(path)
    with told(path), path.open("rb") as file:
        yield file


def _is_parquet(path: Path, file: io.BufferedReader) -> bool:
    return path.suffix.lower() in PARQUET_SUFFIXES or file.peek(len(PARQUET_MAGIC)).startswith(PARQUET_MAGIC)


def _csv(path: Path, file: io.BufferedReader) -> Table:
    rows = _rows_of(path, file)
    _, header = next(rows, (0, [""]))
    names = header[1:]
    _check_header(path, names, "first")
    if IMAGE.search(header[0]):
        raise UserError(f"{path} begins with an image, which would be left out: let the first line name the columns.")
    ids: dict[str, None] = {}
    columns: list[list[str]] = [[] for _ in names]
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(f"{path} has {len(row)} values in line {line:,}, and {len(header)} names in its first.")
        _add(ids, row[0], path, f"line {line:,}")
        for column, value in zip(columns, row[1:], strict=True):
            column.append(sys.intern(value))  # most labels have few values, which then take the room of a pointer
    return tuple(ids), {name: _typed(column) for name, column in zip(names, columns, strict=True)}


def _celeba(path: Path, file: io.BufferedReader) -> Table:
    """Reads the number of images, the names of attributes, and -1 or 1 (or 0 or 1) of each image; -1 becomes 0."""
    lines = ((number, line.split()) for number, line in enumerate(_lines(path, file), 1) if line.strip())
    _, (count,) = next(lines)
    _, names = next(lines, (0, []))
    _check_header(path, names, "second")
    ids: dict[str, None] = {}
    is_positive = bytearray()
    allowed = {"-1", "0", "1"}
    for line, (name, *values) in lines:
        if len(values) != len(names):
            raise UserError(f"{path} has {len(values)} values in line {line:,}, and {len(names)} names in its second.")
        _add(ids, name, path, f"line {line:,}")
        allowed -= {"0"} if "-1" in values else {"-1"} if "0" in values else set()
        if not allowed.issuperset(values):
            bad = next(value for value in values if value not in allowed)
            raise UserError(
                f"{path} has {shown(bad)} in line {line:,}: attributes of CelebA are all -1 or 1, or all 0 or 1."
            )
        is_positive += bytes(map("1".__eq__, values))
    if len(ids) != int(count):
        raise UserError(f"{path} has {len(ids):,} images, and {int(count):,} by its first line: copy it anew, whole.")
    values = np.frombuffer(is_positive, np.uint8).reshape(len(ids), len(names))
    return tuple(ids), {name: values[:, i].astype(np.int64) for i, name in enumerate(names)}


def _check_header(path: Path, names: list[str], line: str) -> None:
    if len(names) > MAX_COLUMNS or not all(names) or len(set(names)) < len(names):
        raise UserError(
            f"{path} must have up to {MAX_COLUMNS:,} columns, each with a name of its own, in its {line} line."
        )


def _add(ids: dict[str, None], name: str, path: Path, place: str) -> None:
    """Adds the name of an image. Raises UserError where it is none, or there already, or one too many."""
    if not name or name in ids:
        is_what = f"the image {shown(name)} for the second time" if name else "no name of an image"
        raise UserError(f"{path} has {is_what} in {place}: give every image one line.")
    if len(ids) == MAX_ROWS:
        raise UserError(f"{path} has more than {MAX_ROWS:,} rows: leave out images that are not in the data set.")
    ids[name] = None


def _rows_of(path: Path, file: io.BufferedReader) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows that are not blank, stripped, with the line that each ends in."""
    lines = _lines(path, file)
    first = next(lines, "")
    by = (
        "\t" if path.suffix.lower() == ".tsv" else ";" if ";" in first and "," not in first else ","
    )  # ; of spreadsheets
    reader = csv.reader(itertools.chain([first], lines), delimiter=by, strict=True)
    try:
        for row in reader:
            if any(row):
                yield reader.line_num, [value.strip() for value in row]
    except csv.Error as error:
        raise UserError(f"{path} is no table of CSV: {shown(str(error))} in line {reader.line_num:,}.") from error


def _lines(path: Path, file: io.BufferedReader) -> Iterator[str]:
    number = 0
    while content := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(content) > MAX_LINE_BYTES:
            raise UserError(
                f"{path} has more than {MAX_LINE_BYTES:,} bytes in line {number:,}: it is no table of labels."
            )
        try:
            yield content.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not text in UTF-8, first in line {number:,}: save it as that.") from error


def _typed(column: list[str]) -> np.ndarray:
    """Returns whole numbers where all are, floating point ones where all that are not missing are numbers, or text."""
    is_text = any("_" in value for value in column)  # Python would read 1_0 as 10
    numbers = ["nan" if value.lower() in MISSING else value for value in column]
    for parse, dtype in () if is_text else ((int, np.int64), (float, np.float64)):
        try:
            return np.array([parse(value) for value in numbers], dtype)
        except (ValueError, OverflowError):
            continue
    # as objects: an array of text takes for each the room of the longest
    return np.array(column, object)
