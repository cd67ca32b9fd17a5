"""Reads tables in JSON: records, columns, values by image name, and labels of StyleGAN."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffae_jax.data.labels.arrow import array_of, labels_of_values
from diffae_jax.data.labels.records import columns_of
from diffae_jax.data.labels.table import IMAGE, UNNAMED, Table
from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.files import parse_json

RECORD = '{"file": "a.png", "age": 3}'
COCO = {"images", "annotations"}  # keys


def read_json_table(path: Path) -> Table:
    """Reads a JSON file, or JSON Lines.

    The file holds a list of records, records or values by image name, or columns as pandas writes
    them. The pairs of name and label in `dataset.json` of StyleGAN are read too. Raises UserError
    for other contents.
    """
    content = path.read_bytes()
    first, _, rest = content.lstrip().partition(b"\n")
    if rest.strip() and _is_record(first):
        return read_json_lines(path)
    value = parse_json(content, path)
    if isinstance(value, dict) and value.keys() >= COCO:
        raise UserError(
            f"{path} is a COCO file. Its annotations describe parts of images. Write a list with one record for each "
            f"image, such as [{RECORD}]."
        )
    if isinstance(value, dict) and value.keys() == {"labels"}:  # dataset.json
        value = value["labels"]
        if value is None:
            raise UserError(f"{path} has no labels. Write its data set again with labels, or use another table.")
    return _table(path, _columns_of_list(path, value) if isinstance(value, list) else _columns_of_dict(path, value))


def read_json_lines(path: Path) -> Table:
    """Reads a file with a record in each line. Raises UserError, with the line, for others."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text. Save it in UTF-8.") from error
    records = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            reason = shown(getattr(error, "msg", str(error)))
            raise UserError(
                f"{path} cannot be read in line {number:,} ({reason}). Write a record such as {RECORD} in each line."
            ) from error
    return _table(path, _columns_of_records(path, records))


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _table(path: Path, columns: Mapping[str, Sequence[Any]]) -> Table:
    nested = {name: next((v for v in values if isinstance(v, dict | list)), None) for name, values in columns.items()}
    flat = {name: array_of(values) for name, values in columns.items() if nested[name] is None}
    skipped = [f"{name} of type {type(value).__name__}" for name, value in nested.items() if value is not None]
    return Table(path, flat, next(iter(flat), ""), convert=labels_of_values, skipped=skipped)


def _columns_of_list(path: Path, rows: list[Any]) -> dict[str, Sequence[Any]]:
    """Returns the columns of records, of pairs of a name and a label, or of names."""
    if rows and all(isinstance(row, str) for row in rows):
        return {"file": rows}
    if rows and all(isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) for row in rows):
        return {"file": [name for name, _ in rows], **columns_of_labels([label for _, label in rows])}
    return _columns_of_records(path, rows)


def _columns_of_records(path: Path, records: Sequence[Any]) -> dict[str, Sequence[Any]]:
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise UserError(f"{path} has {_kind(record)} as record {number:,}. Write a record such as {RECORD}.")
    return columns_of(records)


def columns_of_labels(labels: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """Returns the column `label`, or a column for each element if the labels are lists."""
    lengths = {len(label) for label in labels if isinstance(label, list)}
    if len(lengths) != 1 or not all(label is None or isinstance(label, list) for label in labels):
        return {"label": labels}
    (length,) = lengths
    return {f"label_{i}": [None if label is None else label[i] for label in labels] for i in range(length)}


def _columns_of_dict(path: Path, value: Any) -> dict[str, Sequence[Any]]:
    """Returns the columns of a dict whose keys are names of images or of columns."""
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {_kind(value)}. Write a list of records such as [{RECORD}].")
    names, items = list(value), list(value.values())
    if not names:
        return {}
    if all(isinstance(item, dict) for item in items):
        if _are_columns(value):
            rows = list(dict.fromkeys(row for item in items for row in item))
            return {UNNAMED: rows, **{name: [item.get(row) for row in rows] for name, item in value.items()}}
        return {UNNAMED: names, **_columns_of_records(path, items)}
    if all(isinstance(item, list) for item in items) and not any(map(IMAGE.search, names)):
        if len(set(map(len, items))) > 1:
            raise UserError(f"{path} has columns of different lengths. Give each the same number of values.")
        return value
    return {UNNAMED: names, **columns_of_labels(items)}


def _are_columns(value: Mapping[str, Mapping[str, Any]]) -> bool:
    """Returns whether the outer keys are columns and the inner keys rows, as in pandas."""
    rows = max(value.values(), key=len)
    if any(map(IMAGE.search, value)):
        return False
    return any(map(IMAGE.search, rows)) or all(map(str.isdigit, rows)) or len(rows) > len(value)


def _kind(value: Any) -> str:
    kinds = {dict: "a record", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")
