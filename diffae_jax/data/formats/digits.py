"""The digits that scikit-learn carries."""

import numpy as np

from diffae_jax.data.sources import Arrays
from diffae_jax.runtime.errors import UserError

DIGITS_SHAPE = (8, 8, 1)
DIGITS_HELD_OUT = 360  # the last fifth: other writers than the first four


def digits(image_shape: tuple[int, ...] = DIGITS_SHAPE) -> tuple[Arrays, Arrays]:
    """Returns the 1,797 scanned digits of scikit-learn, 8x8x1, for training and, by other writers, held out.

    Raises UserError where they are to have another shape.
    """
    images = all_digits(image_shape)
    first = len(images) - DIGITS_HELD_OUT

    def part(rows):
        return Arrays(images.images[rows], images.ids[rows], {"digit": images.labels["digit"][rows]})

    return part(slice(first)), part(slice(first, None))


def all_digits(image_shape: tuple[int, ...] = DIGITS_SHAPE) -> Arrays:
    """Returns both parts as one. Raises UserError where they are to have another shape."""
    if tuple(image_shape) != DIGITS_SHAPE:
        raise UserError(f"The digits have image_shape={DIGITS_SHAPE}, not {tuple(image_shape)}.")
    from sklearn.datasets import load_digits  # which takes a second

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)[..., None]
    return Arrays(images, [f"digit-{i:04d}" for i in range(len(images))], {"digit": data.target})
