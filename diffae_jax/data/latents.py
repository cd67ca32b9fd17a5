"""Semantic codes of a data set: the files that hold them, and their statistics.

inputs.json              what they were made from: the autoencoder, and how many images of either split
training-00000.npz ...   ids and z of every training image in order, 1,024 a file; held_out-* those of the others
statistics.npz           mean and std of z over the training images
"""

import dataclasses
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from diffae_jax.runtime.arrays import AnyArray
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.files import atomic_write, os_errors_as_user_errors, read_json, read_rows

CHUNK_SIZE = 1024  # images
INPUTS, STATISTICS = "inputs.json", "statistics.npz"


@dataclasses.dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Mean and sample standard deviation (n - 1) of every dimension of z over a data set, float32.

    Raises UserError unless both are finite rows of one length that is not 0, and all deviations positive.
    """

    mean: Float[np.ndarray, "*d"]
    std: Float[np.ndarray, "*d"]

    def __post_init__(self):
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape or not self.mean.size:
            raise UserError(
                f"The statistics of z have shapes {self.mean.shape} and {self.std.shape}, not one row each."
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all() and (self.std > 0).all()):
            raise UserError("The statistics of z must be finite, with positive deviations.")

    @classmethod
    def of(cls, parts: Iterable[Float[np.ndarray, "_ d"]]) -> "LatentStatistics":
        """Takes the statistics of z that come in parts, in float64.

        Raises UserError for fewer than two z, and for dimensions in which all are the same.
        """
        count, mean, squares = 0, 0.0, 0.0  # squares: of the distances from the mean
        for part in parts:
            part_mean = part.mean(0, dtype=np.float64)
            part_squares = np.square(part - part_mean).sum(0)
            distance, total = part_mean - mean, count + len(part)
            squares = squares + part_squares + np.square(distance) * (count * len(part) / total)
            mean, count = mean + distance * (len(part) / total), total
        if count < 2:
            raise UserError(f"Statistics of z take at least two images, not {count}.")
        std = np.sqrt(squares / (count - 1))
        same = np.flatnonzero(std <= np.finfo(np.float32).eps * np.abs(mean))
        if len(same):
            raise UserError(
                f"All {count:,} images have the same value in {len(same)} of the {len(std)} dimensions of z (first in "
                f"{same[0]}), so z cannot be normalized: train the autoencoder longer, or one of smaller model.z_dim."
            )
        return cls(mean.astype(np.float32), std.astype(np.float32))

    def normalize(self, z: Float[AnyArray, "*n d"]) -> Float[AnyArray, "*n d"]:
        """Returns z with mean 0 and standard deviation 1 in every dimension."""
        return (z - self.mean) / self.std

    def denormalize(self, z: Float[AnyArray, "*n d"]) -> Float[AnyArray, "*n d"]:
        """The inverse of `normalize`."""
        return z * self.std + self.mean

    def save(self, path: Path) -> None:
        """Writes both rows as an npz."""
        _save(path, mean=self.mean, std=self.std)

    @classmethod
    def load(cls, path: Path) -> "LatentStatistics":
        """Reads what `save` wrote. Raises UserError where it is damaged."""
        return cls(*read_rows(path, ("mean", "std")))


def chunk_starts(num_images: int) -> range:
    """Returns the number of the first image of every part."""
    return range(0, num_images, CHUNK_SIZE)


def chunk_path(folder: Path, split: str, start: int) -> Path:
    """Returns the file of the images from number `start` on; split is training or held_out."""
    return folder / f"{split}-{start // CHUNK_SIZE:05d}.npz"


def write_chunk(path: Path, ids: Sequence[str], z: Float[np.ndarray, "n d"]) -> None:
    """Writes a part, which is there whole or not at all. Raises UserError, with its id, for a z that is not finite."""
    bad = np.flatnonzero(~np.isfinite(z).all(1))
    if len(bad):
        raise UserError(
            f"{len(bad)} of {len(z)} z are not finite, the first that of {ids[bad[0]]}: look at that image, or use "
            f"the precision float32 (train.precision of the config)."
        )
    _save(path, ids=np.asarray(ids), z=z)


def read_inputs(folder: Path) -> dict[str, Any]:
    """Returns what a stage's folder was made from. Raises UserError where the record of it is damaged."""
    inputs = read_json(folder / INPUTS)
    if not isinstance(inputs, dict):
        raise UserError(f"{folder / INPUTS} is damaged: remove that folder, and it is made anew.")
    return inputs


def read_statistics(folder: Path, autoencoder: str) -> LatentStatistics | None:
    """Returns the statistics of the z in a folder, where they are taken already.

    Raises UserError unless the z are those of the autoencoder of that digest.
    """
    if not (folder / STATISTICS).exists():
        return None
    if read_inputs(folder).get("autoencoder") != autoencoder:
        raise UserError(
            f"The z in {folder} are those of another autoencoder than the one beside it: remove that folder."
        )
    return LatentStatistics.load(folder / STATISTICS)


def count_of(folder: Path, split: str) -> int:
    """Returns how many images of a split the z in a folder are of. Raises UserError where the record is damaged."""
    count = read_inputs(folder).get(split)
    if type(count) is not int or not 0 <= count < 2**40:
        raise UserError(f"{folder / INPUTS} is damaged: remove that folder, and it is made anew.")
    return count


def read_chunks(folder: Path, split: str) -> Iterator[tuple[list[str], Float[np.ndarray, "n d"]]]:
    """Yields ids and z of every part of a split in order. Raises UserError for a part that is missing or damaged."""
    num_images = count_of(folder, split)
    for start in chunk_starts(num_images):
        path = chunk_path(folder, split, start)
        ids, z = _load_chunk(path)
        wanted = min(CHUNK_SIZE, num_images - start)
        rows = z.dtype.kind == "f" and z.ndim == 2 and ids.ndim == 1 and len(ids) == len(z) == wanted
        if not (rows and np.isfinite(z).all()):
            raise UserError(f"{path} does not hold {wanted} finite z: remove it and run the same command again.")
        yield ids.tolist(), z


def _save(path: Path, **arrays: np.ndarray) -> None:
    with os_errors_as_user_errors(path, "written"), atomic_write(path) as scratch:
        np.savez(scratch, **arrays)


def _load_chunk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):  # of any size, unpacked
                raise zipfile.BadZipFile("compressed")
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["ids"], arrays["z"]
    # what numpy raises depends on the byte that is wrong
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is missing or damaged: remove it and run the same command again.") from error
