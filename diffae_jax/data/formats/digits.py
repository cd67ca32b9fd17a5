"""The digits data set of scikit-learn."""

import numpy as np

from diffae_jax.data.sources import Arrays
from diffae_jax.runtime.errors import UserError

DIGITS_SHAPE = (8, 8, 1)
DIGITS_HELD_OUT = 360  # the last fifth, whose writers are not in the rest


def digits(image_shape: tuple[int, ...] = DIGITS_SHAPE) -> tuple[Arrays, Arrays]:
    """Returns training and held-out images: 1,797 scanned digits, 8x8x1, by different writers.

    Raises UserError for any other shape.
    """
    images = all_digits(image_shape)
    first = len(images) - DIGITS_HELD_OUT

    def part(rows):
        return Arrays(images.images[rows], images.ids[rows], {"digit": images.labels["digit"][rows]})

    return part(slice(first)), part(slice(first, None))


def all_digits(image_shape: tuple[int, ...] = DIGITS_SHAPE) -> Arrays:
    """Returns both splits as one source. Raises UserError for any other shape."""
    if tuple(image_shape) != DIGITS_SHAPE:
        raise UserError(
            f"The digits have image_shape={DIGITS_SHAPE}, not {tuple(image_shape)}. Set --config.image_shape to it."
        )
    from sklearn.datasets import load_digits  # a slow import

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)[..., None]
    return Arrays(images, [f"digit-{i:04d}" for i in range(len(images))], {"digit": data.target})
