"""Where arrays lie: batches split over all devices, state replicated or split too (FSDP)."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.process import forbid_forks

DATA = "data"  # the one mesh axis: all devices of all processes

MIN_SPLIT_SIZE = 2**16  # smaller arrays cost more to gather than to keep

Sharding = Literal["replicated", "fsdp"]


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh of some devices, by default all of all processes."""
    forbid_forks()
    devices = jax.devices() if devices is None else devices
    # in this order the devices of a process are neighbors, so that its part of a batch is one piece
    return Mesh(np.asarray(devices), (DATA,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The axis of the samples, by default the first, split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, DATA))


def state_shardings(abstract_state: Any, mesh: Mesh, sharding: Sharding) -> Any:
    """Returns a sharding for each leaf of a state given by its shapes.

    Under fsdp, every array of at least 65,536 elements is split along its largest axis that the number of devices
    divides; the compiler gathers each where it is used.
    """

    def spec(leaf) -> PartitionSpec:
        divisible = [axis for axis, size in enumerate(leaf.shape) if size % mesh.size == 0]
        if sharding == "replicated" or not divisible or math.prod(leaf.shape) < MIN_SPLIT_SIZE:
            return PartitionSpec()
        largest = max(divisible, key=lambda axis: leaf.shape[axis])
        return PartitionSpec(*(DATA if axis == largest else None for axis in range(largest + 1)))

    return jax.tree.map(lambda leaf: NamedSharding(mesh, spec(leaf)), abstract_state)


def check_batch_size(key: str, batch_size: int, num_devices: int, num_microbatches: int = 1) -> None:
    """Raises UserError, with the config's key of the batch size, where a batch cannot be split evenly."""
    if batch_size % (num_devices * num_microbatches):
        raise UserError(
            f"A batch of {batch_size} cannot be split over {num_devices} devices x {num_microbatches} micro-batches: "
            f"make --config.{key} a multiple of {num_devices * num_microbatches}."
        )


def shard_array(array: np.ndarray | jax.Array, sharding: NamedSharding) -> jax.Array:
    """Lays an array that every process holds whole out over the devices."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


@functools.cache
def _gather(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def on_host(tree: Any) -> Any:
    """Fetches global arrays of any sharding as numpy arrays, on every process alike."""
    forbid_forks()
    mesh_of = {x.sharding.mesh for x in jax.tree.leaves(tree) if not x.is_fully_addressable}
    if mesh_of:
        tree = _gather(mesh_of.pop())(tree)
        return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), tree)
    return jax.device_get(tree)
