"""Reads a data set once, before anything is trained: what it holds, and what of it cannot be used."""

import collections
import dataclasses
import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from ml_collections import ConfigDict
from tqdm import tqdm

from diffae_jax.config import parse_intensity
from diffae_jax.data.sources import Source, Subset, TransformedSource, each
from diffae_jax.data.transforms import Transform, format_size, likely_range
from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.files import parse_json, read_bytes

RECORD = "data.json"  # in the folder of a run: what its images are, and how they are scaled
MAX_RECORD_BYTES = 2**30  # it has a sentence for each image that was left out, which may be millions
SAMPLED_VALUES = 4_000_000  # of all images together, for percentiles
MAX_CLASSES = 20  # that are listed with their counts
MAX_SIZES = 8  # that are listed with their counts
KNOWN_TYPES = {"uint8", "bool", "uint16"}  # which become 8 bits where not all are of 16


@dataclasses.dataclass
class ScanResult:
    """What was found: counts of images by what they are, the values, and a sentence for each that cannot be used."""

    count: int = 0
    sizes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    channels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    types: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    low: float = np.inf
    high: float = -np.inf
    values: list[Float[np.ndarray, "_"]] = dataclasses.field(default_factory=list)  # a sample, where asked for
    bad: dict[str, str] = dataclasses.field(default_factory=dict)  # by id
    digests: dict[str, bytes] = dataclasses.field(default_factory=dict)  # of the pixels, by id, where asked for

    def add(self, name: str, found: tuple) -> None:
        """Counts what `_inspect_image` found in an image."""
        size, channels, dtype, low, high, values, digest = found
        if digest:
            self.digests[name] = digest
        self.count += 1
        self.sizes[size] += 1
        self.channels[channels] += 1
        self.types[dtype] += 1
        self.low, self.high = min(self.low, low), max(self.high, high)
        if values is not None:
            self.values.append(values)


def scan(
    images: TransformedSource, *, show_progress: bool = False, digests: bool = False, values: bool = False
) -> ScanResult:
    """Reads every image once, as it is before it is prepared; those that cannot be used are found.

    With `digests` the pixels are hashed, too, which tells duplicates; with `values` some are kept, for percentiles.
    """
    found = ScanResult()
    num_values = max(16, SAMPLED_VALUES // max(1, len(images))) if values else 0
    looks = each(lambda index: _inspect_image(images, index, num_values, digests), range(len(images)))
    shown_looks = tqdm(looks, "checking images", len(images), unit=" images", disable=not show_progress, leave=False)
    for index, look in enumerate(shown_looks):
        if isinstance(look, str):
            found.bad[images.ids[index]] = look
        else:
            found.add(images.ids[index], look)
    return found


def check_all(images: Source, *, show_progress: bool = False) -> None:
    """Raises UserError where one of the images cannot be used: how many cannot, and the first of them.

    Images that are not prepared are in memory, such as the networks take them.
    """
    if not isinstance(images, TransformedSource):
        return
    found = scan(images, show_progress=show_progress)
    refuse(found, len(images), "")
    check_types(found, images.transform.intensity)


def check_types(found: ScanResult, intensity: tuple[float, float] | None) -> None:
    """Raises UserError for values of no known range where images are to be 8 bits."""
    unknown = {dtype: count for dtype, count in found.types.items() if dtype not in KNOWN_TYPES}
    if intensity is None and unknown:
        raise UserError(
            f"{sum(unknown.values()):,} images have values of {', '.join(sorted(unknown))}, and those to train on have "
            f"8 bits: nothing tells their range, so give them as 8 or 16 bits, too."
        )


def _inspect_image(images: TransformedSource, index: int, num_values: int, with_digest: bool) -> tuple | str:
    """Returns what an image is, or what is wrong with it."""
    try:
        image = images.source[index]
        images.transform.check(image, images.name(index))
    except UserError as error:
        return str(error)
    values = _sample(image.reshape(-1), num_values, index) if num_values else None
    digest = _digest(image) if with_digest else b""
    return image.shape[:-1], image.shape[-1], str(image.dtype), float(image.min()), float(image.max()), values, digest


def _sample(values: Shaped[np.ndarray, "n"], count: int, seed: int) -> Float[np.ndarray, "_"]:
    """Returns so many of the values, at random: at even steps they might all be of one channel or column."""
    if len(values) > count:
        values = values[np.random.default_rng(seed).integers(len(values), size=count)]
    return values.astype(np.float32)


def _digest(image: np.ndarray) -> bytes:
    """Returns 16 bytes that tell an array from all others."""
    kind = f"{image.shape} {image.dtype}".encode()
    return hashlib.blake2b(np.ascontiguousarray(image), digest_size=16, key=hashlib.sha256(kind).digest()).digest()


def refuse(found: ScanResult, total: int, remedy: str) -> None:
    """Raises UserError where some images cannot be used: how many, and the first of them."""
    if found.bad:
        first = next(iter(found.bad.values()))
        many = f"{len(found.bad):,} of {total:,} images cannot be used, the first: " if len(found.bad) > 1 else ""
        raise UserError(f"{many}{first.rstrip('.')}{remedy}.")


def transform_by(config: ConfigDict, training: ScanResult, held_out: ScanResult) -> Transform:
    """Returns what happens to the images of a config, by what was found in them.

    Raises UserError where no training image can be used, and for values whose range nothing tells.
    """
    if not training.count:
        first = next(iter(training.bad.values()), "there are none.")
        raise UserError(f"None of the {len(training.bad):,} training images can be used: {first}")
    intensity = intensity_of(config.data.intensity, training, held_out.types)
    return Transform(tuple(config.image_shape), config.data.crop, intensity)


def without(source: Source, names: Collection[str]) -> Source:
    """Returns a source without the images of these names."""
    if not names:
        return source
    return Subset(source, np.flatnonzero([name not in names for name in source.ids]))


def _check_one_range(types: collections.Counter) -> None:
    """Raises UserError for types that hardly have black and white at the same values."""
    if len(types) > 1 and types.keys() & KNOWN_TYPES:
        kinds = ", ".join(f"{count:,} of {dtype}" for dtype, count in types.most_common())
        raise UserError(
            f"The images are of several types ({kinds}), and nothing tells what is black and white in each: give the "
            f"values that become -1 and 1 with --config.data.intensity=LOW..HIGH."
        )


def intensity_of(text: str, found: ScanResult, held_out: Collection[str] = ()) -> tuple[float, float] | None:
    """Returns the values that become -1 and 1 under data.intensity; None where images are uint8, or are made so.

    `held_out` are the types of other images that the same range is for. Percentiles are those of the values that the
    survey was asked to keep.

    Where nothing is given, 8 bits are taken as they are, and other values reach from the least to the greatest that was
    found, or over the usual range that they fill. Raises UserError for a mixture of types whose range nothing tells.
    """
    given = parse_intensity(text)
    if given is not None:
        low, high, percent = given
        if not percent:
            return low, high
        low, high = np.percentile(np.concatenate(found.values), (low, high)).tolist()
        return (low, high) if low < high else (low, low + 1)
    types = found.types + collections.Counter(held_out)
    if types.keys() <= KNOWN_TYPES and types.keys() != {"uint16"}:
        return None
    _check_one_range(types)
    return likely_range(found.low, found.high)


def describe_counts(kind: str, num_training: int, num_held_out: int) -> str:
    """Returns how many images there are, in a sentence."""
    return f"Images: {kind}, {num_training:,} to train on, {num_held_out:,} held out."


def describe(found: ScanResult, transform: Transform) -> list[str]:
    """Returns what was found and what is made of it, in sentences."""
    *size, channels = transform.image_shape
    lines = [f"Sizes: {_sizes(found.sizes)}; all become {format_size(size)}{_by_crop(transform)}."]
    if set(found.sizes) == {tuple(size)}:
        lines = [f"Sizes: all {format_size(size)}."]
    others = {number: count for number, count in found.channels.items() if number != channels}
    if others:
        kinds = ", ".join(f"{count:,} have {number}" for number, count in found.channels.most_common())
        lines.append(f"Channels: {kinds}; all become {channels}.")
    else:
        lines.append(f"Channels: {channels}.")
    types = ", ".join(f"{dtype} ({count:,})" if len(found.types) > 1 else dtype for dtype, count in found.types.items())
    told = f"Values: {types}, from {found.low:.6g} to {found.high:.6g}"
    if transform.intensity is None:
        lines.append(f"{told}; {'as they are' if set(found.types) == {'uint8'} else 'scaled to 8 bits'}.")
    else:
        low, high = transform.intensity
        lines.append(f"{told}; {low:.6g} becomes -1 and {high:.6g} becomes 1.")
    return lines


def _by_crop(transform: Transform) -> str:
    return "" if transform.crop == "center" else f", by the crop {transform.crop}"


def _sizes(sizes: Mapping[tuple[int, ...], int]) -> str:
    if len(sizes) == 1:
        return f"all {format_size(next(iter(sizes)))}"
    common, count = max(sizes.items(), key=lambda item: item[1])
    least, most = (format_size(call(sizes, key=np.prod)) for call in (min, max))
    return f"{len(sizes):,}, from {least} to {most}, the most common {format_size(common)} ({count:,})"


def list_sizes(found: ScanResult) -> list[str]:
    """Returns a line for each of the most common sizes, or, where hardly two images share one, for ranges of them."""
    if len(found.sizes) < 2:
        return []
    common = found.sizes.most_common(MAX_SIZES if len(found.sizes) <= MAX_SIZES else MAX_SIZES - 1)
    others = found.count - sum(count for _, count in common)
    if others > found.count / 2:
        return _list_ranges(found.sizes)
    lines = [f"  {format_size(size)}: {count:,}" for size, count in common]
    return lines + ([f"  {len(found.sizes) - len(common):,} other sizes: {others:,}"] if others else [])


def _list_ranges(sizes: Mapping[tuple[int, ...], int]) -> list[str]:
    """Counts images by the shortest side, in ranges from one power of two to the next."""
    shortest = collections.Counter()
    for size, count in sizes.items():
        shortest[min(size)] += count
    last = max(shortest).bit_length()
    ranges = collections.defaultdict(list)
    for side in sorted(shortest):
        ranges[max(side.bit_length(), last - MAX_SIZES + 1)].append(side)
    return [
        f"  shortest side from {sides[0]:,} to {sides[-1]:,}: {sum(shortest[side] for side in sides):,}"
        for sides in ranges.values()
    ]


def describe_labels(labels: Mapping[str, np.ndarray]) -> list[str]:
    """Returns what labels there are, in lines: the counts of classes, and the range of numbers."""
    lines = [f"Labels: {len(labels)}." if labels else "Labels: none."]
    for name, values in labels.items():
        missing = (
            np.array([value == "" for value in values]) if values.dtype == object else np.isnan(values.astype(float))
        )
        known = values[~missing]
        classes, counts = np.unique(known.astype(str) if known.dtype == object else known, return_counts=True)
        if len(classes) <= MAX_CLASSES:
            names = map("{:g}".format, classes) if classes.dtype.kind == "f" else map(str, classes)
            told = ", ".join(f"{shown(value)} ({count:,})" for value, count in zip(names, counts, strict=True))
        elif known.dtype == object:
            told = f"{len(classes):,} texts ({list_some(map(str, classes))})"
        else:
            told = f"numbers from {known.min():.6g} to {known.max():.6g}"
        without = f"; {missing.sum():,} images without" if missing.any() else ""
        lines.append(f"  {shown(name)}: {told or 'none'}{without}")
    return lines


def read_record(folder: Path) -> dict[str, Any]:
    """Returns what a run's record of its data says; nothing where there is none. Raises UserError for a damaged one."""
    path = folder / RECORD
    record = parse_json(read_bytes(path, MAX_RECORD_BYTES), path) if path.exists() else {}
    if not isinstance(record, dict):
        raise UserError(f"{path} is damaged: remove it, and the images are looked at anew.")
    return record


def intensity_in(record: dict[str, Any], folder: Path) -> str:
    """Returns the range of values that a record tells. Raises UserError for one that is none."""
    text = record.get("intensity", "")
    try:
        parse_intensity(text)
    except (UserError, TypeError) as error:
        raise UserError(f"{folder / RECORD} is damaged: its intensity is {shown(text)}.") from error
    return text
