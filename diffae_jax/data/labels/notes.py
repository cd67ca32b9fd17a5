"""Notes on labels that are missing, constant, or of no image."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from diffae_jax.data.labels.arrow import text_of
from diffae_jax.data.labels.matching import Labels
from diffae_jax.runtime.errors import list_some, shown

MOST_CLASSES = 1000  # notes compare at most this many classes


def notes(labels: Mapping[str, np.ndarray], table: Labels | None, ids: Sequence[str]) -> list[str]:
    """Returns notes about problems with the labels of the images `ids`, which come from `table`.

    Problems are images without labels, and rows and classes without images. Notes about the table
    come first.
    """
    sentences = list(table.notes_on_table) if table else []
    from_table = [values for name, values in labels.items() if table is None or name in table.columns]
    bare = np.flatnonzero(~np.any([_is_known(values) for values in from_table], 0)) if from_table else []
    if len(bare):
        sentences.append(f"{len(bare):,} of {len(ids):,} images have no labels ({list_some(ids[i] for i in bare)}).")
    unmatched = table.unmatched(ids) if table else []
    if unmatched:
        sentences.append(
            f"{len(unmatched):,} of {len(table.ids):,} rows in the table of labels match no image "
            f"({list_some(unmatched)})."
        )
    for name, values in labels.items() if table else ():
        in_table, in_images = _classes(table.columns.get(name, np.empty(0))), _classes(values)
        if in_table - in_images:
            sentences.append(
                f"{len(in_table - in_images):,} of {len(in_table):,} classes of {shown(name)} have no image "
                f"({list_some(in_table - in_images)})."
            )
    return sentences


def constant_labels(labels: Mapping[str, np.ndarray]) -> list[str]:
    """Returns notes about labels with no value, or with only one, in the training images.

    No probe can be fitted to these labels.
    """
    values = {name: set(column[_is_known(column)].tolist()) for name, column in labels.items()}
    empty = [name for name, unique in values.items() if not unique]
    constant = [f"{name}={text_of(*unique)}" for name, unique in values.items() if len(unique) == 1]
    problems = {
        "have no value for any training image": empty,
        "are constant over the labeled training images": constant,
    }
    return [
        f"{len(names):,} of {len(labels):,} labels {problem} ({list_some(names)})."
        for problem, names in problems.items()
        if names
    ]


def _is_known(values: np.ndarray) -> Bool[np.ndarray, "n"]:
    if values.dtype.kind in "OU":
        return np.array([value != "" for value in values], bool)
    return ~np.isnan(values)


def _classes(values: np.ndarray) -> set[str]:
    """Returns the unique values of text or integers, or nothing if there are too many."""
    unique = set(values[_is_known(values)].tolist())
    are_classes = all(isinstance(value, str) or float(value).is_integer() for value in unique)
    return set(map(text_of, unique)) if len(unique) <= MOST_CLASSES and are_classes else set()
