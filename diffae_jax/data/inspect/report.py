"""Looks at a data set before anything is trained: what training would see, what it would refuse, and how fast it is."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from diffae_jax.data.batches import training_batches
from diffae_jax.data.detect import notes_on_labels, open_splits, transform_of
from diffae_jax.data.inspect.duplicates import describe_duplicates, find_duplicates
from diffae_jax.data.inspect.scan import (
    ScanResult,
    describe,
    describe_counts,
    describe_labels,
    list_sizes,
    scan,
    transform_by,
    without,
)
from diffae_jax.data.inspect.suggest import to_train
from diffae_jax.data.pictures import save_grid
from diffae_jax.data.sources import Source, TransformedSource, choose, read
from diffae_jax.data.transforms import Transform, to_float
from diffae_jax.runtime.errors import shown
from diffae_jax.runtime.files import os_errors_as_user_errors

IN_SHEET = 64  # images
MAX_BAD = 10  # that are told, of those that cannot be used
SECONDS = 5.0  # for which the speed is measured
IN_BATCH = 64  # images, while it is measured
BATCHES_A_SECOND = 10  # at least, so that batches which are half done at its ends count little


def inspect(config: ConfigDict, before: ConfigDict, *, file: str | None, out: Path | None) -> int:
    """Says what training would see of a data set, and writes some of it as a picture, where `out` names one.

    `before` is the config as `file` has it, by default that which is trained with where none is given. Returns how many
    images cannot be used. Raises UserError for a data set that cannot be opened, and for settings that it cannot be
    used with.
    """
    opened, *splits = open_splits(
        config.data.path,
        config.image_shape,
        labels=config.data.labels,
        held_out=config.data.held_out,
        held_out_share=config.data.held_out_share,
    )
    shape = transform_of(config)
    begun = time.perf_counter()
    settings = dict(show_progress=sys.stderr.isatty(), digests=True, values="%" in config.data.intensity)
    found = [scan(TransformedSource(source, shape), **settings) for source in splits]
    speed = sum(map(len, splits)) / (time.perf_counter() - begun)
    training = found[0]
    print(describe_counts(opened.kind, *(each.count for each in found)))
    bad = [reason for each in found for reason in each.bad.values()]
    say(describe_bad(bad))
    say(describe_duplicates(find_duplicates(*(each.digests for each in found))))
    transform = transform_by(config, *found)
    report_training_set(config, opened.notes, splits, training, transform)
    images = TransformedSource(without(splits[0], training.bad), transform)
    say([throughput(images, config, speed)])
    if out is not None:
        write_sheet(out, images)
    say(to_train(file, before, config, training.count, has_bad=bool(bad)))
    return len(bad)


def say(lines: Sequence[str]) -> None:
    """Prints lines at once: between two of them seconds may pass."""
    for line in lines:
        print(line, flush=True)


def describe_bad(reasons: Sequence[str]) -> list[str]:
    """Returns in lines how many images cannot be used, and why not the first of them."""
    if not reasons:
        return []
    lines = [f"Cannot be used: {len(reasons):,}, which training refuses, or leaves out by data.skip_bad:"]
    lines += [f"  {reason}" for reason in reasons[:MAX_BAD]]
    return lines + ([f"  and {len(reasons) - MAX_BAD:,} more"] if len(reasons) > MAX_BAD else [])


def report_training_set(
    config: ConfigDict, notes: Sequence[str], splits: Sequence[Source], training: ScanResult, transform: Transform
) -> None:
    """Prints what the images to train on are, and their labels, as training does, and how their sizes are spread."""
    sizes, *others = describe(training, transform)
    labels = without(splits[0], training.bad).labels
    lines = sizes, *list_sizes(training), *others, *notes, *describe_labels(labels)
    say([*lines, *notes_on_labels(config.data.labels, *splits)])


def throughput(images: TransformedSource, config: ConfigDict, speed: float) -> str:
    """Measures how many images a second the batches of training have; `speed` is what is expected."""
    batch_size = max(1, min(IN_BATCH, len(images), int(speed / BATCHES_A_SECOND)))
    num_workers = config.execution.num_workers
    batches = training_batches(
        images, batch_size=batch_size, seed=config.seed, flip=config.data.flip, num_workers=num_workers
    )
    with contextlib.closing(batches):  # an interrupted command leaves at once, and would leave its processes behind
        rate = images_per_second(batches, 1 + num_workers)  # each process begins with its imports
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    by = f"{num_workers} processes" if num_workers else "threads"
    return f"Throughput: {rate:,.0f} images a second by {by}, {rate / cores:,.0f} a core of {cores}."


def images_per_second(batches: Iterator[dict[str, np.ndarray]], num_before: int) -> float:
    """Measures batches for some seconds, after so many that are not counted."""
    for _ in range(num_before):
        next(batches)
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < SECONDS:
        count += len(next(batches)["image"])
    return count / (time.perf_counter() - begun)


def write_sheet(out: Path, images: TransformedSource) -> None:
    """Writes some images, as training sees them, as a picture."""
    numbers = choose(len(images), IN_SHEET, seed=0)
    with os_errors_as_user_errors(out, "written"):
        save_grid(out, to_float(read(images, numbers)))
    print(f"Contact sheet: {len(numbers)} images as training sees them, in {shown(str(out))}")
