"""Finds the shipped models and their example images.

NAME/                   a bundle with half-precision weights
example_images/NAME/    PNG files of held-out images; labels.json, a table of their labels; and
                        about.json, their source and license

`python -m benchmarks.ship` makes both.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.files import read_json

HERE = Path(__file__).parent
EXAMPLE_IMAGES = "example_images"
LABELS, ABOUT = "labels.json", "about.json"
MARKER = "manifest.json"  # of a bundle


@dataclasses.dataclass(frozen=True)
class Examples:
    """Images of a shipped model's data set that the model was not trained on.

    Attributes:
        images: the images, [N, H, W, C].
        labels: by label name, an array with one value for each image.
        folder: the PNG files and `labels.json`, for commands that take images.
        source: where the images come from.
        license: their license.
    """

    images: UInt8[np.ndarray, "n h w c"]
    labels: Mapping[str, np.ndarray]
    folder: Path
    source: str
    license: str


def names() -> list[str]:
    """Returns the names of the shipped models."""
    return sorted(manifest.parent.name for manifest in HERE.glob(f"*/{MARKER}"))


def is_shipped(path: str | os.PathLike) -> bool:
    """Returns whether a path is the name of a shipped model. An existing path is not."""
    return os.fspath(path) in names() and not Path(path).exists()


def folder_of(name: str) -> Path:
    """Returns the bundle of a shipped model. Raises UserError if there is none of that name."""
    if name not in names():
        raise UserError(f"There is no shipped model {shown(name)}. Choose one of: {list_some(names())}.")
    return HERE / name


def examples(name: str) -> Examples:
    """Returns the example images of a shipped model.

    Their folders and classes vary, and neighbors differ. Raises UserError if there is no shipped
    model of that name.
    """
    folder = folder_of(name).parent / EXAMPLE_IMAGES / name
    rows: list[dict[str, Any]] = read_json(folder / LABELS)
    about = read_json(folder / ABOUT)
    images = np.stack([_pixels(folder / row["file"]) for row in rows])
    labels = {label: np.array([row[label] for row in rows]) for label in rows[0] if label != "file"}
    return Examples(images, labels, folder, about["source"], about["license"])


def _pixels(file: Path) -> UInt8[np.ndarray, "h w c"]:
    with Image.open(file, formats=["PNG"]) as picture:
        pixels = np.asarray(picture)
    return pixels if pixels.ndim == 3 else pixels[..., None]
