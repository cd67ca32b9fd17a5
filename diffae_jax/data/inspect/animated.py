"""Finds animated files, of which only the first frame is read."""

from pathlib import Path

from diffae_jax.data.formats.files import file_paths, has_suffix
from diffae_jax.data.formats.pillow import open_picture
from diffae_jax.data.sources import Source, each
from diffae_jax.runtime.errors import UserError, counted, list_some

SUFFIXES = (".gif", ".webp", ".png")  # of files that may hold several frames


def notes_on_frames(source: Source) -> list[str]:
    """Returns a note about the animated files of a source, if any. Reads only headers."""
    paths = file_paths(source)
    ids = source.ids if paths else ()
    files = [(name, path) for name, path in zip(ids, paths, strict=True) if has_suffix(path, SUFFIXES)]
    found = each(_is_animated, (path for _, path in files))
    names = [name for (name, _), is_animated in zip(files, found, strict=True) if is_animated]
    if not names:
        return []
    return [
        f"{counted(len(names), 'file', verb='is/are')} animated ({list_some(names)}). Only the first frame is used."
    ]


def _is_animated(path: Path) -> bool:
    try:
        with open_picture(path, path) as image:
            return getattr(image, "is_animated", False)
    except UserError:  # the scan reports the file
        return False
