"""Endless training batches, prefetched to the devices. Batch k depends only on (seed, k)."""

import collections
import functools
import itertools
import signal
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import NamedSharding
from jaxtyping import Int32, Shaped

from diffae_jax.data.sources import Source
from diffae_jax.data.transforms import random_flip
from diffae_jax.runtime.errors import UserError, counted
from diffae_jax.runtime.logs import quiet_libraries
from diffae_jax.runtime.process import check_main_guard

PREFETCHED_BATCHES = 2  # on the devices, in addition to the one in use
MANY_IMAGES = 2**62  # more than any run sees; Grain's default overflows with batch size 1


@functools.cache
def _grain() -> Any:
    """Imports Grain on first use: its import is slow and changes the logging."""
    with quiet_libraries():
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
    """Yields this process's part of each batch from `first_step` on: {"image": [n, *spatial, C]}.

    Each epoch is a new permutation of all images. A batch may span two epochs, so each image
    occurs exactly once per epoch. The concatenated parts of all processes are the batch that a
    single process would get.
    """
    if len(source) < batch_size:
        raise UserError(
            f"{counted(len(source), 'training image', verb='is/are')} fewer than one batch of {batch_size}. Add images "
            f"or set a smaller --config.train.batch_size."
        )
    check_main_guard(num_workers)
    grain = _grain()
    images = _in_training_order(source, seed)
    if flip:
        images = images.random_map(random_flip)
    parts = images.map(lambda image: {"image": image}).batch(batch_size // num_processes)
    local_parts = parts.slice(slice(first_step * num_processes + process_index, None, num_processes))
    batches = local_parts.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=8))
    if num_workers:
        if not flags.FLAGS.is_parsed():  # Grain reads its flags, which only absl.app parses
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=num_workers)
        batches = batches.mp_prefetch(options, worker_init_fn=_ignore_ctrl_c)
    return iter(batches)


def _ignore_ctrl_c(*_: int) -> None:
    """Leaves Ctrl-C, which a terminal also sends to worker processes, to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _in_training_order(items: Source | range, seed: int) -> Any:
    return _grain().MapDataset.source(items).seed(seed).shuffle().repeat(MANY_IMAGES // len(items))


def rows_of_batch(num_images: int, *, batch_size: int, seed: int, step: int) -> Int32[np.ndarray, "{batch_size}"]:
    """Returns the indices of the images that `training_batches` puts into the batch of a step."""
    order = _in_training_order(range(num_images), seed)
    return np.asarray([order[i] for i in range((step - 1) * batch_size, step * batch_size)], np.int32)


def ordered_batches(
    source: Source, start: int, stop: int, batch_size: int
) -> Iterator[Shaped[np.ndarray, "{batch_size} *shape"]]:
    """Yields the images `start` to `stop - 1` in order. The last image pads the last batch."""
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
    """Yields the row indices of this process's part of each group of `steps` batches.

    The first group begins at `first_step`. As in `training_batches`, each epoch is a new
    permutation, and a batch may span two epochs.
    """

    @functools.lru_cache(maxsize=2)
    def order(epoch):
        return np.random.default_rng((seed, epoch)).permutation(num_rows).astype(np.int32)

    part = batch_size // num_processes
    for start in itertools.count(first_step * batch_size, steps * batch_size):
        epochs, positions = np.divmod(np.arange(start, start + steps * batch_size), num_rows)
        rows = np.concatenate([order(epoch)[positions[epochs == epoch]] for epoch in np.unique(epochs).tolist()])
        yield rows.reshape(steps, batch_size)[:, process_index * part : (process_index + 1) * part]


def on_devices(batches: Iterator[Any], sharding: NamedSharding) -> Iterator[Any]:
    """Yields each batch as global arrays with this sharding, and transfers the next ones ahead."""

    def transferred():
        for batch in batches:
            yield jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)

    ahead = transferred()
    queue = collections.deque(itertools.islice(ahead, PREFETCHED_BATCHES))
    while queue:
        queue.extend(itertools.islice(ahead, 1))
        yield queue.popleft()
