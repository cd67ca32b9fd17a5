"""Tar files of images, as WebDataset writes them: one file, or a folder of shards.

An image KEY.jpg may have labels in two files: an integer in KEY.cls, and numbers and texts in
KEY.json. KEY ends at the first dot of the file name.
"""

import dataclasses
import io
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from diffae_jax.data.formats.encoded import Encoded
from diffae_jax.data.formats.files import (
    IMAGE_SUFFIXES,
    is_hidden,
    other_files,
    refuse_without_images,
)
from diffae_jax.data.formats.format import Format, OpenedDataset
from diffae_jax.data.labels.records import Scalar, columns_of, labels_of_columns, scalars_of
from diffae_jax.data.sources import check_amount, check_names, hash_of_sample_images, image_errors_as_user_errors
from diffae_jax.data.transforms import check_picture_shape
from diffae_jax.runtime.errors import UserError, list_some, reader_errors_as_user_errors, shown
from diffae_jax.runtime.files import check_file, has_suffix, parse_json

SUFFIX = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
CLASS, RECORD = ".cls", ".json"  # suffixes of the files of labels
BLOCK = tarfile.BLOCKSIZE

Place = tuple[int, int]  # the offset and the size of a file in a tar, in bytes


@dataclasses.dataclass(frozen=True, eq=False)
class TarShards(Encoded):
    """Image files in one or more tar files. Each is read from its place in the tar."""

    paths: Sequence[Path]
    ids: Sequence[str]
    shards: Int[np.ndarray, "n"]  # the index in `paths` for each image
    places: Int[np.ndarray, "n 2"]
    labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def encoded(self, index: int) -> bytes:
        """Returns the content of an image file. Raises UserError if the shard is missing."""
        shard = self._shard(index)
        check_file(shard)
        with image_errors_as_user_errors(self.name(index)), shard.open("rb") as file:
            return _read(file, self.places[index].tolist())

    def name(self, index: int) -> str:
        """Returns the id of an image, and the path of its shard."""
        return f"{self.ids[index]} of {self._shard(index)}"

    def _shard(self, index: int) -> Path:
        return self.paths[self.shards[index]]

    def overlaps(self, other: "TarShards") -> bool:
        """Returns whether another source reads one of the same files."""
        return bool({path.resolve() for path in self.paths} & {path.resolve() for path in other.paths})

    def fingerprint(self) -> str:
        """Returns a hash of all names and sizes, and of a sample of the images."""
        return hash_of_sample_images(self, *self.ids, *map(str, self.places[:, 1].tolist()))


def open_shards(path: Path, image_shape: tuple[int, ...]) -> OpenedDataset:
    """Opens a tar file, or all tar files in a folder, and reads their labels.

    Reads the headers of all files. Returns notes about files that are not used. Raises UserError
    if a tar is damaged, incomplete or compressed, or if there are no images.
    """
    check_picture_shape(image_shape)
    paths = sorted(_shards_in(path)) if path.is_dir() else [path]
    compressed = [shard.name for shard in paths if has_suffix(shard, COMPRESSED)]
    if compressed:
        raise UserError(
            f"{path} is compressed ({list_some(compressed)}), so single images cannot be read. Unpack it to .tar, as "
            f"gunzip does with .tar.gz."
        )
    ids, shards, places, records, others = [], [], [], [], []
    for i, shard in enumerate(paths):
        prefix = f"{shard.name}/" if path.is_dir() else ""
        files = _files_of(shard)
        images = sorted(name for name in files if _key_and_suffix(name)[1] in IMAGE_SUFFIXES)
        by_key = _records_of(shard, files, images)
        ids += [prefix + name for name in images]
        shards += [i] * len(images)
        places += [files[name] for name in images]
        records += [by_key[_key_and_suffix(name)[0]] for name in images]
        others += [prefix + name for name in files.keys() - set(images)]
    _check_ids(path, ids, others)
    source = TarShards(paths, ids, np.array(shards), np.array(places), labels_of_columns(columns_of(records)))
    return OpenedDataset(source, _kind(paths, path.is_dir()), _notes(others))


def _kind(paths: Sequence[Path], is_folder: bool) -> str:
    return f"{len(paths):,} tar file{'s' * (len(paths) != 1)} of images" if is_folder else "a tar of images"


def _check_ids(path: Path, ids: Sequence[str], others: Sequence[str]) -> None:
    check_amount(len(ids), (), str(path))
    check_names(ids)
    dotted = [name for name in others if has_suffix(name, IMAGE_SUFFIXES)]
    if dotted and not ids:
        raise UserError(
            f"{path} holds no image with a name such as 0001.jpg. Its images have several dots in their names "
            f"({list_some(dotted)}). In WebDataset, several dots mark further files of an image. Rename the images."
        )
    if not ids:
        refuse_without_images(path, others)


def _notes(others: Sequence[str]) -> list[str]:
    """Returns notes about the files that are neither images nor labels."""
    dotted = [name for name in others if has_suffix(name, IMAGE_SUFFIXES)]
    rest = [name for name in others if not has_suffix(name, (*IMAGE_SUFFIXES, CLASS))]
    if not dotted:
        return other_files(rest, ())
    count = f"{len(dotted):,} image{'s are' if len(dotted) != 1 else ' is'}"
    return [
        f"{count} not read, because several dots in a name mark further files of an image ({list_some(dotted)}).",
        *other_files(rest, ()),
    ]


def _files_of(path: Path) -> dict[str, Place]:
    """Returns the place of each file in a tar by name. If a name occurs twice, the last counts."""
    files = {}
    with reader_errors_as_user_errors(path, "a tar", "Copy it again"), tarfile.open(path, "r:") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # saves memory: a TarInfo takes 1 kB
            name = member.name.removeprefix("./")
            if member.isreg() and not member.issparse() and not is_hidden(name):
                files[name] = (member.offset_data, member.size)
        end = archive.offset
    with path.open("rb") as file:  # at a damaged header, tarfile stops without an error
        if _read(file, (end, BLOCK)) != bytes(BLOCK):
            raise UserError(f"{path} is incomplete or damaged after {len(files):,} files. Copy it again.")
    return files


def _read(file: io.BufferedReader, place: Sequence[int]) -> bytes:
    offset, size = place
    file.seek(offset)
    return file.read(size)


def _key_and_suffix(name: str) -> tuple[str, str]:
    """Splits a name at the first dot of the file, as WebDataset does."""
    start = name.rfind("/") + 1
    stem, dot, suffix = name[start:].partition(".")
    return name[:start] + stem, (dot + suffix).lower()


def _records_of(shard: Path, files: Mapping[str, Place], images: Sequence[str]) -> dict[str, dict[str, Scalar]]:
    """Returns the labels by key. Raises UserError if a file of labels is damaged."""
    records: dict[str, dict[str, Scalar]] = {_key_and_suffix(name)[0]: {} for name in images}
    with shard.open("rb") as file:
        for name, place in files.items():
            key, suffix = _key_and_suffix(name)
            if key in records and suffix == CLASS:
                records[key]["cls"] = _integer(_read(file, place), f"{name} of {shard}")
            elif key in records and suffix == RECORD:
                records[key] |= scalars_of(parse_json(_read(file, place), shard / name))
    return records


def _integer(content: bytes, name: str) -> int:
    try:
        return int(content)
    except ValueError as error:
        text = content.decode("utf-8", "replace")
        raise UserError(
            f"{name} holds {shown(text) or 'nothing'}, not an integer. Write the number of a class."
        ) from error


def _shards_in(folder: Path) -> Iterator[Path]:
    paths = (path for path in folder.iterdir() if has_suffix(path, (SUFFIX, *COMPRESSED)))
    yield from (path for path in paths if not path.name.startswith(".") and path.is_file())


def _is_tar(path: Path, image_shape: tuple[int, ...]) -> bool:
    if path.is_file():
        return has_suffix(path, (SUFFIX, *COMPRESSED))
    return path.is_dir() and next(_shards_in(path), None) is not None


FORMAT = Format(_is_tar, lambda path, part, image_shape: open_shards(path, image_shape))
