"""Opens the files of a data set of Hugging Face as memory-mapped Arrow tables."""

import collections
import contextlib
import dataclasses
import glob
import importlib.util
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffae_jax.data.formats.tfds import INFO
from diffae_jax.data.labels.table import PARQUET_SUFFIXES
from diffae_jax.runtime.errors import UserError, list_some, reader_errors_as_user_errors, shown
from diffae_jax.runtime.files import has_suffix

HUB = re.compile(r"hf:/{1,2}datasets/((?:[\w.-]+/)?[\w.-]+)(?:@([\w./-]+))?")  # a Path turns // into /
SAVED = ("state.json", "dataset_dict.json")  # in a folder of save_to_disk
ARROW, ARROW_MAGIC = ".arrow", b"ARROW1"  # the first bytes of Arrow's file format; its stream format has none
SHARD = re.compile(r"(.*)-\d{5}-of-(\d{5})")  # the name of one of several files
POINTER = b"version https://git-lfs"  # the start of a file that Git LFS has not loaded
CONFIGURATIONS = re.compile(r"available configs: \[(.*)\]")  # in an error of the library
LOGGERS = ("datasets", "huggingface_hub")


@dataclasses.dataclass(frozen=True)
class Split:
    """A split in Arrow files."""

    arrow_files: Sequence[Path]
    num_rows: int


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The splits of a data set by name, and notes for the user."""

    splits: Mapping[str, Split]
    notes: Sequence[str]


def load(path: Path | str, configuration: str) -> Loaded:
    """Opens files, a folder or a name on the Hub. Parquet is copied to Arrow on first use.

    Raises UserError if the library is missing, or if there is no such data set.
    """
    if importlib.util.find_spec("datasets") is None:
        raise UserError(f'{path} needs Hugging Face Datasets: pip install "diffae_jax[huggingface]".')
    import datasets

    name = HUB.fullmatch(str(path))
    with _quiet(), library_errors_as_user_errors(path):
        if name is not None:
            found = datasets.load_dataset(name[1], configuration or None, revision=name[2])
        elif path.is_file() and has_suffix(path, ARROW):
            return Loaded({"train": Split([path], len(open_arrow([path])))}, ())
        elif is_saved(path):
            found = datasets.load_from_disk(path)
        else:
            found = _load_files(path, configuration)
    splits = found if isinstance(found, dict) else {"train": found}
    opened = {str(split): Split(_arrow_files(rows), len(rows)) for split, rows in splits.items()}
    return Loaded(opened, _notes(path, opened))


def _load_files(path: Path, configuration: str) -> Any:
    """Loads Parquet files, or a folder of them, such as a clone of a repository on the Hub."""
    import datasets

    for file in data_files(path):
        _check_readable(file)
    if path.is_file():
        return datasets.load_dataset("parquet", data_files=glob.escape(str(path.resolve())))
    if glob.has_magic(str(path.resolve())):
        raise UserError(
            f"{path} has *, ? or [ in its path, which Hugging Face Datasets takes for a pattern. Rename it."
        )
    return datasets.load_dataset(str(path.resolve()), configuration or None)


def _arrow_files(rows: Any) -> list[Path]:
    return [Path(file["filename"]) for file in rows.cache_files]


def _notes(path: Path | str, splits: Mapping[str, Split]) -> list[str]:
    """Returns notes about the copy of the data, and about missing files."""
    notes = []
    files = [file for split in splits.values() for file in split.arrow_files]
    copies = [file for file in files if isinstance(path, str) or not file.is_relative_to(path)]
    if copies:
        size = sum(file.stat().st_size for file in copies) / 2**20
        notes.append(
            f"Images are read from an Arrow copy ({size:,.1f} MiB in {copies[0].parent}), because Parquet cannot be "
            f"read in random order. To move the copy, set HF_HOME."
        )
    for name, (found, count) in _incomplete(path).items():
        notes.append(
            f"Only {found:,} of the {count:,} files {name}-*.parquet exist. Copy the others to use all images."
        )
    return notes


def _incomplete(path: Path | str) -> dict[str, tuple[int, int]]:
    """Returns (existing files, expected files) for each incomplete series of files."""
    names = [SHARD.fullmatch(file.stem) for file in data_files(Path(path))]
    series = collections.Counter((match[1], int(match[2])) for match in names if match)
    return {name: (found, count) for (name, count), found in series.items() if found < count}


def open_arrow(paths: Sequence[Path]) -> Any:
    """Maps Arrow files into memory as one table. Raises UserError if one is damaged."""
    import pyarrow

    tables = []
    for path in paths:
        with reader_errors_as_user_errors(path, "Arrow"):
            tables.append(_arrow_reader(path).read_all())
    with reader_errors_as_user_errors(paths[0], "Arrow"):
        return pyarrow.concat_tables(tables)


def _arrow_reader(path: Path) -> Any:
    from pyarrow import ipc, memory_map

    file = memory_map(str(path))
    is_stream = file.read(len(ARROW_MAGIC)) != ARROW_MAGIC
    file.seek(0)
    return ipc.open_stream(file) if is_stream else ipc.open_file(file)


def is_huggingface(path: Path) -> bool:
    """Returns whether a path is a folder of save_to_disk, or has files with a column of images.

    A damaged file counts too, so that it is reported. In a folder, it counts only if it is named
    like a shard, such as train-00000-of-00002.parquet.
    """
    if is_saved(path):
        return True
    schemas = {file: _schema(file) for file in data_files(path)}
    return any(
        _has_images(schema) if schema is not None else file == path or SHARD.fullmatch(file.stem)
        for file, schema in schemas.items()
    )


def has_image_column(path: Path) -> bool:
    """Returns whether a path is a Parquet or Arrow file with a column of images."""
    return path.is_file() and any(_has_images(_schema(file)) for file in data_files(path))


def is_saved(path: Path) -> bool:
    """Returns whether a path is a folder that save_to_disk wrote."""
    return any((path / name).is_file() for name in SAVED)


def data_files(path: Path) -> Iterator[Path]:
    """Yields the Parquet and Arrow files of a path.

    The path is such a file, or a folder. Its direct subfolders are searched too. Parquet files of
    TensorFlow Datasets are left out.
    """
    if not path.is_dir():
        yield from [path] if has_suffix(path, (*PARQUET_SUFFIXES, ARROW)) else []
        return
    suffixes = (ARROW,) if (path / INFO).exists() else (".parquet", ARROW)
    for pattern in (f"{folder}*{suffix}" for folder in ("", "*/") for suffix in suffixes):
        for file in sorted(path.glob(pattern)):
            if not any(part.startswith(".") for part in file.relative_to(path).parts) and file.is_file():
                yield file


def is_encoded(kind: Any) -> bool:
    """Returns whether an Arrow type may hold encoded images: bytes, or a struct with bytes."""
    from pyarrow import types

    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and is_encoded(kind.field("bytes").type)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _has_images(schema: Any) -> bool:
    return schema is not None and any(is_encoded(field.type) for field in schema)


def _schema(path: Path) -> Any:
    """Returns the Arrow schema of a file, or None if it is damaged."""
    try:
        return _read_schema(path)
    except Exception:  # readers raise errors of many types for a damaged file
        return None


def _read_schema(path: Path) -> Any:
    from pyarrow import parquet

    return _arrow_reader(path).schema if has_suffix(path, ARROW) else parquet.read_schema(path)


def _check_readable(path: Path) -> None:
    """Raises UserError, with the file, if it is damaged or was not downloaded."""
    with path.open("rb") as file:
        is_pointer = file.read(len(POINTER)) == POINTER
    if is_pointer:
        raise UserError(f"{path} only points to a file of Git LFS. Run `git lfs pull` in its folder.")
    with reader_errors_as_user_errors(path, "Arrow" if has_suffix(path, ARROW) else "Parquet"):
        _read_schema(path)


@contextlib.contextmanager
def library_errors_as_user_errors(name: Path | str) -> Iterator[None]:
    """Converts any error of `datasets` into a UserError with the data set."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the library raises errors of many types
        if isinstance(error, FileNotFoundError) and error.filename:
            raise UserError(f"{error.filename} is missing. Copy {name} again.") from error
        text = str(error.__cause__ or error)
        configurations = CONFIGURATIONS.search(text)
        if configurations is not None:
            names = re.findall(r"'([^']*)'", configurations[1])
            raise UserError(
                f"{name} has several configurations ({list_some(names)}). Choose one, for example "
                f"{name}#{names[0]}/train."
            ) from error
        if HUB.fullmatch(str(name)):
            raise UserError(f"{name} cannot be loaded ({shown(text)}). Check the name and the network.") from error
        raise UserError(
            f"{name} cannot be read as a data set of Hugging Face ({shown(text)}). Check its files."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the progress bars and messages of the library."""
    import datasets
    import huggingface_hub

    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    modules = [module for module in (datasets.utils, huggingface_hub.utils) if not module.are_progress_bars_disabled()]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        for module in modules:
            module.disable_progress_bars()
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for module in modules:
            module.enable_progress_bars()
