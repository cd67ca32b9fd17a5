"""Finds animated files, of which only the first frame is read."""

import struct

from diffae_jax.data.formats.files import file_names
from diffae_jax.data.formats.pillow import open_picture
from diffae_jax.data.sources import Source, each, group_size
from diffae_jax.runtime.errors import UserError, counted, list_some
from diffae_jax.runtime.files import file_size, has_suffix

SUFFIXES = (".gif", ".webp", ".png")  # of files that may hold several frames
PNG = b"\x89PNG\r\n\x1a\n"  # the first bytes of such a file
BEGINNING = 1024  # bytes that usually show that a PNG file is not animated


def notes_on_frames(source: Source) -> list[str]:
    """Returns a note about the animated files of a source, if any. Reads only headers."""
    paths = file_names(source)
    ids = source.ids if paths else ()
    files = [(name, path) for name, path in zip(ids, paths, strict=True) if has_suffix(path, SUFFIXES)]
    found = each(_is_animated, (path for _, path in files), in_group=group_size(len(files)))
    names = [name for (name, _), is_animated in zip(files, found, strict=True) if is_animated]
    if not names:
        return []
    return [
        f"{counted(len(names), 'file', verb='is/are')} animated ({list_some(names)}). Only the first frame is used."
    ]


def _is_animated(path: str) -> bool:
    try:
        if _is_plain_png(path):
            return False
        with open_picture(path, path) as image:
            return getattr(image, "is_animated", False)
    except (UserError, OSError):  # the scan reports the file
        return False


def _is_plain_png(path: str) -> bool:
    """Returns whether the beginning of a file shows a PNG with one frame. Pillow is slower."""
    if not has_suffix(path, ".png") or file_size(path) is None:  # a pipe would never end
        return False
    with open(path, "rb") as file:  # noqa: PTH123, many paths take seconds
        beginning = file.read(BEGINNING)
    position = len(PNG)
    while beginning.startswith(PNG) and position + 8 <= len(beginning):
        length, kind = struct.unpack_from(">I4s", beginning, position)
        if kind in (b"acTL", b"IDAT"):  # the chunk of animations comes before the pixels
            return kind == b"IDAT"
        position += 12 + length
    return False
