"""What a storage format declares: how a path is recognized, and how it is opened."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from diffae_jax.data.sources import Source


@runtime_checkable
class Encoded(Protocol):
    """What sources of encoded images also have. The size of such an image is in its header."""

    def encoded(self, index: int) -> bytes:
        """Returns the content of the image file."""
        ...

    def name(self, index: int) -> str:
        """Returns the name of an image for messages."""
        ...


@dataclasses.dataclass(frozen=True)
class OpenedDataset:
    """A data set whose format was detected.

    Args:
        source: The images.
        kind: The format for messages, such as "a folder of image files".
        notes: Sentences on what was inferred, such as which array of a file holds the images.
    """

    source: Source
    kind: str
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Format:
    """A storage format. The fields are functions of a path that exists.

    Args:
        recognizes: Returns whether a path has this format, for an image_shape. It reads at most
            the first bytes of a file or the names in a folder.
        open: Opens a path, or the part of it that is named after a #, for an image_shape. Raises
            UserError if it holds no such images.
        parts: Returns the names of the parts of a path. None: the format has no parts.
    """

    recognizes: Callable[[Path, tuple[int, ...]], bool]
    open: Callable[[Path, str, tuple[int, ...]], OpenedDataset]
    parts: Callable[[Path], Collection[str]] | None = None
