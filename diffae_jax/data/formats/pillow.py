"""Opens image files with Pillow, up to the size limit of all formats instead of Pillow's."""

import contextlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from diffae_jax.data.sources import check_amount, image_errors_as_user_errors

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # not EPS, which runs Ghostscript


class _OwnLimit:
    """Turns off Pillow's limit while a thread is in the block. That limit refuses large panoramas.

    The limit belongs to the whole process, so the last thread restores it.
    """

    def __init__(self):
        self._lock, self._num_inside, self._before = threading.Lock(), 0, None

    def __enter__(self) -> None:
        with self._lock:
            if not self._num_inside:
                self._before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._num_inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if not self._num_inside:
                Image.MAX_IMAGE_PIXELS = self._before


_own_limit = _OwnLimit()


@contextlib.contextmanager
def open_picture(file: Path | str | io.BytesIO, name: str | Path) -> Iterator[Image.Image]:
    """Opens an image file of one of `FORMATS`. Its pixels are not decoded yet.

    Raises UserError, with the name, for any error of Pillow in the block, and for an image with
    too many values.
    """
    with image_errors_as_user_errors(name), _own_limit, Image.open(file, formats=FORMATS) as image:
        check_amount(1, (*image.size, len(image.getbands())), str(name))
        yield image
