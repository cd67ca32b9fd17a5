"""Latent codes of a data set: their files and their statistics.

inputs.json              the digest of the autoencoder, and the number of images in each split
training-00000.npz ...   ids and z of the training images in order, 1,024 images in each file
held_out-00000.npz ...   the same for the held-out images
statistics.npz           mean and std of z over the training images
"""

import dataclasses
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from diffae_jax.runtime.arrays import AnyArray
from diffae_jax.runtime.console import say
from diffae_jax.runtime.errors import UserError, counted
from diffae_jax.runtime.files import AnyPath, atomic_write, os_errors_as_user_errors, read_json, read_rows

CHUNK_SIZE = 1024  # images
INPUTS, STATISTICS = "inputs.json", "statistics.npz"


@dataclasses.dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Mean and standard deviation of each dimension of z over the training images.

    Args:
        mean: The mean of each dimension, float32 [D].
        std: The sample standard deviation (n - 1) of each dimension, float32 [D], positive.

    Raises:
        UserError: The shapes differ, a value is not finite, or a deviation is not positive.
    """

    mean: Float[np.ndarray, "*d"]
    std: Float[np.ndarray, "*d"]

    def __post_init__(self):
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape or not self.mean.size:
            raise UserError(
                f"The mean and std of z have shapes {self.mean.shape} and {self.std.shape}. Both must have shape [D]. "
                f"Give one value for each dimension of z."
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all() and (self.std > 0).all()):
            raise UserError("The mean and std of z must be finite, and each std must be positive.")

    @classmethod
    def of(cls, parts: Iterable[Float[np.ndarray, "_ d"]]) -> "LatentStatistics":
        """Computes the statistics of z in one pass, in float64.

        Args:
            parts: Chunks of z, each [n, D].

        Returns:
            The statistics over all chunks.

        Raises:
            UserError: There are fewer than two z, or a dimension is constant.
        """
        count, mean, squares = 0, 0.0, 0.0  # squares: sum of squared distances from the mean
        for part in parts:
            part_mean = part.mean(0, dtype=np.float64)
            part_squares = np.square(part - part_mean).sum(0)
            distance, total = part_mean - mean, count + len(part)
            squares = squares + part_squares + np.square(distance) * (count * len(part) / total)
            mean, count = mean + distance * (len(part) / total), total
        if count < 2:
            raise UserError(f"Statistics of z need at least two images, not {count}.")
        std = np.sqrt(squares / (count - 1))
        same = np.flatnonzero(std <= np.finfo(np.float32).eps * np.abs(mean))
        if len(same):
            raise UserError(
                f"z cannot be normalized: all {count:,} images have the same value in {len(same)} of its {len(std)} "
                f"dimensions (the first is {same[0]}). Train the autoencoder longer, or with a smaller model.z_dim."
            )
        return cls(mean.astype(np.float32), std.astype(np.float32))

    def normalize(self, z: Float[AnyArray, "*n d"]) -> Float[AnyArray, "*n d"]:
        """Normalizes z to mean 0 and standard deviation 1 in each dimension.

        Args:
            z: Latent codes, [n, D] or [D].

        Returns:
            Normalized z in the same shape.
        """
        return (z - self.mean) / self.std

    def denormalize(self, z: Float[AnyArray, "*n d"]) -> Float[AnyArray, "*n d"]:
        """Inverts `normalize`.

        Args:
            z: Normalized z, [n, D] or [D].

        Returns:
            Latent codes in the same shape.
        """
        return z * self.std + self.mean

    def save(self, path: AnyPath) -> None:
        """Writes the mean and std to an npz file, atomically."""
        _save(path, mean=self.mean, std=self.std)

    @classmethod
    def load(cls, path: AnyPath) -> "LatentStatistics":
        """Reads a file that `save` wrote. Raises UserError if it is damaged."""
        return cls(*read_rows(path, ("mean", "std")))

    @classmethod
    def load_if_undamaged(cls, path: AnyPath) -> "LatentStatistics | None":
        """Reads a file, or returns None if it is missing or, after a message, if damaged."""
        try:
            return cls.load(path) if path.exists() else None
        except UserError as error:
            say(f"WARNING: {error} The statistics of z are computed again.")
            return None


def chunk_starts(num_images: int) -> range:
    """Returns the index of the first image of each chunk."""
    return range(0, num_images, CHUNK_SIZE)


def chunk_path(folder: AnyPath, split: str, start: int) -> AnyPath:
    """Returns the file of the chunk that begins at image `start` of "training" or "held_out"."""
    return folder / f"{split}-{start // CHUNK_SIZE:05d}.npz"


def write_chunk(path: AnyPath, ids: Sequence[str], z: Float[np.ndarray, "n d"]) -> None:
    """Writes a chunk atomically. Raises UserError, with the id, if a z is not finite."""
    bad = np.flatnonzero(~np.isfinite(z).all(1))
    if len(bad):
        raise UserError(
            f"{counted(len(bad), 'z', 'z', of=len(z), verb='is/are')} not finite. The first is that of {ids[bad[0]]}. "
            f"Check that image, or set train.precision to float32 in the config."
        )
    _save(path, ids=np.asarray(ids), z=z)


def read_inputs(folder: AnyPath) -> dict[str, Any]:
    """Returns the inputs of the stage that wrote a folder. Raises UserError if damaged."""
    inputs = read_json(folder / INPUTS)
    if not isinstance(inputs, dict):
        raise UserError(f"{folder / INPUTS} is damaged. Remove {folder} and run the same command again.")
    return inputs


def read_statistics(folder: AnyPath, autoencoder: str) -> LatentStatistics | None:
    """Returns the statistics of the z in a folder, or None if they are not computed yet.

    Raises UserError unless the autoencoder whose digest is `autoencoder` encoded the z.
    """
    if not (folder / STATISTICS).exists():
        return None
    if read_inputs(folder).get("autoencoder") != autoencoder:
        raise UserError(
            f"The z in {folder} were encoded by a different autoencoder than the one next to it. Remove {folder}."
        )
    return LatentStatistics.load(folder / STATISTICS)


def count_of(folder: AnyPath, split: str) -> int:
    """Returns the number of images in a split. Raises UserError if the record is damaged."""
    count = read_inputs(folder).get(split)
    if type(count) is not int or not 0 <= count < 2**40:
        raise UserError(f"{folder / INPUTS} is damaged. Remove {folder} and run the same command again.")
    return count


def read_chunks(folder: AnyPath, split: str) -> Iterator[tuple[list[str], Float[np.ndarray, "n d"]]]:
    """Yields ids and z of each chunk of a split. Raises UserError if one is missing or damaged."""
    num_images = count_of(folder, split)
    for start in chunk_starts(num_images):
        path, wanted = chunk_path(folder, split, start), min(CHUNK_SIZE, num_images - start)
        try:
            yield _read_chunk(path, wanted)
        except _DamagedError as error:
            raise UserError(f"{path} {error}. Run the stage latents to encode its images again.") from error


class _DamagedError(Exception):
    """A chunk cannot be used; the message is the end of a sentence that begins with its path."""


def is_encoded(folder: AnyPath, split: str, start: int, num_images: int) -> bool:
    """Returns whether the chunk that begins at image `start` exists and is undamaged.

    Each array in it has a CRC-32. Prints a warning about a damaged one.
    """
    path = chunk_path(folder, split, start)
    if not path.exists():
        return False
    try:
        _read_chunk(path, min(CHUNK_SIZE, num_images - start))
    except _DamagedError as error:
        say(f"WARNING: {path} {error}. Its images are encoded again. Check the disk.")
        return False
    return True


def _read_chunk(path: AnyPath, wanted: int) -> tuple[list[str], Float[np.ndarray, "n d"]]:
    ids, z = _load_chunk(path)
    rows = z.dtype.kind == "f" and z.ndim == 2 and ids.ndim == 1 and len(ids) == len(z) == wanted
    if not (rows and np.isfinite(z).all()):
        raise _DamagedError(f"does not hold {wanted} finite z")
    return ids.tolist(), z


def _save(path: AnyPath, **arrays: np.ndarray) -> None:
    with os_errors_as_user_errors(path, "written"), atomic_write(path) as scratch:
        np.savez(scratch, **arrays)


def _load_chunk(path: AnyPath) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as file:
            with zipfile.ZipFile(file) as archive:
                if any(
                    info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()
                ):  # it may unpack to any size
                    raise zipfile.BadZipFile("compressed")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return arrays["ids"], arrays["z"]
    # the type of the error depends on which byte is damaged
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile) as error:
        raise _DamagedError("is missing or damaged") from error
