"""What sources of encoded image files have in common."""

import abc
import io
from collections.abc import Sequence

import numpy as np

from diffae_jax.data.formats.files import read_picture


class Encoded(abc.ABC):
    """A source of encoded image files, such as those in an archive.

    The header of each file has the size of the image, so sizes are found without decoding.
    """

    ids: Sequence[str]

    @abc.abstractmethod
    def encoded(self, index: int) -> bytes:
        """Returns the content of an image file. Raises UserError if it is missing or damaged."""

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """Returns the name of an image for messages."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns one image in its original size. Raises UserError if it is damaged."""
        return read_picture(io.BytesIO(self.encoded(index)), self.name(index))
