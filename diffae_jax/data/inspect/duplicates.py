"""Finds images with identical pixels."""

import collections
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diffae_jax.data.sources import Source
from diffae_jax.runtime.arrays import plain
from diffae_jax.runtime.errors import counted, shown

MAX_GROUPS = 5  # listed
MAX_NAMES = 3  # listed of each group

Group = list[tuple[str, bool]]  # names of images, and whether each is held out


def find_duplicates(training: Mapping[str, bytes], held_out: Mapping[str, bytes]) -> list[Group]:
    """Returns groups of images with the same digest. Both arguments map ids to digests."""
    seen: set[bytes] = set()
    repeated: set[bytes] = set()
    for digest in itertools.chain(training.values(), held_out.values()):
        (repeated if digest in seen else seen).add(digest)
    groups: dict[bytes, Group] = collections.defaultdict(list)
    for digests, is_held_out in ((training, False), (held_out, True)):
        for name, digest in digests.items():
            if digest in repeated:
                groups[digest].append((name, is_held_out))
    return list(groups.values())


def describe_duplicates(groups: Sequence[Group]) -> list[str]:
    """Returns lines with the number of duplicates and some groups, groups across splits first."""
    if not groups:
        return ["Duplicates: none."]
    across = [group for group in groups if _spans_splits(group)]
    count = sum(map(len, groups))
    lines = [f"Duplicates: {count:,} images have the same pixels as another image, in {counted(len(groups), 'group')}:"]
    first = sorted(groups, key=_spans_splits, reverse=True)
    lines += [f"  {_describe_group(group)}" for group in first[:MAX_GROUPS]]
    more = len(groups) - MAX_GROUPS
    lines += [f"  and {counted(more, 'more group')}"] if more > 0 else []
    if across:
        seen = sum(is_held_out for group in across for _, is_held_out in group)
        images = counted(seen, "held-out image", verb="is/are")
        lines.append(
            f"{images} also among the training images. Measurements on held-out images will be too optimistic. Remove "
            f"the duplicates."
        )
    return lines


def describe_conflicts(groups: Sequence[Group], training: Source, held_out: Source) -> list[str]:
    """Returns a line on the groups of duplicates with different labels, and the first of them."""
    splits = training, held_out  # indexed by whether an image is held out
    if not any(split.labels for split in splits):
        return []
    rows = [{name: row for row, name in enumerate(split.ids)} for split in splits]

    def labels(name: str, is_held_out: bool) -> dict[str, Any]:
        row = rows[is_held_out][name]
        return {label: plain(values[row]) for label, values in splits[is_held_out].labels.items()}

    found = (_conflict((*item, labels(*item)) for item in group) for group in groups)
    conflicts = list(filter(None, found))
    if not conflicts:
        return []
    count = counted(len(conflicts), "group of duplicates", "groups of duplicates", verb="has/have")
    return [f"{count} different labels: {conflicts[0]}. Correct the labels, or remove the copies."]


def _conflict(images: Iterable[tuple[str, bool, Mapping[str, Any]]]) -> str:
    """Returns the first two images with different values of a label, or "" if there are none."""
    first: dict[str, tuple[str, Any]] = {}
    for name, _, labels in images:
        for label, value in labels.items():
            if value == "" or value != value:  # missing
                continue
            other, expected = first.setdefault(label, (name, value))
            if value != expected:
                return f"{shown(label)} is {_text(expected)} for {shown(other)} and {_text(value)} for {shown(name)}"
    return ""


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else shown(value)


def _spans_splits(group: Group) -> bool:
    return len({is_held_out for _, is_held_out in group}) == 2


def _describe_group(group: Group) -> str:
    by_split = sorted(group, key=lambda item: item[1])
    chosen = by_split if len(group) <= MAX_NAMES else [*by_split[: MAX_NAMES - 1], by_split[-1]]
    names = [f"{shown(name)}{' (held out)' if is_held_out else ''}" for name, is_held_out in chosen]
    return ", ".join(names) + (f" and {len(group) - len(chosen):,} more" if len(group) > len(chosen) else "")
