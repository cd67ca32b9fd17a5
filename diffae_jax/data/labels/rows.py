"""Matches names in tables to images."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NoReturn

import numpy as np
from jaxtyping import Int

from diffae_jax.runtime.errors import UserError, list_some, shown

SUFFIX = re.compile(r"(\.nii)?\.[a-z][a-z0-9]{0,4}$", re.IGNORECASE)  # of a file; a suffix does not begin with a digit
SEVERAL = -1  # instead of an index
NAME_THE_COLUMN = "Name the column of image names with --config.data.id_column or --id-column"


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a table, each of which names an image.

    A row matches an image if the names are equal, or if one name ends in the other: `0.png` and
    `photos/a/0.png` both match `a/0.png`, but `val/0.png` does not match `train/0.png`. The suffix
    of the file may be missing. A row or an image with several possible partners matches none.
    """

    ids: Sequence[str]
    columns_of_table: Sequence[str] = dataclasses.field(default=(), kw_only=True)  # for messages
    notes_on_table: Sequence[str] = dataclasses.field(default=(), kw_only=True)

    def unmatched(self, ids: Sequence[str]) -> list[str]:
        """Returns the names in the table that match none of these images."""
        matched = set(self.rows_of(ids).tolist())
        return [name for row, name in enumerate(self.ids) if row not in matched]

    def unnamed(self, ids: Sequence[str]) -> list[str]:
        """Returns the images without a row."""
        return [name for name, row in zip(ids, self.rows_of(ids).tolist(), strict=True) if row < 0]

    def rows_of(self, ids: Sequence[str]) -> Int[np.ndarray, "n"]:
        """Returns the row of each image, or -1."""
        rows = np.full(len(ids), -1)
        index_of: dict[str, int] = {}
        for row, name in enumerate(self.ids):
            index_of[name] = SEVERAL if name in index_of else row
        for image, name in enumerate(ids):
            rows[image] = index_of.get(name, -1)
        matched = set(rows[rows >= 0].tolist())
        if len(matched) == len(self.ids) or (rows >= 0).all():
            return rows
        for image_parts, row_parts in _variants(ids, self.ids):
            for image, row in _partners(image_parts, row_parts):
                if rows[image] < 0 and row not in matched:
                    rows[image] = row
                    matched.add(row)
            if len(matched) == len(self.ids) or (rows >= 0).all():
                break
        return rows

    def check_any(self, rows: Int[np.ndarray, "n"], ids: Sequence[str], table: str) -> None:
        """Raises UserError if no image has a row."""
        if not (rows >= 0).any():
            refuse_unmatched(self.ids, ids, table, self.columns_of_table)


def refuse_unmatched(names: Sequence[str], ids: Sequence[str], table: str, columns: Iterable[str]) -> NoReturn:
    """Raises UserError, as no name in a table matches an image. Reports folders that differ."""
    problem = (
        f"None of the {len(names):,} names in the {table} ({list_some(names)}) matches one of the {len(ids):,} images "
        f"({list_some(ids)})"
    )
    images = {_parts(name)[-1]: name for name in ids}
    same_file = next((name for name in names if _parts(name)[-1] in images), None)
    if same_file is None:
        others = f" The table has the columns {existing}." if (existing := list_some(columns)) else ""
        raise UserError(f"{problem}.{others} {NAME_THE_COLUMN}.")
    raise UserError(
        f"{problem}. {shown(same_file)} and {shown(images[_parts(same_file)[-1]])} are in different folders, or the "
        f"file name is not unique. Write the folders of the image in each row, or give a subfolder of images."
    )


Parts = tuple[str, ...]  # the folders and the file of a name


def _parts(name: str) -> Parts:
    """Splits a name at slashes, or at backslashes if it has no slash."""
    separator = "/" if "/" in name else "\\"
    return tuple(part for part in name.split(separator) if part not in ("", ".")) or ("",)


def _without_suffix(parts: Parts) -> Parts:
    return (*parts[:-1], SUFFIX.sub("", parts[-1]))


def _variants(images: Sequence[str], rows: Sequence[str]) -> Iterator[tuple[list[Parts], list[Parts]]]:
    """Yields the parts of all names: with suffixes, with those of rows only, and without."""
    image_parts, row_parts = list(map(_parts, images)), list(map(_parts, rows))
    yield image_parts, row_parts
    image_parts = list(map(_without_suffix, image_parts))
    yield image_parts, row_parts
    yield image_parts, list(map(_without_suffix, row_parts))


def _partners(images: Sequence[Parts], rows: Sequence[Parts]) -> Iterator[tuple[int, int]]:
    """Yields (image, row) if one name ends in the other and neither has a second partner.

    Longer common endings come first.
    """
    image_of, row_of = _index_of_files(images), _index_of_files(rows)
    repeated = set()
    for file in image_of.keys() & row_of.keys():
        image, row = image_of[file], row_of[file]
        if image == SEVERAL or row == SEVERAL:
            repeated.add(file)
            continue
        length = min(len(images[image]), len(rows[row]))
        if images[image][-length:] == rows[row][-length:]:
            yield image, row
    yield from _partners_by_folder(
        *({index: name for index, name in enumerate(names) if name[-1] in repeated} for names in (images, rows))
    )


def _index_of_files(names: Sequence[Parts]) -> dict[str, int]:
    """Returns the index of the name of each file, or SEVERAL."""
    indices: dict[str, int] = {}
    for index, name in enumerate(names):
        indices[name[-1]] = SEVERAL if name[-1] in indices else index
    return indices


def _partners_by_folder(images: Mapping[int, Parts], rows: Mapping[int, Parts]) -> Iterator[tuple[int, int]]:
    longest = max(map(len, images.values()), default=0), max(map(len, rows.values()), default=0)
    for length in range(min(longest), 0, -1):
        groups: dict[Parts, tuple[list[int], list[int]]] = {}
        for side, names in enumerate((images, rows)):
            for index, name in names.items():
                if len(name) >= length:
                    groups.setdefault(name[-length:], ([], []))[side].append(index)
        for with_images, with_rows in groups.values():
            if not with_images or not with_rows:
                continue
            # if both names have further folders, these folders differ
            short_rows = [row for row in with_rows if len(rows[row]) == length]
            short_images = [image for image in with_images if len(images[image]) == length]
            for image in with_images:
                candidates = with_rows if len(images[image]) == length else short_rows
                if len(candidates) == 1:
                    (row,) = candidates
                    if len(with_images if len(rows[row]) == length else short_images) == 1:
                        yield image, row
