"""The data of a run, the same from its first step to its last."""

import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffae_jax.config import format_intensity
from diffae_jax.data.opening import Opened, open_splits, transform_of
from diffae_jax.data.sources import Prepared, Source, Subset, hash_of
from diffae_jax.data.survey import (
    RECORD,
    check_types,
    describe,
    describe_counts,
    intensity_of,
    read_record,
    refuse,
    survey,
)
from diffae_jax.data.transforms import Transform
from diffae_jax.distributed import together
from diffae_jax.errors import UserError, name_some
from diffae_jax.files import write_json
from diffae_jax.training.checkpoint import latest_step
from diffae_jax.training.logging import is_main_process

FACTS = ("training", "held_out", "files")  # of the record: what tells one data set from another
SETTINGS = ("image_shape", "data.crop", "data.intensity", "data.skip_bad")  # that the record depends on


def open_data(config: ConfigDict, folder: Path, images: Any = None) -> tuple[Prepared, Prepared]:
    """Opens the training and held-out images of a config, from its path or as they are given.

    Once a run, before its first step, all of them are read: what cannot be used is met then, or left out where the
    config says so, and the range of values is measured. Raises UserError for what cannot be opened, and for images that
    are not those that the run began with.
    """
    opened, *splits = open_splits(
        config.data.path,
        tuple(config.image_shape),
        labels=config.data.labels,
        held_out=config.data.held_out,
        held_out_share=config.data.held_out_share,
        images=images,
    )
    found = {**facts(*splits), "settings": _settings(config)}
    with together():
        record = read_record(folder)
        if latest_step(folder / "autoencoder" / "checkpoints") is not None and record:
            _check_same(folder, record, found)
    with together():
        if is_main_process() and {key: record.get(key) for key in found} != found:
            write_json(folder / RECORD, found | _look(config, opened, splits))
    record = read_record(folder)
    transform = transform_of(config, record["intensity"])
    return tuple(Prepared(_without(source, record["left_out"]), transform) for source in splits)


def facts(training: Source, held_out: Source) -> dict[str, int | str]:
    """Returns what tells one data set from another."""
    files = hash_of(training.fingerprint(), held_out.fingerprint())
    return dict(zip(FACTS, (len(training), len(held_out), files), strict=True))


def said_of(folder: Path) -> list[str]:
    """Returns what was found in the images of a run, in sentences."""
    return read_record(folder).get("said", [])


def left_out(folder: Path) -> str:
    """Returns a sentence on the images that the run left out; nothing where it has them all."""
    names = read_record(folder).get("left_out", {})
    if not names:
        return ""
    return f"{_told_left_out(names)}; {folder / RECORD} says why."


def _told_left_out(names: Collection[str]) -> str:
    return f"Left out: {len(names):,} of the images, which cannot be used ({name_some(names)})"


def _settings(config: ConfigDict) -> dict[str, Any]:
    plain = json.loads(config.to_json())
    return {key: plain["data"][key.removeprefix("data.")] if "." in key else plain[key] for key in SETTINGS}


def _check_same(folder: Path, record: dict[str, Any], found: dict[str, Any]) -> None:
    if any(record.get(key) != found[key] for key in FACTS):
        raise UserError(
            f"{folder} was trained on other images ({record.get('training')} then, {found['training']} now, or other "
            f"names and sizes): give those that it began with, or another --workdir."
        )


def _look(config: ConfigDict, opened: Opened, splits: Sequence[Source]) -> dict[str, Any]:
    """Reads all images; returns how they are scaled, which are left out, and what to say of them."""
    shape = transform_of(config)
    settings = dict(show_progress=sys.stderr.isatty(), values="%" in config.data.intensity)
    surveys = [survey(Prepared(source, shape), **settings) for source in splits]
    bad = {name: why for found in surveys for name, why in found.bad.items()}
    if not config.data.skip_bad:
        for found, source in zip(surveys, splits, strict=True):
            refuse(found, len(source), "; --config.data.skip_bad=True leaves such images out")
    training, held_out = surveys
    if not training.count:
        raise UserError(f"None of the {len(splits[0]):,} training images can be used: {next(iter(bad.values()))}")
    intensity = intensity_of(config.data.intensity, training)
    check_types(held_out, intensity)
    said = [
        describe_counts(opened.kind, training.count, held_out.count),
        *describe(training, Transform(shape.image_shape, shape.crop, intensity)),
    ]
    said += [f"{_told_left_out(bad)}."] if bad else []
    return {"intensity": format_intensity(intensity), "left_out": bad, "said": [*said, *opened.notes]}


def _without(source: Source, names: dict[str, str]) -> Source:
    """Returns a source without the images of these names."""
    if not names:
        return source
    return Subset(source, np.flatnonzero([name not in names for name in source.ids]))
