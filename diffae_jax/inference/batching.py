"""Programs applied to arrays of any length, in batches of equal size that fit the devices."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from diffae_jax.models.functional import Params
from diffae_jax.runtime.cluster import is_main_process
from diffae_jax.runtime.sharding import on_host, split_batch, spread

BATCH_ELEMENTS = 2**22  # values of the images that one device works on at a time
BATCH_IMAGES = 1024  # and at most so many: more of small ones would take memory and save no time


def in_batches(function: Callable, params: Params, mesh: Mesh, image_size: int, *arrays: Any, what: str) -> np.ndarray:
    """Applies `function(params, *arrays)` to equal batches over all devices; returns one host array.

    `image_size` is the number of values of an image, by which batches are measured. Long work shows a progress bar
    called `what` on a terminal.
    """
    results, count = [], len(next(array for array in arrays if array is not None))
    with tqdm(None, what, count, unit=" images", disable=None if is_main_process() else True, leave=False) as bar:
        for batch in _batches(mesh, image_size, count, arrays):
            results.append(on_host(function(params, *batch)))
            bar.update(min(len(results[-1]), count - bar.n))
    return np.concatenate(results)[:count]


def images_at_once(image_size: int) -> int:
    """Returns how many images of so many values one device works on at a time."""
    return max(1, min(BATCH_IMAGES, BATCH_ELEMENTS // image_size))


def _batches(mesh: Mesh, image_size: int, count: int, arrays: tuple) -> Iterator[list]:
    """Yields equal batches as global arrays, the last filled up by repeating its last sample."""
    num_batches = -(-count // (images_at_once(image_size) * mesh.size))
    size = -(-count // (num_batches * mesh.size)) * mesh.size
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        yield [None if array is None else spread(np.asarray(array)[rows], split_batch(mesh)) for array in arrays]
