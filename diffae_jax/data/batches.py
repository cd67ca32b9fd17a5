"""Endless training batches, on the devices ahead of need. Batch k is a function of (seed, k) alone."""

import collections
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import NamedSharding
from jaxtyping import Int32, Shaped

from diffae_jax.data.sources import Source
from diffae_jax.data.transforms import random_flip
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.logs import preserve_root_logger

PREFETCHED_BATCHES = 2  # on the devices beside the one in use
MANY_IMAGES = 2**62  # that no training sees; Grain's own "for ever" is one too long for batches of one


@functools.cache
def _grain() -> Any:
    """Imports Grain where it is first used: it takes a third of a second, and its imports log."""
    with preserve_root_logger():
        import grain
    return grain


def training_batches(
    source: Source,
    *,
    batch_size: int,  # over all processes
    seed: int,
    first_step: int = 0,
    flip: bool = False,
    num_workers: int = 0,  # processes that read images; 0: threads of this one
    process_index: int = 0,
    num_processes: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields this process's part of batch `first_step`, `first_step + 1`, ... as {"image": [n, *spatial, C]}.

    Every epoch is a new permutation of all images, and batches run on across its end, so that each image comes up
    exactly once an epoch. The parts of all processes, in their order, are the batch that one process would get.
    """
    if len(source) < batch_size:
        raise UserError(
            f"{len(source)} training images are fewer than one batch of {batch_size}: "
            f"add images or set a smaller --config.train.batch_size."
        )
    grain = _grain()
    images = grain.MapDataset.source(source).seed(seed).shuffle().repeat(MANY_IMAGES // len(source))
    if flip:
        images = images.random_map(random_flip)
    parts = images.map(lambda image: {"image": image}).batch(batch_size // num_processes)
    own = parts.slice(slice(first_step * num_processes + process_index, None, num_processes))
    batches = own.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=8))
    if num_workers:
        if not flags.FLAGS.is_parsed():  # Grain asks for its flags, which exist in programs run by absl alone
            flags.FLAGS.mark_as_parsed()
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
    return iter(batches)


def ordered_batches(
    source: Source, start: int, stop: int, batch_size: int
) -> Iterator[Shaped[np.ndarray, "{batch_size} *shape"]]:
    """Yields the images from number `start` to `stop` in order, the last batch filled up with its last image."""
    grain = _grain()
    images = grain.MapDataset.source(source).slice(slice(start, stop)).batch(batch_size)
    for batch in images.to_iter_dataset(grain.ReadOptions(num_threads=8, prefetch_buffer_size=8)):
        missing = batch_size - len(batch)
        yield np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing else batch


def batches_of_rows(
    num_rows: int,
    *,
    batch_size: int,  # over all processes
    steps: int,
    seed: int,
    first_step: int = 0,
    process_index: int = 0,
    num_processes: int = 1,
) -> Iterator[Int32[np.ndarray, "{steps} part"]]:
    """Yields which rows of an array make up this process's part of the next `steps` batches, from `first_step` on.

    The order is as that of `training_batches`: a new permutation each epoch, batches running on across its end.
    """

    @functools.lru_cache(maxsize=2)
    def order(epoch):
        return np.random.default_rng((seed, epoch)).permutation(num_rows).astype(np.int32)

    own = batch_size // num_processes
    for start in itertools.count(first_step * batch_size, steps * batch_size):
        epochs, places = np.divmod(np.arange(start, start + steps * batch_size), num_rows)
        rows = np.concatenate([order(epoch)[places[epochs == epoch]] for epoch in np.unique(epochs).tolist()])
        yield rows.reshape(steps, batch_size)[:, process_index * own : (process_index + 1) * own]


def on_devices(batches: Iterator[Any], sharding: NamedSharding) -> Iterator[Any]:
    """Yields each batch as global arrays of that sharding, the next ones already on their way to the devices."""

    def transferred():
        for batch in batches:
            yield jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)

    ahead = transferred()
    queue = collections.deque(itertools.islice(ahead, PREFETCHED_BATCHES))
    while queue:
        queue.extend(itertools.islice(ahead, 1))
        yield queue.popleft()
