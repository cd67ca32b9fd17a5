"""Reports on a data set before training: its images, its defects, and the reading speed."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from diffae_jax.data.batches import training_batches
from diffae_jax.data.inspect.animated import notes_on_frames
from diffae_jax.data.inspect.duplicates import describe_conflicts, describe_duplicates, find_duplicates
from diffae_jax.data.inspect.hints import better_shape, notes_on_folders, notes_on_gray
from diffae_jax.data.inspect.scan import (
    ScanResult,
    describe,
    describe_counts,
    describe_labels,
    exclude,
    list_sizes,
    scan,
    scanned_transform,
)
from diffae_jax.data.inspect.suggest import training_command
from diffae_jax.data.pictures import save_grid
from diffae_jax.data.selection import notes_on_names
from diffae_jax.data.sources import Source, TransformedSource, choose, read
from diffae_jax.data.splits import notes_on_labels, open_splits
from diffae_jax.data.transforms import Transform, to_float, transform_of
from diffae_jax.runtime.errors import UserError, counted, shown
from diffae_jax.runtime.files import os_errors_as_user_errors

IN_SHEET = 64  # images
MAX_BAD = 10  # listed images that cannot be used
SECONDS = 2.0  # of the speed measurement
IN_BATCH = 64  # images, in the speed measurement
BATCHES_A_SECOND = 10  # minimum, so that partial batches at both ends hardly matter


def inspect(config: ConfigDict, base: ConfigDict, *, file: str | None, out: Path | None) -> int:
    """Prints a report on a data set, and writes a contact sheet to `out`.

    `file` is the config file that the user gave, if any. `base` is the config in that file, or the
    default config. Returns the number of images that cannot be used. Raises UserError if the data
    set cannot be opened with these settings.
    """
    opened, *splits = open_splits(
        config.data.path,
        config.image_shape,
        labels=config.data.labels,
        id_column=config.data.id_column,
        held_out=config.data.held_out,
        held_out_share=config.data.held_out_share,
        include=config.data.include,
        exclude=config.data.exclude,
    )
    shape = transform_of(config)
    start = time.perf_counter()
    settings = dict(show_progress=sys.stderr.isatty(), digests=True, values="%" in config.data.intensity)
    scans = [scan(TransformedSource(source, shape), **settings) for source in splits]
    speed = sum(map(len, splits)) / (time.perf_counter() - start)
    training = scans[0]
    print(describe_counts(opened.kind, *(result.count for result in scans)))
    bad = [reason for result in scans for reason in result.bad.values()]
    print_lines(describe_bad(bad))
    if (fix := better_shape(config, scans)) is not None:
        advice = f"{fix[0]} Most fit with --image-shape {' '.join(map(str, fix[1]))}."
        if not training.count:
            raise UserError(advice)
        print_lines([advice])
    groups = find_duplicates(*(result.digests for result in scans))
    print_lines([*describe_duplicates(groups), *describe_conflicts(groups, *splits)])
    transform = scanned_transform(config, *scans)
    ids = opened.source.ids
    notes = [*opened.notes, *notes_on_names(ids), *notes_on_frames(opened.source), *notes_on_gray(config, training)]
    notes += notes_on_folders(ids, splits[0].labels, config.data.held_out)
    report_training_set(config, notes, splits, training, transform)
    images = TransformedSource(exclude(splits[0], training.bad), transform)
    print_lines([throughput(images, config, speed)])
    if out is not None:
        write_sheet(out, images)
    print_lines(training_command(file, base, config, training.count, has_bad=bool(bad)))
    return len(bad)


def print_lines(lines: Sequence[str]) -> None:
    """Prints lines without buffering: the next ones may take seconds."""
    for line in lines:
        print(line, flush=True)


def describe_bad(reasons: Sequence[str]) -> list[str]:
    """Returns lines with the number of images that cannot be used, and the first reasons."""
    if not reasons:
        return []
    lines = [
        f"{counted(len(reasons), 'image')} cannot be used. Training stops with an error unless data.skip_bad=True:"
    ]
    lines += [f"  {reason}" for reason in reasons[:MAX_BAD]]
    return lines + ([f"  and {len(reasons) - MAX_BAD:,} more"] if len(reasons) > MAX_BAD else [])


def report_training_set(
    config: ConfigDict, notes: Sequence[str], splits: Sequence[Source], training: ScanResult, transform: Transform
) -> None:
    """Prints the sizes, channels, values and labels of the training images."""
    sizes, *others = describe(training, transform)
    labels = exclude(splits[0], training.bad).labels
    lines = sizes, *list_sizes(training), *others, *notes, *describe_labels(labels)
    print_lines([*lines, *notes_on_labels(config.data.labels, *splits, id_column=config.data.id_column)])


def throughput(images: TransformedSource, config: ConfigDict, speed: float) -> str:
    """Measures how fast training batches are read. `speed` is the expected images per second."""
    batch_size = max(1, min(IN_BATCH, len(images), int(speed / BATCHES_A_SECOND)))
    num_workers = config.execution.num_workers
    batches = training_batches(
        images, batch_size=batch_size, seed=config.seed, flip=config.data.flip, num_workers=num_workers
    )
    with contextlib.closing(batches):  # ends the worker processes, also if the command is interrupted
        rate = images_per_second(batches, 1 + num_workers)  # each worker first imports its modules
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    readers = counted(num_workers, "process", "processes") if num_workers else "threads"
    per_core = f"{rate / cores:,.0f} per core on {counted(cores, 'core')}"
    return f"Reading speed: {rate:,.0f} images per second with {readers} ({per_core})."


def images_per_second(batches: Iterator[dict[str, np.ndarray]], num_before: int) -> float:
    """Measures images per second for `SECONDS` seconds, after `num_before` warm-up batches."""
    for _ in range(num_before):
        next(batches)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        count += len(next(batches)["image"])
    return count / (time.perf_counter() - start)


def write_sheet(out: Path, images: TransformedSource) -> None:
    """Writes a grid of random transformed images."""
    numbers = choose(len(images), IN_SHEET, seed=0)
    with os_errors_as_user_errors(out, "written"):
        save_grid(out, to_float(read(images, numbers)))
    count = counted(len(numbers), "training image")
    print(f"Contact sheet: {count}, scaled and cropped, in {shown(str(out))}")
