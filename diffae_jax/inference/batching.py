"""Programs applied to arrays of any length, in batches of a few sizes that fit the devices."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from diffae_jax.models.functional import Params
from diffae_jax.runtime.cluster import is_main_process
from diffae_jax.runtime.process import forbid_forks
from diffae_jax.runtime.sharding import on_host, shard_array, split_batch

BATCH_ELEMENTS = 2**22  # values of the images that one device works on at a time
BATCH_IMAGES = 1024  # and at most so many: more of small ones would take memory and save no time


def in_batches(function: Callable, params: Params, mesh: Mesh, image_size: int, *arrays: Any, what: str) -> np.ndarray:
    """Applies `function(params, *arrays)` to batches over all devices; returns one host array.

    `image_size` is the number of values of an image, by which batches are measured. Long work shows a progress bar
    called `what` on a terminal.
    """
    forbid_forks()
    results, count = [], len(next(array for array in arrays if array is not None))
    with tqdm(None, what, count, unit=" images", disable=None if is_main_process() else True, leave=False) as bar:
        for start, size in batch_sizes(count, images_at_once(image_size), mesh.size):
            rows = np.minimum(np.arange(start, start + size), count - 1)  # the last sample fills the batch up
            batch = [
                None if array is None else shard_array(np.asarray(array)[rows], split_batch(mesh)) for array in arrays
            ]
            results.append(on_host(function(params, *batch)))
            bar.update(min(size, count - bar.n))
    return np.concatenate(results)[:count]


def images_at_once(image_size: int) -> int:
    """Returns how many images of so many values one device works on at a time."""
    return max(1, min(BATCH_IMAGES, BATCH_ELEMENTS // image_size))


def batch_sizes(count: int, limit: int, num_devices: int) -> Iterator[tuple[int, int]]:
    """Yields where each batch starts, and its size: as many as the devices take, `limit` each, and a padded last one.

    A program is compiled for each size that it meets, in 3 to 14 s: with padding 5, 6, 7 and 8 images share one.
    """
    whole = limit * num_devices
    for start in range(0, count, whole):
        left = -(-min(count - start, whole) // num_devices)
        yield start, min(padded(left), limit) * num_devices


def padded(count: int) -> int:
    """Returns the next greater of 1, 2, 4, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, ...: four sizes to each doubling.

    Above 8, less than a fifth of a batch is padding, where powers of two alone would waste up to a half.
    """
    power = (count - 1).bit_length()
    step = 2**power if power <= 3 else 2 ** (power - 3)
    return -(-count // step) * step
