"""Data sets of Hugging Face: Parquet and Arrow files, folders of them, and names on the Hub.

Images are read from memory-mapped Arrow files. `datasets` converts Parquet to such files.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffae_jax.data.formats.encoded import Encoded
from diffae_jax.data.formats.format import Format, OpenedDataset
from diffae_jax.data.formats.huggingface_files import (
    HUB,
    Split,
    data_files,
    is_encoded,
    is_huggingface,
    library_errors_as_user_errors,
    load,
    open_arrow,
)
from diffae_jax.data.formats.tfds import TRAINING
from diffae_jax.data.labels.arrow import labels_of_column
from diffae_jax.data.sources import check_amount, hash_of_sample_images, without_cache
from diffae_jax.data.transforms import check_picture_shape
from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.files import check_file

COLUMNS = ("image", "img")  # the usual names of the column of images


@dataclasses.dataclass(frozen=True)
class HuggingFace(Encoded):
    """Encoded images in rows of Arrow files."""

    path: str  # the path of the data set, or its name on the Hub
    split: str
    column: str  # the column of images
    arrow_files: Sequence[Path]
    first: int  # the row of the first image
    ids: Sequence[str]

    @cached_property
    def _table(self) -> Any:
        return open_arrow(self.arrow_files)

    @cached_property
    def _images(self) -> Any:
        with library_errors_as_user_errors(self.path):
            return _checked(self._table.column(self.column))

    @cached_property
    def labels(self) -> Mapping[str, np.ndarray]:
        """The columns of numbers, text and classes."""
        rows = self._table.slice(self.first, len(self))
        with library_errors_as_user_errors(self.path):
            features = _features(self._table)
            columns = {name: _labels(rows.column(name), features[name]) for name in features if name != self.column}
        return {name: values for name, values in columns.items() if values is not None}

    def __getstate__(self) -> dict[str, Any]:
        return without_cache(self)

    def encoded(self, index: int) -> bytes:
        """Returns the content of an image file. Raises UserError if the row has none."""
        value = self._images[self.first + index].as_py()
        content, file = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if content is not None:
            return content
        if not file:
            raise UserError(f"{self.name(index)} has no image in the column {shown(self.column)}. Remove the row.")
        check_file(Path(file))  # the library stores only the path of some images
        return Path(file).read_bytes()

    def name(self, index: int) -> str:
        """Returns the row of an image, its data set and its split."""
        return f"Image {self.first + index} of {self.path} ({self.split})"

    def files(self) -> list[Path]:
        """Returns the files that the user gave. There are none for a name on the Hub."""
        path = Path(self.path)
        return list(data_files(path)) if path.exists() else []

    def overlaps(self, other: "HuggingFace") -> bool:
        """Returns whether another source has rows in common with this one."""
        files, other_files = ({path.resolve() for path in source.arrow_files} for source in (self, other))
        is_apart = self.first + len(self) <= other.first or other.first + len(other) <= self.first
        return bool(files & other_files) and not is_apart

    def fingerprint(self) -> str:
        """Returns a hash of a sample of the images, their number, the split and the column."""
        return hash_of_sample_images(self, self.split, self.column)


def is_name(name: str) -> bool:
    """Returns whether a text names a data set on the Hub: hf://datasets/USER/NAME[@REVISION]."""
    return HUB.fullmatch(name) is not None


def open_dataset(path: Path | str, part: str, image_shape: tuple[int, ...]) -> OpenedDataset:
    """Opens a split, by default train, of files, of a folder, or of a name on the Hub.

    The part is SPLIT or CONFIGURATION/SPLIT. The split may be a slice such as train[:1000]. Raises
    UserError if there is no such part or no column of images, or if a file is damaged.
    """
    check_picture_shape(image_shape)
    configuration, _, split = part.rpartition("/")
    loaded = load(path, configuration)
    split = split or (TRAINING if TRAINING in loaded.splits else next(iter(loaded.splits)))
    base, first, stop = _rows_of(path, split, loaded.splits)
    files = loaded.splits[base].arrow_files
    check_amount(stop - first, (), str(path))
    ids = [f"{base}-{row:07d}" for row in range(first, stop)]
    column = _image_column(str(path), open_arrow(files))
    source = HuggingFace(str(path), split, column, files, first, ids)
    _ = source._images, source.labels  # one error for the file, not one for each image
    others = [other for other in loaded.splits if other != base]
    notes = [f"Only the split {split} is read. Other splits: {', '.join(others)}."] if others else []
    return OpenedDataset(source, "a data set of Hugging Face", [*notes, *loaded.notes])


def _splits_of(path: Path) -> list[str]:
    """Returns the names of the splits. There are none if they depend on a configuration."""
    with contextlib.suppress(UserError):
        return list(load(path, "").splits)
    return []


def _rows_of(path: Path | str, split: str, splits: Mapping[str, Split]) -> tuple[str, int, int]:
    """Returns (split, first row, end) for a split, or for a slice such as train[:1000]."""
    import datasets

    base = split.partition("[")[0]
    if base not in splits:
        raise UserError(f"{path} has no split {shown(split)}. It has {list_some(splits)}.")
    if base == split:
        rows = (0, splits[base].num_rows)
    else:
        try:
            instruction = datasets.ReadInstruction.from_spec(split)
            (found,) = instruction.to_absolute({base: splits[base].num_rows})
            rows = (found.from_, found.to)
        except (ValueError, AssertionError) as error:
            raise UserError(
                f"{path} has no part {shown(split)} ({shown(str(error))}). Write a slice as in {base}[:1000]."
            ) from error
    if rows[0] >= rows[1]:
        raise UserError(f"The split {shown(split)} of {path} holds no images.")
    return base, *rows


def _features(table: Any) -> Mapping[str, Any]:
    import datasets

    return datasets.Features.from_arrow_schema(table.schema)


def _image_column(path: str, table: Any) -> str:
    """Returns the name of the column of images."""
    import datasets

    with library_errors_as_user_errors(path):
        features = _features(table)
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    plain = [field.name for field in table.schema if is_encoded(field.type)]
    plain = [name for name in plain if not isinstance(features[name], datasets.Audio | datasets.Video)]
    for candidates in (images, plain):
        usual = [name for name in COLUMNS if name in candidates]
        if usual or len(candidates) == 1:
            return (usual or candidates)[0]
    raise UserError(
        f"{path} has {'several columns' if plain else 'no column'} that may be the image. Its columns are "
        f"{list_some(features)}. {'Call one of them image' if plain else 'Use another data set'}."
    )


def _checked(column: Any) -> Any:
    """Returns a column. Raises ValueError if it is damaged: PyArrow does not check by default."""
    column.validate(full=True)
    return column


def _labels(column: Any, feature: Any) -> np.ndarray | None:
    """Returns the labels in a column, or None if its type, such as a list, cannot be a label.

    Classes become their names, unless the names are numbers.
    """
    values = labels_of_column(_checked(column))
    names = getattr(feature, "names", None)
    if values is None or not names or all(name.isdigit() for name in names):
        return values
    return np.array([names[int(value)] if value >= 0 else "" for value in values.tolist()], object)


FORMAT = Format(lambda path, image_shape: is_huggingface(path), open_dataset, parts=_splits_of)
