"""TensorFlow Datasets prepared as array_record, which can be read without TensorFlow."""

import contextlib
import dataclasses
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffae_jax.data.formats.files import read_picture
from diffae_jax.data.formats.format import Format, OpenedDataset
from diffae_jax.data.sources import channels_last, hash_of_sample_images, image_errors_as_user_errors, without_cache
from diffae_jax.runtime.errors import UserError, list_some, reader_errors_as_user_errors, shown
from diffae_jax.runtime.files import check_file

INFO = "dataset_info.json"  # in the folder of a prepared data set
NAME = re.compile(r"[a-z][a-z0-9_]*(/[\w.-]+)?(:\d+\.\d+\.\d+)?")
TRAINING = "train"


@dataclasses.dataclass(frozen=True)
class TFDS:
    """A split of a prepared data set."""

    folder: Path
    split: str
    feature: str  # of the image
    image_shape: tuple[int, ...]
    ids: Sequence[str]

    @cached_property
    def _records(self) -> Any:
        """The records. Pictures stay encoded, because all formats decode them in the same way."""
        import tensorflow_datasets as tfds

        builder = _builder(self.folder)
        feature = builder.info.features[self.feature]
        is_encoded = isinstance(feature, tfds.features.Image) and feature.np_dtype == np.uint8
        skip = {self.feature: tfds.decode.SkipDecoding()} if is_encoded else None
        return builder.as_data_source(split=self.split, decoders=skip)

    @cached_property
    def labels(self) -> Mapping[str, np.ndarray]:
        """The scalar features. All records are read, without decoding their images."""
        import tensorflow_datasets as tfds

        builder = _builder(self.folder)
        scalars = dict(_labels_of(builder.info.features))
        if not scalars:
            return {}
        skip = {name: tfds.decode.SkipDecoding() for name in _pictures_of(builder.info.features)}
        columns: dict[str, list[Any]] = {name: [] for name in scalars}
        with _tfds_errors_as_user_errors(self.folder):
            for record in builder.as_data_source(split=self.split, decoders=skip or None):
                for name, values in columns.items():
                    values.append(_nested(record, name))
        names = {name: name.rpartition("/")[2] for name in scalars}
        short_names = list(names.values())
        return {
            names[name] if short_names.count(names[name]) == 1 else name: _column(scalars[name], values)
            for name, values in columns.items()
        }

    def __getstate__(self) -> dict[str, Any]:
        return without_cache(self)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns one image in its original size. Raises UserError if the record is damaged."""
        with image_errors_as_user_errors(self.name(index)):
            image = self._records[index][self.feature]
        if isinstance(image, bytes):
            return read_picture(io.BytesIO(image), self.name(index))
        return channels_last(np.asarray(image), self.image_shape, self.name(index))

    def name(self, index: int) -> str:
        """Returns the index of an image and its data set."""
        return f"Image {index} of {self.folder} ({self.split})"

    def overlaps(self, other: "TFDS") -> bool:
        """Returns whether another source has records in common with this one."""
        if self.folder.resolve() != other.folder.resolve():
            return False
        return bool(_records_of(self) & _records_of(other))

    def fingerprint(self) -> str:
        """Returns a hash of a sample of the images, their number, the split and the feature."""
        return hash_of_sample_images(self, self.split, self.feature)


def open_named(name: str, split: str, image_shape: tuple[int, ...]) -> OpenedDataset:
    """Opens a data set by name, like `open_folder`. Raises UserError if there is no such name."""
    return _open(name, _named(name), split, image_shape)


def open_folder(folder: Path, split: str, image_shape: tuple[int, ...]) -> OpenedDataset:
    """Opens a split, by default train, of a prepared data set.

    Raises UserError if it is not prepared as array_record, or if its image feature is ambiguous.
    """
    return _open(str(folder), _builder(folder), split, image_shape)


def _open(name: str, builder: Any, split: str, image_shape: tuple[int, ...]) -> OpenedDataset:
    splits = list(builder.info.splits)
    split = split or (TRAINING if TRAINING in splits else splits[0])
    if builder.info.file_format is None or builder.info.file_format.value != "array_record":
        kind = getattr(builder.info.file_format, "value", "nothing")
        raise UserError(f"{name} is prepared as {kind}, which only TensorFlow reads. {_how_to_prepare(builder.name)}.")
    feature = _image_feature(name, builder.info.features, len(image_shape))
    count = _count(name, builder, split)
    if count <= 0:
        raise UserError(f"The split {shown(split)} of {name} holds no images.")
    for part in builder.info.splits[split].file_instructions:
        check_file(Path(part.filename))  # one error for the file, not one for each image
    others = [other for other in splits if other != split]
    notes = [f"Only the split {split} is read. Other splits: {', '.join(others)}."] if others else []
    ids = [f"{split}-{i:07d}" for i in range(count)]
    source = TFDS(Path(builder.data_path), split, feature, tuple(image_shape), ids)
    return OpenedDataset(source, "a data set of TensorFlow Datasets", notes)


def _splits_of(folder: Path) -> list[str]:
    """Returns the split names of a prepared data set. Raises UserError if it is damaged."""
    return list(_builder(folder).info.splits)


def _records_of(source: TFDS) -> set[tuple[str, int]]:
    """Returns (file, position in the file) of each record of a source."""
    parts = _builder(source.folder).info.splits[source.split].file_instructions
    return {(os.fspath(part.filename), part.skip + i) for part in parts for i in range(part.take)}


def is_name(name: str) -> bool:
    """Returns whether a text may name a data set: NAME[/CONFIG][:VERSION]."""
    return NAME.fullmatch(name) is not None


def _builder(folder: Path) -> Any:
    import tensorflow_datasets as tfds

    with _tfds_errors_as_user_errors(folder):
        return tfds.builder_from_directory(os.fspath(folder))


def _tfds_errors_as_user_errors(folder: Path) -> contextlib.AbstractContextManager[None]:
    return reader_errors_as_user_errors(folder, "a prepared data set", "Prepare it again")


def _count(name: str, builder: Any, split: str) -> int:
    """Returns the number of images in a split or a slice of one, such as train[:1000]."""
    splits = list(builder.info.splits)
    try:
        if split.partition("[")[0] in splits:
            return builder.info.splits[split].num_examples
    except Exception as error:  # TFDS parses the brackets, and raises errors of any type
        raise UserError(
            f"{name} has no part {shown(split)} ({shown(str(error))}). Write a slice as in {splits[0]}[:1000]."
        ) from error
    raise UserError(f"{name} has no split {shown(split)}. It has {list_some(splits)}.")


def _named(name: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        raise UserError(
            f"{name} is missing. Check the path. TensorFlow Datasets has no data set of this name."
        ) from error
    if not builder.is_prepared():
        raise UserError(f"{name} is not prepared in {builder.data_path}. {_how_to_prepare(name)}.")
    return builder


def _how_to_prepare(name: str) -> str:
    return f'Install TensorFlow and run "tfds build {name} --file_format=array_record" once'


def _image_feature(name: str, features: Any, ndim: int) -> str:
    """Returns the name of the image feature."""
    pictures = list(_pictures_of(features)) if ndim == 3 else []
    arrays = [key for key, feature in features.items() if len(feature.shape or ()) in (ndim, ndim - 1)]
    for candidates in (pictures, arrays):
        if "image" in candidates:
            return "image"
        if len(candidates) == 1:
            return candidates[0]
    raise UserError(
        f"{name} has {'several features' if pictures or arrays else 'no feature'} that may be the image. Its features "
        f"are {list_some(features)}. {'Call one of them image' if pictures or arrays else 'Use another data set'}."
    )


def _pictures_of(features: Any) -> Iterator[str]:
    import tensorflow_datasets as tfds

    yield from (key for key, feature in features.items() if isinstance(feature, tfds.features.Image))


def _labels_of(features: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the scalar features, with their path in nested features."""
    import tensorflow_datasets as tfds

    for key, feature in features.items():
        if isinstance(feature, tfds.features.FeaturesDict):
            yield from _labels_of(feature, f"{prefix}{key}/")
        elif feature.shape == () and np.dtype(feature.np_dtype).kind in "buif":
            yield prefix + key, feature


def _nested(record: Mapping[str, Any], name: str) -> Any:
    for key in name.split("/"):
        record = record[key]
    return record


def _column(feature: Any, values: list[Any]) -> np.ndarray:
    """Converts labels to float64, int64 or class names. Classes named by numbers stay int64."""
    names = getattr(feature, "names", None)
    array = np.asarray(values)
    if names and not all(name.isdigit() for name in names):
        return np.array([names[value] if value >= 0 else "" for value in array.tolist()], object)
    return array.astype(np.float64 if array.dtype.kind == "f" else np.int64)


FORMAT = Format(lambda path, image_shape: (path / INFO).exists(), open_folder, parts=_splits_of)
