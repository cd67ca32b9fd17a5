"""Packs the small weights of a network into few vectors, so that a step needs few operations.

A network has hundreds of biases, scales and small matrices. Optimizer, EMA and gradient norm treat
all elements alike, but XLA compiles and starts an operation for each array. Packed, they take half
the time to compile, and a small network trains almost twice as fast on a CPU.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffae_jax.runtime.sharding import MIN_SPLIT_SIZE
from diffae_jax.training.state import Leaf, Params, TrainState, leaves_by_name

SMALL = "small-weights"  # name of the vector; no attribute of a module can have it
MULTIPLE = 1024  # of the length of a vector, so that FSDP can split it
ALIGNMENT = 64  # elements; cuBLAS refuses a matrix that does not start at such an address

Packed = dict[str, dict[str, Leaf]]  # part of the network -> dotted name of a large array, or SMALL -> array


@dataclasses.dataclass(frozen=True)
class Packing:
    """Where each weight of a network is stored.

    Each part of the network, such as the encoder, has its own vector. The packing depends only on
    the shapes of the weights; checkpoints rely on it.

    Attributes:
        abstract: The weights with shapes instead of arrays, as a dict of parts.
    """

    abstract: Params

    def pack(self, params: Params) -> Packed:
        """Packs weights, or arrays of the same shapes such as their gradients.

        Arrays of fewer than 65,536 elements become one vector, each padded with zeros.
        """
        packed = {}
        for part, tree in params.items():
            leaves = dict(leaves_by_name(tree))
            small = [_padded(jnp.ravel(leaf), ALIGNMENT) for leaf in leaves.values() if _is_small(leaf)]
            packed[part] = {name: leaf for name, leaf in leaves.items() if not _is_small(leaf)}
            if small:
                packed[part][SMALL] = _padded(jnp.concatenate(small), MULTIPLE)
        return packed

    def pack_abstract(self) -> Packed:
        """Returns the shapes of packed weights, with the sharding that all weights share."""
        sharding = jax.tree.leaves(self.abstract)[0].sharding
        shapes = jax.eval_shape(self.pack, self.abstract)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)

    def unpack(self, packed: Packed) -> Params:
        """Inverts `pack`, for arrays on the devices, on the host, or traced by JAX."""
        return {part: _unpack(tree, packed[part]) for part, tree in self.abstract.items()}

    def map_vectors(self, function: Callable[[Leaf], Leaf], packed: Packed) -> Packed:
        """Applies a function to the vectors of packed weights."""
        return {
            part: {name: function(leaf) if name == SMALL else leaf for name, leaf in arrays.items()}
            for part, arrays in packed.items()
        }

    def pack_state(self, state: TrainState) -> TrainState:
        """Packs weights, EMA weights and the optimizer's arrays of the same structure."""

        def is_like_params(node: Any) -> bool:
            return isinstance(node, dict) and node.keys() == self.abstract.keys()

        return jax.tree.map(
            lambda node: self.pack(node) if is_like_params(node) else node, state, is_leaf=is_like_params
        )


def _is_small(leaf: Leaf) -> bool:
    return math.prod(leaf.shape) < MIN_SPLIT_SIZE


def _padded(vector: Leaf, multiple: int) -> Leaf:
    return jnp.pad(vector, (0, -len(vector) % multiple))


def _unpack(abstract: Params, packed: dict[str, Leaf]) -> Params:
    leaves = dict(leaves_by_name(abstract))
    small = {name: leaf.shape for name, leaf in leaves.items() if _is_small(leaf)}
    if small:
        sizes = [math.prod(shape) for shape in small.values()]
        ends = np.cumsum([size + -size % ALIGNMENT for size in sizes])
        split = np.split if isinstance(packed[SMALL], np.ndarray) else jnp.split
        pieces = split(packed[SMALL], ends)[:-1]  # the last one is padding
        shaped = (piece[:size].reshape(shape) for piece, size, shape in zip(pieces, sizes, small.values(), strict=True))
        packed = packed | dict(zip(small, shaped, strict=True))
    return jax.tree.unflatten(jax.tree.structure(abstract), [packed[name] for name in leaves])
