"""Applies compiled functions to arrays of any length, in batches that fit the devices."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from diffae_jax.models.functional import Params
from diffae_jax.runtime.cluster import is_main_process
from diffae_jax.runtime.process import forbid_forks
from diffae_jax.runtime.sharding import on_host, shard_array, split_batch

BATCH_ELEMENTS = 2**22  # maximum image values in the batch of one device
BATCH_IMAGES = 1024  # maximum images per batch; more would take memory without saving time


def in_batches(function: Callable, params: Params, mesh: Mesh, image_size: int, *arrays: Any, what: str) -> Any:
    """Applies `function(params, *arrays)` to batches over all devices; returns host arrays.

    `image_size` is the number of values of an image, which determines the batch size. On a
    terminal, a progress bar with the label `what` is shown.
    """
    forbid_forks()
    results, count = [], len(next(array for array in arrays if array is not None))
    with tqdm(None, what, count, unit=" images", disable=None if is_main_process() else True, leave=False) as bar:
        for start, size in batch_sizes(count, images_at_once(image_size), mesh.size):
            rows = np.minimum(np.arange(start, start + size), count - 1)  # the last sample is repeated as padding
            batch = [
                None if array is None else shard_array(np.asarray(array)[rows], split_batch(mesh)) for array in arrays
            ]
            results.append(on_host(function(params, *batch)))
            bar.update(min(size, count - bar.n))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *results)


def images_at_once(image_size: int) -> int:
    """Returns the batch size of one device for images with `image_size` values."""
    return max(1, min(BATCH_IMAGES, BATCH_ELEMENTS // image_size))


def batch_sizes(count: int, limit: int, num_devices: int) -> Iterator[tuple[int, int]]:
    """Yields the start and the size of each batch: at most `limit` for each device.

    The last batch is padded. A function is compiled once for each batch size, in 3 to 14 s. With
    padding, 5, 6, 7 and 8 images share one compiled function.
    """
    largest = limit * num_devices
    for start in range(0, count, largest):
        per_device = -(-min(count - start, largest) // num_devices)
        yield start, min(padded(per_device), limit) * num_devices


def padded(count: int) -> int:
    """Rounds up to one of 1, 2, 4, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, ...

    There are four sizes for each factor of two above 8. Less than a fifth of such a batch is
    padding; with powers of two it would be up to a half.
    """
    power = (count - 1).bit_length()
    step = 2**power if power <= 3 else 2 ** (power - 3)
    return -(-count // step) * step
