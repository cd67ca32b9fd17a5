"""A small classifier that distinguishes generated from real images (Appendix K)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from diffae_jax.data.transforms import to_float
from diffae_jax.models import SemanticEncoder, split

BASE_CHANNELS = 32
MAX_LEVELS, MIN_MAP_SIZE = 4, 4
BATCH_SIZE = 64
EPOCHS = 10
LEARNING_RATE = 1e-3
OPTIMIZER = optax.adam(LEARNING_RATE)  # one object, so that the step compiles once for all detectors
SHARES = (0.7, 0.1)  # of the images, for training and validation; the rest are test images


class Split(NamedTuple):
    """Images, and whether each of them is generated."""

    images: UInt8[np.ndarray, "n *shape"]
    generated: Bool[np.ndarray, "n"]


def splits(real: UInt8[np.ndarray, "n *shape"], generated: UInt8[np.ndarray, "m *shape"], seed: int) -> list[Split]:
    """Returns training, validation and test splits with equal shares of generated images."""
    random = np.random.default_rng(seed)
    pieces: list[list[tuple[np.ndarray, bool]]] = [[], [], []]
    for images, is_generated in ((real, False), (generated, True)):
        first = round(SHARES[0] * len(images))
        bounds = [first, first + round(SHARES[1] * len(images))]
        for piece, rows in zip(pieces, np.split(random.permutation(len(images)), bounds), strict=True):
            piece.append((images[rows], is_generated))
    return [
        Split(
            np.concatenate([images for images, _ in piece]),
            np.concatenate([np.full(len(images), is_generated) for images, is_generated in piece]),
        )
        for piece in pieces
    ]


def detect(training: Split, validation: Split, test: Split, seed: int) -> Bool[np.ndarray, "n"]:
    """Trains a classifier and returns whether it classifies each test image correctly.

    The classifier is an encoder with one output, as deep as the image size allows. It is trained
    with Adam on the binary cross-entropy. The epoch with the best validation accuracy is used.
    """
    graphdef, params = split(_network(training.images.shape[1:], seed))
    opt_state = OPTIMIZER.init(params)
    random = np.random.default_rng(seed)
    best, correct = -1.0, np.zeros(len(test.images), bool)
    for _ in range(EPOCHS):
        order = random.permutation(len(training.images))
        for rows in _batches(order):
            batch = training.images[rows], training.generated[rows]
            params, opt_state = _step(params, opt_state, *batch, graphdef=graphdef, optimizer=OPTIMIZER)
        accuracy = (_predictions(params, validation, graphdef) == validation.generated).mean()
        if accuracy > best:
            best, correct = accuracy, _predictions(params, test, graphdef) == test.generated
    return correct


def _network(image_shape: tuple[int, ...], seed: int) -> SemanticEncoder:
    *spatial, _ = image_shape
    levels = 1
    while levels < MAX_LEVELS and all(n % 2**levels == 0 and n // 2**levels >= MIN_MAP_SIZE for n in spatial):
        levels += 1
    return SemanticEncoder(
        image_shape=image_shape,
        base_channels=BASE_CHANNELS,
        channel_mults=tuple(2 ** min(level, 2) for level in range(levels)),
        attention_resolutions=(),
        z_dim=1,
        rngs=nnx.Rngs(seed),
    )


def _batches(order: np.ndarray) -> list[np.ndarray]:
    """Splits an order into batches of one size, so the step compiles once. Drops the rest."""
    size = min(BATCH_SIZE, len(order))
    return [order[start : start + size] for start in range(0, len(order) - size + 1, size)]


@partial(jax.jit, static_argnames=("graphdef", "optimizer"), donate_argnums=(0, 1))
def _step(params, opt_state, images, generated, *, graphdef, optimizer):
    def loss(params):
        logits = nnx.merge(graphdef, params)(to_float(images))[:, 0]
        return optax.sigmoid_binary_cross_entropy(logits, generated.astype(jnp.float32)).mean()

    updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state


@partial(jax.jit, static_argnames="graphdef")
def _logits(params, images: UInt8[Array, "n *shape"], *, graphdef) -> Float[Array, "n"]:
    return nnx.merge(graphdef, params)(to_float(images))[:, 0]


def _predictions(params, subset: Split, graphdef) -> Bool[np.ndarray, "n"]:
    """Returns whether the classifier takes each image for a generated one. Pads the last batch."""
    count, predictions = len(subset.images), []
    size = min(BATCH_SIZE, count)
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        predictions.append(np.asarray(_logits(params, subset.images[rows], graphdef=graphdef)) > 0)
    return np.concatenate(predictions)[:count]
