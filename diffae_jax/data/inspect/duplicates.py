"""Finds images that are the same, pixel for pixel."""

import collections
from collections.abc import Mapping, Sequence

from diffae_jax.runtime.errors import shown

MAX_GROUPS = 5  # that are told
MAX_NAMES = 3  # of each

Group = list[tuple[str, bool]]  # names of images, and whether each is held out


def find_duplicates(training: Mapping[str, bytes], held_out: Mapping[str, bytes]) -> list[Group]:
    """Returns the images that have the same digest as another, from the digests of all by id, in groups."""
    groups: dict[bytes, Group] = collections.defaultdict(list)
    for digests, is_held_out in ((training, False), (held_out, True)):
        for name, digest in digests.items():
            groups[digest].append((name, is_held_out))
    return [group for group in groups.values() if len(group) > 1]


def describe_duplicates(groups: Sequence[Group]) -> list[str]:
    """Returns in lines how many images are the same as another, and some of them; first those on both sides."""
    if not groups:
        return ["Duplicates: none."]
    across = [group for group in groups if _is_on_both_sides(group)]
    count = sum(map(len, groups))
    lines = [
        f"Duplicates: {count:,} images are the same, pixel for pixel, as another, in {len(groups):,} "
        f"group{'s' * (len(groups) != 1)}:"
    ]
    first = sorted(groups, key=_is_on_both_sides, reverse=True)
    lines += [f"  {_describe_group(group)}" for group in first[:MAX_GROUPS]]
    lines += [f"  and {len(groups) - MAX_GROUPS:,} more groups"] if len(groups) > MAX_GROUPS else []
    if across:
        seen = sum(is_held_out for group in across for _, is_held_out in group)
        lines.append(f"Held out, and trained on as well: {seen:,}, which flatters whatever is measured on them.")
    return lines


def _is_on_both_sides(group: Group) -> bool:
    return len({is_held_out for _, is_held_out in group}) == 2


def _describe_group(group: Group) -> str:
    by_side = sorted(group, key=lambda item: item[1])
    chosen = by_side if len(group) <= MAX_NAMES else [*by_side[: MAX_NAMES - 1], by_side[-1]]
    names = [f"{shown(name)}{' (held out)' if is_held_out else ''}" for name, is_held_out in chosen]
    return ", ".join(names) + (f" and {len(group) - len(chosen):,} more" if len(group) > len(chosen) else "")
