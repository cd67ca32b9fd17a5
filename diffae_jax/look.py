"""Looks at a data set before anything is trained: what training would see, what it would refuse, and how fast it is."""

import argparse
import contextlib
import functools
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffae_jax import outputs
from diffae_jax.config import check, default, from_file
from diffae_jax.data.batches import training_batches
from diffae_jax.data.duplicates import describe_duplicates, find_duplicates
from diffae_jax.data.guessing import guess_image_shape
from diffae_jax.data.opening import DIGITS, notes_on_labels, open_splits, transform_of
from diffae_jax.data.sources import Prepared, Source, choose, read
from diffae_jax.data.survey import (
    Survey,
    describe,
    describe_counts,
    describe_labels,
    list_sizes,
    survey,
    transform_by,
    without,
)
from diffae_jax.data.transforms import Transform, to_float
from diffae_jax.errors import UserError, shown
from diffae_jax.evaluation.figures import save_grid
from diffae_jax.files import expanded, told

IMAGES, OF_DIGITS = "configs/images.py", "configs/digits.py"
IN_SHEET = 64  # images
MAX_BAD = 10  # that are told, of those that cannot be used
SECONDS = 5.0  # for which the speed is measured
IN_BATCH = 64  # images, while it is measured
BATCHES_A_SECOND = 10  # at least, so that batches which are half done at its ends count little
OVERRIDES = {  # arguments of the command by the keys that they set
    "data.crop": "crop",
    "data.intensity": "intensity",
    "data.labels": "labels",
    "data.held_out": "held_out",
    "data.held_out_share": "held_out_share",
    "execution.num_workers": "workers",
}
TOLD_KEYS = (  # that the command to train may need
    "data.path",
    "image_shape",
    "model.encoder_channel_mults",
    "train.batch_size",
    "data.skip_bad",
    *OVERRIDES,
)
BASES = {  # what the configs that are trained with where none is given say of these keys
    IMAGES: {
        "image_shape": (64, 64, 3),
        "model.channel_mults": (1, 2, 2, 4),
        "model.encoder_channel_mults": (1, 2, 2, 4, 4),
        "train.batch_size": 64,
        "data.held_out_share": 0.02,
    },
    OF_DIGITS: {
        "image_shape": (8, 8, 1),
        "model.channel_mults": (1, 2),
        "model.encoder_channel_mults": (1, 2, 4),
        "train.batch_size": 32,
        "data.path": DIGITS,
        "data.flip": False,
    },
}


def look(arguments: argparse.Namespace) -> None:
    """Says what training would see of a data set, and writes some of it as a picture.

    Exits with 1 where images cannot be used. Raises UserError for a data set that cannot be opened, and for settings
    that it cannot be used with.
    """
    if arguments.out is not None:
        check_out(arguments.out, arguments.path, overwrite=arguments.overwrite)
    before, config = settings_of(arguments)
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
    found = [survey(Prepared(source, shape), **settings) for source in splits]
    speed = sum(map(len, splits)) / (time.perf_counter() - begun)
    training = found[0]
    print(describe_counts(opened.kind, *(each.count for each in found)))
    bad = [reason for each in found for reason in each.bad.values()]
    say(describe_bad(bad))
    say(describe_duplicates(find_duplicates(*(each.digests for each in found))))
    transform = transform_by(config, *found)
    say_what_is_trained_on(config, opened.notes, splits, training, transform)
    images = Prepared(without(splits[0], training.bad), transform)
    say([throughput(images, config, speed)])
    if arguments.out is not None:
        write_sheet(arguments.out, images)
    say(to_train(arguments, before, config, training.count, has_bad=bool(bad)))
    if bad:
        sys.exit(1)


def say(lines: Sequence[str]) -> None:
    """Prints lines at once: between two of them seconds may pass."""
    for line in lines:
        print(line, flush=True)


def settings_of(arguments: argparse.Namespace) -> tuple[ConfigDict, ConfigDict]:
    """Returns the config that is given, or that of `IMAGES` as far as it matters here, and what was made of it.

    Raises UserError for values that no run could use. Without a shape, and without a config, one is proposed and told.
    """
    before = base_of(arguments.path) if arguments.config is None else from_file(arguments.config)
    config = before.copy_and_resolve_references()
    config.data.path = arguments.path
    for key, name in OVERRIDES.items():
        if getattr(arguments, name) is not None:
            config.update_from_flattened_dict({key: getattr(arguments, name)})
    if arguments.image_shape is not None:
        config.image_shape = tuple(arguments.image_shape)
    check(config)
    if arguments.image_shape is None and arguments.config is None:
        config.image_shape = guess_image_shape(config.data.path, config.data.crop)
        print(f"Shape: none was given, so one is proposed: {flag(config, 'image_shape')}")
    return before, config


def base_of(path: str) -> ConfigDict:
    """Returns the told keys as the config has them that is trained with where none is given: it is not installed."""
    config = default()
    config.update_from_flattened_dict(BASES[file_of(path)])
    return config


def file_of(path: str) -> str:
    """Returns the config to train with where none is given."""
    return OF_DIGITS if path == DIGITS else IMAGES


def check_out(out: Path, path: str, *, overwrite: bool) -> None:
    """Raises UserError where the picture cannot be written, or would itself become one of the images."""
    outputs.check_free(out, (".png",), overwrite=overwrite)
    folder = expanded(path.partition("#")[0])
    if folder.resolve() in out.resolve().parents or folder.resolve() == out.resolve():
        raise UserError(f"{out} lies among the images of {path}, and would become one of them: give another --out.")


def describe_bad(reasons: Sequence[str]) -> list[str]:
    """Returns in lines how many images cannot be used, and why not the first of them."""
    if not reasons:
        return []
    lines = [f"Cannot be used: {len(reasons):,}, which training refuses, or leaves out by data.skip_bad:"]
    lines += [f"  {reason}" for reason in reasons[:MAX_BAD]]
    return lines + ([f"  and {len(reasons) - MAX_BAD:,} more"] if len(reasons) > MAX_BAD else [])


def say_what_is_trained_on(
    config: ConfigDict, notes: Sequence[str], splits: Sequence[Source], training: Survey, transform: Transform
) -> None:
    """Prints what the images to train on are, and their labels, as training does, and how their sizes are spread."""
    sizes, *others = describe(training, transform)
    labels = without(splits[0], training.bad).labels
    lines = sizes, *list_sizes(training), *others, *notes, *describe_labels(labels)
    say([*lines, *notes_on_labels(config.data.labels, *splits)])


def throughput(images: Prepared, config: ConfigDict, speed: float) -> str:
    """Measures how many images a second the batches of training have; `speed` is what is expected."""
    batch_size = max(1, min(IN_BATCH, len(images), int(speed / BATCHES_A_SECOND)))
    num_workers = config.execution.num_workers
    batches = training_batches(
        images, batch_size=batch_size, seed=config.seed, flip=config.data.flip, num_workers=num_workers
    )
    with contextlib.closing(batches):  # an interrupted command leaves at once, and would leave its processes behind
        rate = images_a_second(batches, 1 + num_workers)  # each process begins with its imports
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    by = f"{num_workers} processes" if num_workers else "threads"
    return f"Throughput: {rate:,.0f} images a second by {by}, {rate / cores:,.0f} a core of {cores}."


def images_a_second(batches: Iterator[dict[str, np.ndarray]], num_before: int) -> float:
    """Measures batches for some seconds, after so many that are not counted."""
    for _ in range(num_before):
        next(batches)
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < SECONDS:
        count += len(next(batches)["image"])
    return count / (time.perf_counter() - begun)


def write_sheet(out: Path, images: Prepared) -> None:
    """Writes some images, as training sees them, as a picture."""
    numbers = choose(len(images), IN_SHEET, seed=0)
    with told(out, "written"):
        save_grid(out, to_float(read(images, numbers)))
    print(f"Contact sheet: {len(numbers)} images as training sees them, in {shown(str(out))}")


def to_train(
    arguments: argparse.Namespace, before: ConfigDict, config: ConfigDict, num_training: int, *, has_bad: bool
) -> list[str]:
    """Returns the command to train, of which only what differs from its config is given, and why it is as it is."""
    config = config.copy_and_resolve_references()
    lines = []
    if num_training < config.train.batch_size:
        config.train.batch_size = 2 ** (num_training.bit_length() - 1)
        lines.append(f"The training images are fewer than one batch of {before.train.batch_size}, so it is less below.")
    if has_bad and not config.data.skip_bad:
        config.data.skip_bad = True
        lines.append("What cannot be used is left out below, by data.skip_bad; without it, repair or remove it first.")
    lines += fit_encoder(config)
    file, rest = arguments.config or file_of(arguments.path), ""
    if file.endswith(".json"):  # which training does not read
        file, rest, before = file_of(arguments.path), f", the other keys as in {shown(file)}", base_of(arguments.path)
    flags = [flag(config, key) for key in TOLD_KEYS if value_of(config, key) != value_of(before, key)]
    command = " ".join(["python -m diffae_jax.main", f"--config={shlex.quote(file)}", *flags])
    return [*lines, f"To train{rest}:", f"  {command}"]


def fit_encoder(config: ConfigDict) -> list[str]:
    """Takes levels off the encoder where the images cannot be halved so often; tells where the UNet is in the way."""
    levels = len(config.model.channel_mults)
    if any(size % 2 ** (levels - 1) for size in config.image_shape[:-1]):
        return [f"The networks below take sizes that are multiples of {2 ** (levels - 1)}: training refuses others."]
    while any(size % 2 ** (len(config.model.encoder_channel_mults) - 1) for size in config.image_shape[:-1]):
        config.model.encoder_channel_mults = config.model.encoder_channel_mults[:-1]
    return []


def flag(config: ConfigDict, key: str) -> str:
    """Returns what sets a key on the command line of training, as a shell takes it."""
    value = value_of(config, key)
    return f"--config.{key}=" + (f'"{value}"' if isinstance(value, tuple) else shlex.quote(str(value)))


def value_of(config: ConfigDict, key: str) -> Any:
    """Returns the value of a key with dots."""
    return functools.reduce(lambda group, name: group[name], key.split("."), config)
