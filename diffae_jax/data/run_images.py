"""The data of a run, the same from its first step to its last."""

import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffae_jax.config import format_intensity
from diffae_jax.data.detect import OpenedDataset, open_splits, transform_of
from diffae_jax.data.inspect.scan import (
    RECORD,
    describe,
    describe_counts,
    intensity_in,
    read_record,
    refuse,
    scan,
    transform_by,
    without,
)
from diffae_jax.data.sources import Source, TransformedSource, hash_of
from diffae_jax.runtime.cluster import is_main_process, together
from diffae_jax.runtime.errors import UserError, list_some
from diffae_jax.runtime.files import write_json

SPLITS = ("training", "held_out")
SCAN_KEYS = ("intensity", "left_out", "said")  # of the record: what a look at all images found
FACTS = ("training", "held_out", "files")  # of the record: what tells one data set from another
SETTINGS = ("image_shape", "data.crop", "data.intensity", "data.skip_bad")  # that the record depends on


def open_data(
    config: ConfigDict, folder: Path, images: Any = None, *, begun: bool
) -> tuple[TransformedSource, TransformedSource]:
    """Opens the training and held-out images of a config, from its path or as they are given.

    `begun` is whether the run has a checkpoint.

    Once a run, before its first step, all of them are read: what cannot be used is met then, or left out where the
    config says so, and the range of values is measured. Raises UserError for what cannot be opened, and for images that
    are not those that the run began with.
    """
    with together():
        opened, *splits = open_splits(
            config.data.path,
            tuple(config.image_shape),
            labels=config.data.labels,
            held_out=config.data.held_out,
            held_out_share=config.data.held_out_share,
            images=images,
        )
        found = {**facts(*splits), "settings": _settings(config)}
        record = read_record(folder)
        if begun and record:
            _check_same(folder, record, found)
    with together():
        if is_main_process() and (
            record.keys() < {*found, *SCAN_KEYS} or any(record[key] != found[key] for key in found)
        ):
            write_json(folder / RECORD, found | _scan_splits(config, opened, splits))
    with together():
        record = read_record(folder)
        _check_same(folder, record, found)  # the images of the main process
        transform = transform_of(config, intensity_in(record, folder))
    left_out = record["left_out"]
    return tuple(
        TransformedSource(without(source, left_out.get(split, ())), transform)
        for source, split in zip(splits, SPLITS, strict=True)
    )


def facts(training: Source, held_out: Source) -> dict[str, int | str]:
    """Returns what tells one data set from another."""
    files = hash_of(training.fingerprint(), held_out.fingerprint())
    return dict(zip(FACTS, (len(training), len(held_out), files), strict=True))


def data_summary(folder: Path) -> list[str]:
    """Returns what was found in the images of a run, in sentences."""
    return read_record(folder).get("said", [])


def left_out(folder: Path) -> str:
    """Returns a sentence on the images that the run left out; nothing where it has them all."""
    names = [name for split in read_record(folder).get("left_out", {}).values() for name in split]
    return f"{_describe_skipped(names)}; {folder / RECORD} says why." if names else ""


def _describe_skipped(names: Collection[str]) -> str:
    return f"Left out: {len(names):,} of the images, which cannot be used ({list_some(names)})"


def _settings(config: ConfigDict) -> dict[str, Any]:
    plain = json.loads(config.to_json())
    return {key: plain["data"][key.removeprefix("data.")] if "." in key else plain[key] for key in SETTINGS}


def _check_same(folder: Path, record: dict[str, Any], found: dict[str, Any]) -> None:
    if any(record.get(key) != found[key] for key in FACTS):
        raise UserError(
            f"{folder} was trained on other images ({record.get('training')} then, {found['training']} now, or other "
            f"names and sizes): give those that it began with, or another --workdir."
        )


def _scan_splits(config: ConfigDict, opened: OpenedDataset, splits: Sequence[Source]) -> dict[str, Any]:
    """Reads all images; returns how they are scaled, which are left out, and what to say of them."""
    shape = transform_of(config)
    settings = dict(show_progress=sys.stderr.isatty(), values="%" in config.data.intensity)
    scans = [scan(TransformedSource(source, shape), **settings) for source in splits]
    if not config.data.skip_bad:
        for found, source in zip(scans, splits, strict=True):
            remedy = "; --config.data.skip_bad=True leaves such images out" if found.count else ""
            refuse(found, len(source), remedy)
    training, held_out = scans
    transform = transform_by(config, training, held_out)
    said = [describe_counts(opened.kind, training.count, held_out.count), *describe(training, transform)]
    bad = [name for found in scans for name in found.bad]
    said += [f"{_describe_skipped(bad)}."] if bad else []
    return {
        "intensity": format_intensity(transform.intensity),
        "left_out": {split: found.bad for split, found in zip(SPLITS, scans, strict=True)},
        "said": [*said, *opened.notes],
    }
