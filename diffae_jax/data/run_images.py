"""The images of a run: opened, scanned once, and checked to be the same when the run resumes."""

import itertools
import json
import sys
from collections.abc import Collection, Sequence
from typing import Any

from ml_collections import ConfigDict

from diffae_jax.config import format_intensity
from diffae_jax.data.formats.format import OpenedDataset
from diffae_jax.data.inspect.animated import notes_on_frames
from diffae_jax.data.inspect.hints import better_shape, notes_on_gray
from diffae_jax.data.inspect.scan import (
    RECORD,
    describe,
    describe_counts,
    exclude,
    intensity_in,
    read_record,
    refuse_bad,
    scan,
    scanned_transform,
)
from diffae_jax.data.inspect.suggest import flags_for_shape
from diffae_jax.data.selection import notes_on_names
from diffae_jax.data.sources import Source, TransformedSource, fingerprints, hash_of
from diffae_jax.data.splits import open_splits
from diffae_jax.data.transforms import transform_of
from diffae_jax.runtime.cluster import check_equal_on_all, is_main_process, together
from diffae_jax.runtime.errors import UserError, counted, list_some
from diffae_jax.runtime.files import AnyPath, write_json

SPLITS = ("training", "held_out")
SCAN_KEYS = ("intensity", "left_out", "summary")  # keys of the record that hold the results of the scan
FACTS = ("training", "held_out", "files")  # keys of the record that identify the data set
SETTINGS = ("image_shape", "data.crop", "data.intensity", "data.skip_bad")  # the scan depends on them


def open_data(
    config: ConfigDict, folder: AnyPath, images: Any = None, *, begun: bool
) -> tuple[TransformedSource, TransformedSource]:
    """Opens the training and held-out images of a run.

    All images are scanned once, before the first step. The scan measures the value range and finds
    images that cannot be used. They raise UserError, or are left out if `data.skip_bad` is True.

    Args:
        config: The config of the run.
        folder: The run folder, for the record of the scan, `data.json`.
        images: A Python sequence or a `Source` of images, used instead of `data.path`.
        begun: Whether the run has a checkpoint.

    Returns:
        The training images and the held-out images.

    Raises:
        UserError: Images cannot be opened or used, or differ from those that the run began with.
    """
    with together():
        opened, *splits = open_splits(
            config.data.path,
            tuple(config.image_shape),
            labels=config.data.labels,
            id_column=config.data.id_column,
            held_out=config.data.held_out,
            held_out_share=config.data.held_out_share,
            include=config.data.include,
            exclude=config.data.exclude,
            images=images,
        )
        current = {**facts(*splits), "settings": _settings(config)}
    check_equal_on_all(
        {f"data.json, {name}": current[name] for name in FACTS},
        "Check that config.data.path has the same images on all machines",
    )
    with together():
        record = read_record(folder)
        if begun and record:
            _check_same(folder, record, current)
    with together():
        if is_main_process() and (
            record.keys() < {*current, *SCAN_KEYS} or any(record[key] != current[key] for key in current)
        ):
            write_json(folder / RECORD, current | _scan_splits(config, opened, splits))
    with together():
        record = read_record(folder)
        _check_same(folder, record, current)  # this process may see other images than the main process
        transform = transform_of(config, intensity_in(record, folder))
    left_out = record["left_out"]
    return tuple(
        TransformedSource(exclude(source, left_out.get(split, ())), transform)
        for source, split in zip(splits, SPLITS, strict=True)
    )


def facts(training: Source, held_out: Source) -> dict[str, int | str]:
    """Returns the numbers of images and a hash, which identify the data set."""
    files = hash_of(*fingerprints(training, held_out))
    return dict(zip(FACTS, (len(training), len(held_out), files), strict=True))


def data_summary(folder: AnyPath) -> list[str]:
    """Returns the sentences about the images in a run's record."""
    record = read_record(folder)
    return record.get("summary", record.get("said", []))  # earlier versions wrote "said"


def left_out(folder: AnyPath) -> str:
    """Returns a sentence about the images that the run left out, or "" if there are none."""
    names = [name for split in read_record(folder).get("left_out", {}).values() for name in split]
    return f"{_describe_skipped(names)} {folder / RECORD} lists the reasons." if names else ""


def _describe_skipped(names: Collection[str]) -> str:
    return f"Left out: {counted(len(names), 'image')} that cannot be used ({list_some(names)})."


def _settings(config: ConfigDict) -> dict[str, Any]:
    plain = json.loads(config.to_json())
    return {key: plain["data"][key.removeprefix("data.")] if "." in key else plain[key] for key in SETTINGS}


def _check_same(folder: AnyPath, record: dict[str, Any], current: dict[str, Any]) -> None:
    if any(record.get(key) != current[key] for key in FACTS):
        raise UserError(
            f"The run in {folder} began with {record.get('training')} training images. Now there are "
            f"{current['training']}, or the images have changed. Use the original images or a new --workdir."
        )


def _scan_splits(config: ConfigDict, opened: OpenedDataset, splits: Sequence[Source]) -> dict[str, Any]:
    """Scans all images. Returns the value range, the images left out, and a summary."""
    shape = transform_of(config)
    settings = dict(show_progress=sys.stderr.isatty(), values="%" in config.data.intensity)
    scans = [scan(TransformedSource(source, shape), **settings) for source in splits]
    fix = better_shape(config, scans)
    if fix is not None and not (config.data.skip_bad and scans[0].count):
        problem, shape = fix
        raise UserError(f"{problem} Most fit with these flags: {' '.join(flags_for_shape(config, shape))}")
    if not config.data.skip_bad:
        for result, source in zip(scans, splits, strict=True):
            fix = " To leave out such images, set --config.data.skip_bad=True." if result.count else ""
            refuse_bad(result, len(source), fix)
    training, held_out = scans
    transform = scanned_transform(config, training, held_out)
    summary = [describe_counts(opened.kind, training.count, held_out.count), *describe(training, transform)]
    bad = [name for result in scans for name in result.bad]
    summary += [_describe_skipped(bad)] if bad else []
    notes = notes_on_names(opened.source.ids), notes_on_frames(opened.source), notes_on_gray(config, training)
    return {
        "intensity": format_intensity(transform.intensity),
        "left_out": {split: result.bad for split, result in zip(SPLITS, scans, strict=True)},
        "summary": [*summary, *opened.notes, *itertools.chain(*notes)],
    }
