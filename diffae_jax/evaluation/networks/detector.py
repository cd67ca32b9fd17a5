"""A small classifier of real against generated images (Appendix K)."""

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
MOST_LEVELS, SMALLEST_MAP = 4, 4
BATCH_SIZE = 64
EPOCHS = 10
LEARNING_RATE = 1e-3
SHARES = (0.7, 0.1)  # of the images, to train on and to choose the epoch by; the rest tests


class Split(NamedTuple):
    """Images and whether each is generated."""

    images: UInt8[np.ndarray, "n *shape"]
    generated: Bool[np.ndarray, "n"]


def splits(real: UInt8[np.ndarray, "n *shape"], generated: UInt8[np.ndarray, "m *shape"], seed: int) -> list[Split]:
    """Returns a training, a validation and a test split, each with both kinds in the proportion that they have."""
    random = np.random.default_rng(seed)
    parts: list[list[tuple[np.ndarray, bool]]] = [[], [], []]
    for images, is_generated in ((real, False), (generated, True)):
        first = round(SHARES[0] * len(images))
        bounds = [first, first + round(SHARES[1] * len(images))]
        for part, rows in zip(parts, np.split(random.permutation(len(images)), bounds), strict=True):
            part.append((images[rows], is_generated))
    return [
        Split(
            np.concatenate([images for images, _ in part]),
            np.concatenate([np.full(len(images), is_generated) for images, is_generated in part]),
        )
        for part in parts
    ]


def detect(training: Split, validation: Split, test: Split, seed: int) -> Bool[np.ndarray, "n"]:
    """Trains a classifier and returns whether it is right about each test image.

    It is an encoder with one output, as deep as the images allow, trained with Adam on the binary cross-entropy; the
    epoch that does best on the validation images counts.
    """
    graphdef, params = split(_network(training.images.shape[1:], seed))
    optimizer = optax.adam(LEARNING_RATE)
    opt_state = optimizer.init(params)
    random = np.random.default_rng(seed)
    best, right = -1.0, np.zeros(len(test.images), bool)
    for _ in range(EPOCHS):
        order = random.permutation(len(training.images))
        for rows in _batches(order):
            batch = training.images[rows], training.generated[rows]
            params, opt_state = _step(params, opt_state, *batch, graphdef=graphdef, optimizer=optimizer)
        accuracy = (_says_generated(params, validation, graphdef) == validation.generated).mean()
        if accuracy > best:
            best, right = accuracy, _says_generated(params, test, graphdef) == test.generated
    return right


def _network(image_shape: tuple[int, ...], seed: int) -> SemanticEncoder:
    *spatial, _ = image_shape
    levels = 1
    while levels < MOST_LEVELS and all(n % 2**levels == 0 and n // 2**levels >= SMALLEST_MAP for n in spatial):
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
    """Cuts an order into batches of one size, so that one program serves all; what is left over is left out."""
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


def _says_generated(params, part: Split, graphdef) -> Bool[np.ndarray, "n"]:
    """Returns what the classifier says, in batches of one size; the last is filled up."""
    count, said = len(part.images), []
    size = min(BATCH_SIZE, count)
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        said.append(np.asarray(_logits(params, part.images[rows], graphdef=graphdef)) > 0)
    return np.concatenate(said)[:count]
