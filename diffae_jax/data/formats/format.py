"""Describes a storage format: how a path is recognized, and how it is opened."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from diffae_jax.data.sources import Source


@dataclasses.dataclass(frozen=True)
class OpenedDataset:
    """A data set whose format was detected.

    Args:
        source: The images.
        kind: The format for messages, such as "a folder of image files".
        notes: Sentences about what was inferred, such as which array of a file holds the images.
    """

    source: Source
    kind: str
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Format:
    """A storage format. The fields are functions of a path that exists.

    Args:
        recognizes: Takes (path, image_shape). Returns whether the path has this format. Reads at
            most the first bytes of a file or the names in a folder.
        open: Takes (path, part, image_shape). Opens the path, or the part whose name follows a #.
            Raises UserError if there are no images of this shape.
        parts: Takes a path. Returns the names of its parts. None: the format has no parts.
    """

    recognizes: Callable[[Path, tuple[int, ...]], bool]
    open: Callable[[Path, str, tuple[int, ...]], OpenedDataset]
    parts: Callable[[Path], Collection[str]] | None = None
