"""Sources of images: random-access sequences of arrays with ids and labels, and wrappers.

The modules of `formats` read each storage format. `detect` detects the format of a path.
"""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Shaped

from diffae_jax.data.transforms import PIL_MODES, Transform
from diffae_jax.runtime.errors import UserError, counted, list_some, reader_errors_as_user_errors, shown

MAX_IMAGES = 10_000_000  # in a source or a table
MAX_VALUES = 2**30  # in an image
NUM_AHEAD = 256  # images that are read ahead
MOST_IN_GROUP = 8  # images that a thread reads before it returns their results
IN_PART = 4096  # texts that are hashed at once
NUM_SAMPLES = 64  # images in a fingerprint: hashing all of them would take too long


@runtime_checkable
class Source(Protocol):
    """A sequence of images [*spatial, C] of any numeric type. Their sizes may differ.

    Worker processes receive a pickled copy of the source. A source therefore opens its files when
    the first image is read.

    Attributes:
        ids: A unique name for each image.
        labels: By label name, an array with one value per image. A missing value is NaN or "".
    """

    ids: Sequence[str]
    labels: Mapping[str, np.ndarray]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray: ...

    def name(self, index: int) -> str:
        """Returns the name of an image for messages, such as its path."""
        ...

    def fingerprint(self) -> str:
        """Returns a hash that identifies the set of images."""
        ...


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Images in memory.

    Args:
        images: The images, [N, *spatial, C].
        ids: A unique name for each image.
        labels: By label name, an array with one value for each image.
    """

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
class Subset:
    """Some images of a source, in any order.

    Args:
        source: The source to take images from.
        rows: The index in `source` of each image of the subset, [n].
    """

    source: Source
    rows: Int[np.ndarray, "n"]

    @cached_property
    def ids(self) -> Sequence[str]:
        """The ids of the subset."""
        ids = self.source.ids
        return [ids[row] for row in self.rows.tolist()]

    @cached_property
    def labels(self) -> Mapping[str, np.ndarray]:
        """The labels of the subset."""
        return {name: values[self.rows] for name, values in self.source.labels.items()}

    def __getstate__(self) -> dict[str, Any]:
        return without_cache(self)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.source[int(self.rows[index])]

    def name(self, index: int) -> str:
        """Returns the name of the image in the source."""
        return self.source.name(int(self.rows[index]))

    def fingerprint(self) -> str:
        """Returns a hash of the source and of the ids of the subset."""
        return self.fingerprint_from(self.source.fingerprint())

    def fingerprint_from(self, inner: str) -> str:
        """Returns the fingerprint, given that of the source."""
        return hash_of(inner, *self.ids)


@dataclasses.dataclass(frozen=True)
class LabeledSource:
    """A source whose labels are replaced.

    Args:
        source: The source of the images.
        labels: By label name, an array with one value for each image.
    """

    source: Source
    labels: Mapping[str, np.ndarray]

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "labels": {}}  # worker processes only read images

    @property
    def ids(self) -> Sequence[str]:
        """The ids of the source."""
        return self.source.ids

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.source[index]

    def name(self, index: int) -> str:
        """Returns the name of the image in the source."""
        return self.source.name(index)

    def fingerprint(self) -> str:
        """Returns the fingerprint of the source. `labels.matching.fingerprint` covers labels."""
        return self.fingerprint_from(self.source.fingerprint())

    def fingerprint_from(self, inner: str) -> str:
        """Returns the fingerprint, given that of the source."""
        return inner


@dataclasses.dataclass(frozen=True)
class TransformedSource:
    """The images of a source as the networks take them: one shape, uint8 or float32 in [-1, 1].

    Args:
        source: The source of the images.
        transform: Crops, scales and converts each image.
    """

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
        """Returns one image. Raises UserError, with its name, if it cannot be read or used."""
        return self.transform(self.source[index], self.name(index))

    def name(self, index: int) -> str:
        """Returns the name of the image in the source."""
        return self.source.name(index)

    def fingerprint(self) -> str:
        """Returns a hash of the source and the transform."""
        return self.fingerprint_from(self.source.fingerprint())

    def fingerprint_from(self, inner: str) -> str:
        """Returns the fingerprint, given that of the source."""
        return hash_of(inner, repr(self.transform))


def fingerprints(*sources: Source) -> list[str]:
    """Returns the fingerprint of each source. That of a source in several of them is made once."""
    known: dict[int, str] = {}  # by the identity of a source, as equal sources may be slow to compare

    def fingerprint(source: Any) -> str:
        if id(source) not in known:
            is_wrapper = isinstance(source, Subset | LabeledSource | TransformedSource)
            known[id(source)] = (
                source.fingerprint_from(fingerprint(source.source)) if is_wrapper else source.fingerprint()
            )
        return known[id(source)]

    return [fingerprint(source) for source in sources]


def without_cache(source: Any) -> dict[str, Any]:
    """Returns the fields of a source, without cached properties, to pickle it."""
    return {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}


def image_errors_as_user_errors(name: str | Path) -> contextlib.AbstractContextManager[None]:
    """Converts any error of Pillow into a UserError with the name of the image."""
    return reader_errors_as_user_errors(name, "an image")


def channels_last(
    image: Shaped[np.ndarray, "*any"], image_shape: tuple[int, ...], name: str
) -> Shaped[np.ndarray, "*spatial c"]:
    """Returns an array as [*spatial, C] in native byte order.

    An array without a channel axis gets one. Channels in the first axis move to the end. They are
    recognized by the number of channels of `image_shape`, or of a picture. Raises UserError if the
    array has the wrong rank, is too large, or does not hold numbers.
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
        f"{name} has shape {image.shape}, but --config.image_shape={image_shape} needs {rank} spatial axes, with or "
        f"without a channel axis. Set --config.image_shape to the shape of your images."
    )


def check_amount(count: int, shape: Sequence[int], name: str) -> None:
    """Raises UserError for too many or too large images: a damaged header may claim any size."""
    if count > MAX_IMAGES:
        raise UserError(
            f"{name} claims to hold {count:,} images. At most {MAX_IMAGES:,} can be read. Use fewer images, or copy "
            f"the file again if it is damaged."
        )
    values = math.prod(map(int, shape))
    if values > MAX_VALUES:
        raise UserError(
            f"{name} has {values:,} values per image. At most {MAX_VALUES:,} can be read. Use smaller images, or copy "
            f"the file again if it is damaged."
        )


def check_numbers(dtype: np.dtype, name: str) -> None:
    """Raises UserError unless an array holds real numbers."""
    if dtype.kind not in "buif":
        raise UserError(f"{name} holds values of {shown(str(dtype))}, not numbers. Convert them to numbers.")


def check_names(names: Sequence[str]) -> None:
    """Raises UserError for file names that are not UTF-8: they cannot be hashed or stored."""
    bad = [name for name in names if not name.isascii() and any("\ud800" <= char <= "\udfff" for char in name)]
    if bad:
        raise UserError(
            f"{counted(len(bad), 'image', of=len(names), verb='has a name/have names')} not in UTF-8 "
            f"({list_some(bad)}). Rename them."
        )


def hash_share(name: str) -> float:
    """Returns a number in [0, 1) that depends only on the name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def hash_of(*texts: str) -> str:
    """Returns a hash of some texts and their order."""
    return hash_of_all(texts)


def hash_of_all(texts: Iterable[str]) -> str:
    """Returns the same hash of many texts as `hash_of`, without holding all of them."""
    digest, waiting = hashlib.sha256(), iter(texts)
    while part := list(itertools.islice(waiting, IN_PART)):
        digest.update("\0".join([*part, ""]).encode())
    return digest.hexdigest()


def hash_of_sample_images(source: Source, *texts: str) -> str:
    """Returns a hash of evenly spaced images, of the number of images, and of some texts."""
    indices = (
        np.unique(np.linspace(0, len(source) - 1, NUM_SAMPLES).round().astype(int)).tolist() if len(source) else []
    )
    digest = hashlib.sha256(hash_of(str(len(source)), *texts).encode())
    for index in indices:
        try:
            image = source[index]
        except UserError:  # the message contains the path, so a copied data set would get another hash
            digest.update(b"unreadable")
            continue
        digest.update(f"{image.shape} {image.dtype}".encode())
        digest.update(np.ascontiguousarray(image))
    return digest.hexdigest()


def choose(num_images: int, count: int, seed: int) -> np.ndarray:
    """Chooses images at random.

    Adjacent images often share a class, so random images represent a data set better.

    Args:
        num_images: The number of images to choose from.
        count: The number of images to choose.
        seed: The seed of the random choice.

    Returns:
        The indices in increasing order, [min(count, num_images)].
    """
    if num_images <= count:
        return np.arange(num_images)
    return np.sort(np.random.default_rng(seed).choice(num_images, count, replace=False))


def read(images: Source, indices: Iterable[int] | Int[np.ndarray, "n"]) -> Shaped[np.ndarray, "n *shape"]:
    """Reads some images of a source in parallel.

    Args:
        images: A source whose images have the same shape, such as a `TransformedSource`.
        indices: The images to read, [n].

    Returns:
        The images in the order of `indices`, [n, *shape].

    Raises:
        UserError: An image cannot be read or used.
    """
    return np.stack(list(each(images.__getitem__, map(int, indices))))


def each(call: Callable[[Any], Any], items: Iterable[Any], *, in_group: int = 1) -> Iterator[Any]:
    """Calls a function for each item in parallel threads, and yields the results in order.

    A thread takes `in_group` items at a time, because passing on short calls one by one is slow.
    """

    def call_all(group: list[Any]) -> list[Any]:
        return [call(item) for item in group]

    remaining = iter(items)
    with ThreadPoolExecutor() as pool:
        waiting: collections.deque[Future] = collections.deque()
        while group := list(itertools.islice(remaining, in_group)):
            waiting.append(pool.submit(call_all, group))
            if len(waiting) * in_group > NUM_AHEAD:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def group_size(count: int) -> int:
    """Returns how many of `count` short calls a thread takes at a time. All threads stay busy."""
    return max(1, min(MOST_IN_GROUP, count // NUM_AHEAD // 4))
