"""Scans a data set once before training: sizes, values, and images that cannot be used."""

import collections
import dataclasses
import hashlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from ml_collections import ConfigDict
from tqdm import tqdm

from diffae_jax.config import parse_intensity
from diffae_jax.data.sources import Source, Subset, TransformedSource, each, group_size
from diffae_jax.data.transforms import Transform, format_size, likely_range
from diffae_jax.runtime.errors import UserError, counted, list_some, shown
from diffae_jax.runtime.files import AnyPath, parse_json, read_bytes

RECORD = "data.json"  # in a run folder: the result of the scan
MAX_RECORD_BYTES = 2**30  # one sentence per image left out, possibly millions
SAMPLED_VALUES = 4_000_000  # over all images, for percentiles
MAX_CLASSES = 20  # listed with their counts
MAX_SIZES = 8  # listed with their counts
KNOWN_TYPES = {"uint8", "bool", "uint16"}  # converted to 8 bits, unless all images are uint16


@dataclasses.dataclass
class ScanResult:
    """The result of a scan.

    `bad` has the reason for each unusable image, by id. `unfit` counts the shapes of unusable
    images that image_shape does not allow. All other fields describe usable images. `values` and
    `digests` are optional.
    """

    count: int = 0
    sizes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    channels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    gray: int = 0  # images whose channels are equal
    types: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    low: float = np.inf
    high: float = -np.inf
    values: list[Float[np.ndarray, "_"]] = dataclasses.field(default_factory=list)  # samples
    bad: dict[str, str] = dataclasses.field(default_factory=dict)  # by id
    unfit: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # by shape
    digests: dict[str, bytes] = dataclasses.field(default_factory=dict)  # of the pixels, by id

    def add(self, name: str, facts: tuple) -> None:
        """Adds what `_inspect_image` returned for an image."""
        size, channels, is_gray, dtype, low, high, values, digest = facts
        if digest:
            self.digests[name] = digest
        self.count += 1
        self.sizes[size] += 1
        self.channels[channels] += 1
        self.gray += is_gray
        self.types[dtype] += 1
        self.low, self.high = min(self.low, low), max(self.high, high)
        if values is not None:
            self.values.append(values)


def scan(
    images: TransformedSource, *, show_progress: bool = False, digests: bool = False, values: bool = False
) -> ScanResult:
    """Reads and checks every image once, before it is transformed.

    `digests` also hashes the pixels, to find duplicates. `values` also keeps a sample of the
    values, for percentiles.
    """
    result = ScanResult()
    num_values = max(16, SAMPLED_VALUES // max(1, len(images))) if values else 0
    ids = images.ids
    facts = each(
        lambda index: _inspect_image(images, index, num_values, digests),
        range(len(images)),
        in_group=group_size(len(images)),
    )
    progress = tqdm(facts, "checking images", len(images), unit=" images", disable=not show_progress, leave=False)
    for index, facts_or_reason in enumerate(progress):
        if isinstance(facts_or_reason, Unusable):
            result.bad[ids[index]] = facts_or_reason.reason
            result.unfit.update(facts_or_reason.unfit)
        else:
            result.add(ids[index], facts_or_reason)
    return result


def check_all(images: Source, *, show_progress: bool = False) -> None:
    """Scans images. Raises UserError if any is unusable.

    The message has the number of unusable images and the first reason. Images without a transform
    are in memory in their final form, and are not checked.
    """
    if not isinstance(images, TransformedSource):
        return
    result = scan(images, show_progress=show_progress)
    refuse_bad(result, len(images), "")
    check_types(result, images.transform.intensity)


def check_types(result: ScanResult, intensity: tuple[float, float] | None) -> None:
    """Raises UserError for types with an unknown value range, if the model takes 8-bit images."""
    unknown = {dtype: count for dtype, count in result.types.items() if dtype not in KNOWN_TYPES}
    if intensity is None and unknown:
        count = sum(unknown.values())
        raise UserError(
            f"{counted(count, 'image', verb='has/have')} values of {', '.join(sorted(unknown))}, but the "
            f"training images are 8-bit. The range of these values is unknown. Convert them to 8 or 16 bits."
        )


class Unusable(NamedTuple):
    """The reason why an image cannot be used, and its shape if that does not fit."""

    reason: str
    unfit: tuple[tuple[int, ...], ...] = ()


def _inspect_image(images: TransformedSource, index: int, num_values: int, with_digest: bool) -> tuple | Unusable:
    """Returns the facts that `ScanResult.add` takes, or the reason why an image is unusable."""
    try:
        image = images.source[index]
    except UserError as error:
        return Unusable(str(error))
    *size, channels = images.transform.image_shape
    try:
        images.transform.check(image, images.name(index))
    except UserError as error:
        is_small = any(have < want for have, want in zip(image.shape, size, strict=False))
        return Unusable(str(error), (image.shape,) if is_small or image.shape[-1] != channels else ())
    values = _sample(image.reshape(-1), num_values, index) if num_values else None
    digest = _digest(image) if with_digest else b""
    low, high = float(image.min()), float(image.max())
    return image.shape[:-1], image.shape[-1], _is_gray(image), str(image.dtype), low, high, values, digest


def _is_gray(image: Shaped[np.ndarray, "*spatial c"]) -> bool:
    """Returns whether all channels of an image, except for transparency, have the same values."""
    color = image[..., : min(3, image.shape[-1])]
    few = color[(slice(None, None, 16),) * (color.ndim - 1)]  # colors are found without comparing all pixels
    return all(bool((part == part[..., :1]).all()) for part in (few, color))


def _sample(values: Shaped[np.ndarray, "n"], count: int, seed: int) -> Float[np.ndarray, "_"]:
    """Returns `count` random values: a regular step could hit a single channel or column."""
    if len(values) > count:
        values = values[np.random.default_rng(seed).integers(len(values), size=count)]
    return values.astype(np.float32)


def _digest(image: np.ndarray) -> bytes:
    """Returns a hash of the values, shape and type of an array, 16 bytes."""
    kind = f"{image.shape} {image.dtype}".encode()
    return hashlib.blake2b(np.ascontiguousarray(image), digest_size=16, key=hashlib.sha256(kind).digest()).digest()


def refuse_bad(result: ScanResult, total: int, fix: str) -> None:
    """Raises UserError if images cannot be used. The message has their count and a reason."""
    if result.bad:
        first = next(iter(result.bad.values()))
        count = f"{len(result.bad):,} of {total:,} images cannot be used. The first: " if len(result.bad) > 1 else ""
        raise UserError(f"{count}{first}{fix}")


def scanned_transform(config: ConfigDict, training: ScanResult, held_out: ScanResult) -> Transform:
    """Returns the transform of a config, with the value range that the scan measured.

    Raises UserError if no training image can be used, or if the value range is unknown.
    """
    if not training.count and not training.bad:
        raise UserError("There are no training images. Check the path, or hold out fewer images.")
    if not training.count:
        first = next(iter(training.bad.values()))
        raise UserError(f"None of the {counted(len(training.bad), 'training image')} can be used: {first}")
    intensity = intensity_of(config.data.intensity, training, held_out.types)
    return Transform(tuple(config.image_shape), config.data.crop, intensity)


def exclude(source: Source, names: Collection[str]) -> Source:
    """Returns a source without the images that have these ids."""
    if not names:
        return source
    return Subset(source, np.flatnonzero([name not in names for name in source.ids]))


def _check_one_range(types: collections.Counter) -> None:
    """Raises UserError for a mixture of types that cannot share one value range."""
    if len(types) > 1 and types.keys() & KNOWN_TYPES:
        kinds = ", ".join(f"{count:,} of {dtype}" for dtype, count in types.most_common())
        raise UserError(
            f"The images have several types ({kinds}), so their common value range is unknown. Set the values that "
            f"become -1 and 1 with --config.data.intensity=LOW..HIGH."
        )


def intensity_of(text: str, result: ScanResult, held_out: Collection[str] = ()) -> tuple[float, float] | None:
    """Returns the value range that is scaled to [-1, 1], or None for images that end as uint8.

    `text` is the setting data.intensity. Percentiles are those of the values that the scan kept.
    `held_out` has the types of the held-out images, for which the same range is used.

    Without a setting, 8-bit images keep their range. For other types the range is measured, and
    rounded up to a standard range, such as [0, 255], if the values fill most of it. Raises
    UserError for a mixture of types without a common range.
    """
    given = parse_intensity(text)
    if given is not None:
        low, high, percent = given
        if not percent:
            return low, high
        low, high = np.percentile(np.concatenate(result.values), (low, high)).tolist()
        return (low, high) if low < high else (low, low + 1)
    types = result.types + collections.Counter(held_out)
    if types.keys() <= KNOWN_TYPES and types.keys() != {"uint16"}:
        return None
    _check_one_range(types)
    return likely_range(result.low, result.high)


def describe_counts(kind: str, num_training: int, num_held_out: int) -> str:
    """Returns a sentence with the format and the numbers of images."""
    return f"Images: {kind}, {num_training:,} to train on, {num_held_out:,} held out."


def describe(result: ScanResult, transform: Transform) -> list[str]:
    """Returns sentences about the sizes, channels, values and conversion of images."""
    *size, channels = transform.image_shape
    lines = [f"Sizes: {_sizes(result.sizes)}. All are scaled to {format_size(size)}{_by_crop(transform)}."]
    if set(result.sizes) == {tuple(size)}:
        lines = [f"Sizes: all {format_size(size)}."]
    others = {number: count for number, count in result.channels.items() if number != channels}
    if others:
        kinds = ", ".join(f"{number} ({counted(count, 'image')})" for number, count in result.channels.most_common())
        lines.append(f"Channels: {kinds}. All are converted to {channels}.")
    else:
        lines.append(f"Channels: {channels}.")
    types = ", ".join(
        f"{dtype} ({count:,})" if len(result.types) > 1 else dtype for dtype, count in result.types.items()
    )
    values = f"Values: {types}, from {result.low:.6g} to {result.high:.6g}"
    if transform.intensity is not None:
        low, high = transform.intensity
        lines.append(f"{values}. {low:.6g} becomes -1 and {high:.6g} becomes 1.")
    else:
        lines.append(f"{values}{'' if set(result.types) == {'uint8'} else ', converted to 8 bits'}.")
    return lines


def _by_crop(transform: Transform) -> str:
    return "" if transform.crop == "center" else f" after the {transform.crop} crop"


def _sizes(sizes: Mapping[tuple[int, ...], int]) -> str:
    if len(sizes) == 1:
        return f"all {format_size(next(iter(sizes)))}"
    common, count = max(sizes.items(), key=lambda item: item[1])
    smallest, largest = (format_size(call(sizes, key=np.prod)) for call in (min, max))
    images = counted(count, "image")
    return f"{len(sizes):,} different, from {smallest} to {largest}. Most common: {format_size(common)} ({images})"


def list_sizes(result: ScanResult) -> list[str]:
    """Returns a line for each common size, or for each range of sizes if few images share one."""
    if len(result.sizes) < 2:
        return []
    common = result.sizes.most_common(MAX_SIZES if len(result.sizes) <= MAX_SIZES else MAX_SIZES - 1)
    others = result.count - sum(count for _, count in common)
    if others > result.count / 2:
        return _list_ranges(result.sizes)
    lines = [f"  {format_size(size)}: {count:,}" for size, count in common]
    return lines + ([f"  {len(result.sizes) - len(common):,} other sizes: {others:,}"] if others else [])


def _list_ranges(sizes: Mapping[tuple[int, ...], int]) -> list[str]:
    """Counts images by their shortest side, in ranges between powers of two."""
    shortest = collections.Counter()
    for size, count in sizes.items():
        shortest[min(size)] += count
    last = max(shortest).bit_length()
    ranges = collections.defaultdict(list)
    for side in sorted(shortest):
        ranges[max(side.bit_length(), last - MAX_SIZES + 1)].append(side)
    return [
        f"  shortest side from {sides[0]:,} to {sides[-1]:,}: {counted(sum(shortest[side] for side in sides), 'image')}"
        for sides in ranges.values()
    ]


def describe_labels(labels: Mapping[str, np.ndarray]) -> list[str]:
    """Returns a line for each label: the counts of its classes, or the range of its numbers."""
    lines = [f"Labels: {len(labels)}." if labels else "Labels: none."]
    for name, values in labels.items():
        missing = (
            np.array([value == "" for value in values]) if values.dtype == object else np.isnan(values.astype(float))
        )
        known = values[~missing]
        counts = collections.Counter(map(str, known) if known.dtype == object else known.tolist())
        classes = sorted(counts)
        if len(classes) <= MAX_CLASSES:
            names = map("{:g}".format if known.dtype.kind == "f" else str, classes)
            summary = ", ".join(
                f"{shown(name)} ({counts[value]:,})" for name, value in zip(names, classes, strict=True)
            )
        elif known.dtype == object:
            summary = f"{len(classes):,} different texts ({list_some(classes)})"
        else:
            summary = f"numbers from {known.min():.6g} to {known.max():.6g}"
        num_missing = int(missing.sum())
        note = f"; missing for {counted(num_missing, 'image')}" if num_missing else ""
        lines.append(f"  {shown(name)}: {summary or 'none'}{note}")
    return lines


def read_record(folder: AnyPath) -> dict[str, Any]:
    """Returns the record of a run's data, {} if there is none. Raises UserError if damaged."""
    path = folder / RECORD
    record = parse_json(read_bytes(path, MAX_RECORD_BYTES), path) if path.exists() else {}
    if not isinstance(record, dict):
        raise UserError(f"{path} is damaged. Remove it, and the images are scanned again.")
    return record


def intensity_in(record: dict[str, Any], folder: AnyPath) -> str:
    """Returns the value range in a record. Raises UserError if it is invalid."""
    text = record.get("intensity", "")
    try:
        parse_intensity(text)
    except (UserError, TypeError) as error:
        raise UserError(
            f"{folder / RECORD} is damaged: its intensity is {shown(text)}. Remove it, and the images are scanned "
            f"again."
        ) from error
    return text
