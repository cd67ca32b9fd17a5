"""Selects images by patterns of their names, and finds names that look like masks of images."""

import collections
import fnmatch
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath

import numpy as np
from jaxtyping import Bool

from diffae_jax.runtime.errors import UserError, counted, list_some, shown

SEPARATOR = re.compile(r"[_\-. ]")
MIN_SHARE = 0.25  # share of images with the same suffix from which a note is given


def select_images(
    ids: Sequence[str], include: str, exclude: str, *, all_must_match: bool = True
) -> Bool[np.ndarray, "n"]:
    """Returns a mask of the images that match `include` and do not match `exclude`.

    Args:
        ids: The names of the images.
        include: Patterns such as "*_t1.png,scans/*", separated by commas. * stands for any text, ?
            for one character and [ab] for one of several. A pattern matches a path or a file name.
            "": all images.
        exclude: The same for images to leave out.
        all_must_match: Whether each pattern must match an image.

    Raises:
        UserError: No image is left, or a pattern matches none and `all_must_match` is True.
    """
    selected = np.ones(len(ids), bool) if not include else np.zeros(len(ids), bool)
    for key, patterns, value in (("include", include, True), ("exclude", exclude, False)):
        for pattern in filter(None, map(str.strip, patterns.split(","))):
            matches = _matches(ids, pattern)
            if all_must_match and not matches.any():
                raise UserError(
                    f"The pattern {shown(pattern)} of data.{key} matches none of the {counted(len(ids), 'image')} "
                    f"({list_some(ids)}). Use a pattern of their names, such as *_mask.png."
                )
            selected[matches] = value
    if not selected.any():
        raise UserError(
            f"data.include={shown(include)} and data.exclude={shown(exclude)} leave none of the {len(ids):,} images. "
            f"Change the patterns."
        )
    return selected


def _matches(ids: Iterable[str], pattern: str) -> Bool[np.ndarray, "n"]:
    match = re.compile(fnmatch.translate(pattern)).match
    return np.array([bool(match(name) or match(_file_name(name))) for name in ids], bool)


def _file_name(name: str) -> str:
    file = name.rpartition("/")[2]
    return file if file not in ("", ".") else PurePath(name).name


def _stem(name: str) -> str:
    """Returns a path without its suffix, or "" if it has no file name."""
    start = name.rfind("/") + 1
    if "//" in name or "/." in name or name[start : start + 1] in ("", ".") or name[-1] == "." or name[0] == ".":
        path = PurePath(name)
        return str(path.with_suffix("")) if path.name else ""
    dot = name.rfind(".", start)  # for usual names, faster than a path
    return name if dot < 0 else name[:dot]


def notes_on_names(ids: Sequence[str]) -> list[str]:
    """Returns a note if many images are named like another image plus a suffix, such as _mask."""
    stems = {_stem(name) for name in ids} - {""}
    suffixes: collections.Counter = collections.Counter()
    for stem in stems:
        for separator in reversed(list(SEPARATOR.finditer(stem))):
            if stem[: separator.start()] in stems:
                suffixes[stem[separator.start() :]] += 1
                break
    for suffix, count in suffixes.most_common(1):
        if (
            count >= max(2, MIN_SHARE * len(ids)) and not suffix[1:].isdigit()
        ):  # a numeric suffix only numbers the images
            return [
                f"{count:,} of {len(ids):,} images are named like another image plus the suffix {shown(suffix)}. If "
                f'they are masks, leave them out with --config.data.exclude="*{shown(suffix)}.*".'
            ]
    return []
