"""Hints on settings that would suit the images better."""

import collections
import math
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from diffae_jax.data.inspect.infer_shape import Shape, fitting_shape
from diffae_jax.data.inspect.scan import ScanResult
from diffae_jax.data.labels.matching import folder_labels
from diffae_jax.data.transforms import format_size
from diffae_jax.runtime.errors import UserError, counted

MOST_FOLDERS = 50  # as classes of a probe
MOST_UNEVEN = 10  # ratio of the largest to the smallest folder of classes
MANY = 1000  # images whose shapes are compared


def better_shape(config: ConfigDict, scans: Sequence[ScanResult]) -> tuple[str, Shape] | None:
    """Returns (problem, better shape) if most images do not fit image_shape.

    Images do not fit if they are too small or have the wrong number of channels. Returns None if
    most images fit, or if no shape does.
    """
    unfit = sum((result.unfit for result in scans), collections.Counter())
    total = sum(result.count + len(result.bad) for result in scans)
    if 2 * unfit.total() <= total or config.data.crop != "center":
        return None
    shapes = [shape for shape, count in unfit.items() for _ in range(math.ceil(count * MANY / total))]
    try:
        shape = fitting_shape(shapes)
    except UserError:
        return None
    (*size, channels), given = unfit.most_common(1)[0][0], tuple(config.image_shape)
    example = f"such as those of {format_size(size)} in {counted(channels, 'channel')}"
    return f"{unfit.total():,} of {counted(total, 'image')} do not fit image_shape={given}, {example}.", shape


def notes_on_gray(config: ConfigDict, result: ScanResult) -> list[str]:
    """Returns a sentence if all training images are gray, but image_shape has three channels."""
    *size, channels = config.image_shape
    if channels != 3 or not result.count or result.gray < result.count:
        return []
    return [
        f'All images are gray. With --config.image_shape="{(*size, 1)}", images and x_T take a third of the memory, '
        f"and samples have no colors."
    ]


def notes_on_folders(ids: Sequence[str], labels: Mapping[str, np.ndarray], held_out: str) -> list[str]:
    """Returns a sentence if images without labels are in subfolders that may be classes."""
    if labels:
        return []
    try:
        (folders,) = folder_labels(ids, held_out).values()
    except UserError:
        return []
    counts = collections.Counter(folders.tolist())
    if len(counts) > MOST_FOLDERS or max(counts.values()) > MOST_UNEVEN * min(counts.values()):
        return []
    names = ", ".join(sorted(counts)[:2])
    return [
        f"The images are in {len(counts)} subfolders ({names}, ...). If these are classes, use them as labels with "
        f"--config.data.labels=folders."
    ]
