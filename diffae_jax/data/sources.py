"""Sources of images: random-access sequences of arrays with ids and labels, and what can be made of any of them.

What reads each format is in `formats`, and what recognizes it in `opening`.
"""

import collections
import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Shaped
from PIL import Image

from diffae_jax.data.transforms import PIL_MODES, Transform, pixels_of
from diffae_jax.runtime.errors import UserError, list_some, shown

MAX_IMAGES = 10_000_000  # of a source, and of a table
MAX_VALUES = 2**30  # of an image
NUM_AHEAD = 256  # images that are read before they are asked for
NUM_SAMPLES = 64  # images that tell one data set from another, where a hash of all would take too long


@runtime_checkable
class Source(Protocol):
    """A sequence of images [*spatial, C], uint8 or of other numbers, of one size or of many.

    A source goes to worker processes: it opens its files when it is first asked for an image.
    """

    ids: Sequence[str]
    labels: Mapping[str, np.ndarray]  # one value an image, by name; missing ones are NaN or ""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray: ...

    def name(self, index: int) -> str:
        """Returns what an image is called in a message: more than its id, where that helps to find it."""
        ...

    def fingerprint(self) -> str:
        """Returns a hash of what tells the images from others."""
        ...


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Images that lie in memory: `images` [N, *spatial, C]."""

    images: np.ndarray
    ids: Sequence[str]
    labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.images[index]

    def name(self, index: int) -> str:
        """Returns the id of an image."""
        return self.ids[index]

    def fingerprint(self) -> str:
        """Returns a hash of all values."""
        return hashlib.sha256(np.ascontiguousarray(self.images)).hexdigest()


@dataclasses.dataclass(frozen=True)
class SequenceSource:
    """Images of a Python sequence of arrays or PIL images, made or read when they are asked for."""

    images: Any  # with a length and items by number, as data sets of PyTorch have, too
    image_shape: tuple[int, ...]  # tells where the channels are
    labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @cached_property
    def ids(self) -> Sequence[str]:
        """The place of each image in the sequence."""
        return list(map(str, range(len(self.images))))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns an image. Raises UserError for what is none."""
        try:
            image = self.images[index]
        except Exception as error:  # a program of the user's, which may raise anything
            kind = type(error).__name__
            raise UserError(f"{self.name(index)} cannot be read ({kind}: {shown(str(error))}).") from error
        if isinstance(image, Image.Image):
            with image_errors_as_user_errors(self.name(index)):
                return pixels_of(image)
        try:
            array = np.asarray(image)
        except (ValueError, TypeError, RuntimeError) as error:  # RuntimeError: tensors of PyTorch with gradients
            raise UserError(f"{self.name(index)} is no array ({shown(str(error))}).") from error
        return channels_last(array, self.image_shape, self.name(index))

    def name(self, index: int) -> str:
        """Returns the place of an image."""
        return f"Image {index} of the sequence"

    def fingerprint(self) -> str:
        """Returns a hash of some images: the sequence may make each when it is asked for."""
        return hash_of_sample_images(self)


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some images of a source, in an order of their own."""

    source: Source
    rows: Int[np.ndarray, "n"]

    @cached_property
    def ids(self) -> Sequence[str]:
        """The ids of these images."""
        ids = self.source.ids
        return [ids[row] for row in self.rows]

    @cached_property
    def labels(self) -> Mapping[str, np.ndarray]:
        """The labels of these images."""
        return {name: values[self.rows] for name, values in self.source.labels.items()}

    def __getstate__(self) -> dict[str, Any]:
        return without_cache(self)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.source[int(self.rows[index])]

    def name(self, index: int) -> str:
        """Returns what the source calls the image."""
        return self.source.name(int(self.rows[index]))

    def fingerprint(self) -> str:
        """Returns a hash of the source and of the ids of these images."""
        return hash_of(self.source.fingerprint(), *self.ids)


@dataclasses.dataclass(frozen=True)
class LabeledSource:
    """A source with labels of a table in place of its own."""

    source: Source
    labels: Mapping[str, np.ndarray]

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "labels": {}}  # worker processes read images alone

    @property
    def ids(self) -> Sequence[str]:
        """The ids of the source."""
        return self.source.ids

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.source[index]

    def name(self, index: int) -> str:
        """Returns what the source calls the image."""
        return self.source.name(index)

    def fingerprint(self) -> str:
        """Returns that of the source: labels are told apart by `labels.fingerprint`."""
        return self.source.fingerprint()


@dataclasses.dataclass(frozen=True)
class TransformedSource:
    """The images of a source as the networks take them: all of one shape, uint8 or float32 in [-1, 1]."""

    source: Source
    transform: Transform

    @property
    def ids(self) -> Sequence[str]:
        """The ids of the source."""
        return self.source.ids

    @property
    def labels(self) -> Mapping[str, np.ndarray]:
        """The labels of the source."""
        return self.source.labels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns one image. Raises UserError, with its name, where it cannot be read or is not as it must be."""
        return self.transform(self.source[index], self.name(index))

    def name(self, index: int) -> str:
        """Returns what the source calls the image."""
        return self.source.name(index)

    def fingerprint(self) -> str:
        """Returns a hash of the source and of what is done to it."""
        return hash_of(self.source.fingerprint(), repr(self.transform))


def without_cache(source: Any) -> dict[str, Any]:
    """Returns the fields of a source, which go to other processes, without what it has opened or computed."""
    return {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}


@contextlib.contextmanager
def image_errors_as_user_errors(name: str | Path) -> Iterator[None]:
    """Turns what Pillow says about an image into a UserError with its name."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # decoders raise what they like for a damaged file
        raise UserError(f"{name} cannot be read as an image ({shown(str(error))}): repair or remove it.") from error


def channels_last(
    image: Shaped[np.ndarray, "*any"], image_shape: tuple[int, ...], name: str
) -> Shaped[np.ndarray, "*spatial c"]:
    """Returns an array as [*spatial, C] in native byte order.

    One without channels gets one, and channels in front move to the end: as many as are wanted, or as pictures have
    where the last axis has as many as neither. Raises UserError for an array of another rank or beyond all measure, and
    for one that holds no numbers.
    """
    check_numbers(image.dtype, name)
    check_amount(1, image.shape, name)
    image = image.astype(image.dtype.newbyteorder("="), copy=False)
    rank, channels = len(image_shape) - 1, image_shape[-1]
    if image.ndim == rank:
        return image[..., None]
    if image.ndim == rank + 1:
        first, last = image.shape[0], image.shape[-1]
        is_picture = rank == 2 and first in PIL_MODES and last not in PIL_MODES
        return np.moveaxis(image, 0, -1) if last != channels and (first == channels or is_picture) else image
    raise UserError(
        f"{name} has the shape {image.shape}, where images of {rank} axes and channels are wanted "
        f"(--config.image_shape={image_shape})."
    )


def check_amount(count: int, shape: Sequence[int], name: str) -> None:
    """Raises UserError for more images, or larger ones, than can be: a damaged file may say anything."""
    if count > MAX_IMAGES:
        raise UserError(f"{name} says that it holds {count:,} images, more than the {MAX_IMAGES:,} that are read.")
    values = math.prod(map(int, shape))
    if values > MAX_VALUES:
        raise UserError(f"{name} has {values:,} values an image, more than the {MAX_VALUES:,} that are read.")


def check_numbers(dtype: np.dtype, name: str) -> None:
    """Raises UserError for an array of anything but real numbers."""
    if dtype.kind not in "buif":
        raise UserError(f"{name} holds values of {shown(str(dtype))}, not numbers.")


def check_names(names: Sequence[str]) -> None:
    """Raises UserError for names of files that are not UTF-8: hashes and tables of ids take nothing else."""
    bad = [name for name in names if any("\ud800" <= char <= "\udfff" for char in name)]
    if bad:
        raise UserError(
            f"{len(bad):,} of {len(names):,} images have names that are not UTF-8 ({list_some(bad)}): rename them."
        )


def hash_share(name: str) -> float:
    """Returns a number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def hash_of(*texts: str) -> str:
    """Returns a hash of some texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{text}\0".encode())
    return digest.hexdigest()


def hash_of_sample_images(source: Source, *texts: str) -> str:
    """Returns a hash of evenly spaced images of a source, of their number, and of texts that tell more."""
    numbers = (
        np.unique(np.linspace(0, len(source) - 1, NUM_SAMPLES).round().astype(int)).tolist() if len(source) else []
    )
    digest = hashlib.sha256(hash_of(str(len(source)), *texts).encode())
    for number in numbers:
        try:
            image = source[number]
        except UserError:  # which says where the images are, and so is another for a copy of them
            digest.update(b"unreadable")
            continue
        digest.update(f"{image.shape} {image.dtype}".encode())
        digest.update(np.ascontiguousarray(image))
    return digest.hexdigest()


def choose(num_images: int, count: int, seed: int) -> np.ndarray:
    """Returns the numbers of at most `count` images, in order, chosen at random: neighbors may be of one kind."""
    if num_images <= count:
        return np.arange(num_images)
    return np.sort(np.random.default_rng(seed).choice(num_images, count, replace=False))


def read(images: Source, numbers: Iterable[int] | Int[np.ndarray, "n"]) -> Shaped[np.ndarray, "n *shape"]:
    """Reads some images of a source, all of one shape."""
    return np.stack(list(each(images.__getitem__, map(int, numbers))))


def each(call: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Calls a function for each item, some side by side, and yields what it returns in order, few of it ahead."""
    with ThreadPoolExecutor() as pool:
        waiting: collections.deque[Future] = collections.deque()
        for item in items:
            waiting.append(pool.submit(call, item))
            if len(waiting) > NUM_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
