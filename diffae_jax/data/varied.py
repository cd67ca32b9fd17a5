"""Chooses a few images that vary, such as those of a picture."""

import numpy as np
from jaxtyping import Int

from diffae_jax.data.sources import Source, choose

MAX_CANDIDATES = 10_000  # images that are compared
MAX_VALUES = 50  # of a label with classes; others, such as an age, are ignored


def choose_varied(source: Source, count: int) -> Int[np.ndarray, "m"]:
    """Chooses images of as many folders and classes as possible.

    The next image is always one whose folder and labels were chosen least often. The choice is
    random among equal ones, and the same in each call.

    Args:
        source: The images to choose from, with their labels.
        count: The number of images to choose.

    Returns:
        The indices in the order of choice, so that neighbors differ: [min(count, len(source))].
    """
    candidates = np.random.default_rng(0).permutation(choose(len(source), MAX_CANDIDATES, seed=0))
    groups = _groups(source, candidates)
    num_chosen = [np.zeros(group.max(initial=0) + 1) for group in groups]
    is_left, chosen = np.ones(len(candidates), bool), []
    for _ in range(min(count, len(candidates))):
        times = sum((num[group] for num, group in zip(num_chosen, groups, strict=True)), np.zeros(len(candidates)))
        best = np.where(is_left, times, np.inf).argmin()
        is_left[best] = False
        chosen.append(candidates[best])
        for num, group in zip(num_chosen, groups, strict=True):
            num[group[best]] += 1
    return np.array(chosen, np.int64)


def _groups(source: Source, candidates: Int[np.ndarray, "n"]) -> list[Int[np.ndarray, "n"]]:
    """Returns the number of the folder of each candidate, and that of its class for each label."""
    ids = source.ids
    columns = [[ids[i].rpartition("/")[0] for i in candidates.tolist()]]
    columns += [values[candidates].astype(str) for values in source.labels.values()]
    groups = [np.unique(column, return_inverse=True)[1] for column in columns]
    return [group for group in groups if 0 < group.max(initial=0) < MAX_VALUES]
