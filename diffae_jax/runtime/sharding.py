"""Shardings: batches are split over all devices, the state is replicated or split (FSDP)."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.gpu import check_gpu
from diffae_jax.runtime.process import forbid_forks

DATA = "data"  # the mesh axis of the devices
SLICE = "slice"  # a mesh axis before it, if there are several slices or nodes

MIN_SPLIT_SIZE = 2**16  # elements; gathering a smaller array costs more than replicating it

Sharding = Literal["replicated", "fsdp"]


def make_mesh(devices: Sequence[jax.Device] | None = None, num_slices: int | None = None) -> Mesh:
    """Returns a mesh of the given devices, by default all devices of all processes.

    Args:
        devices: The devices.
        num_slices: Groups of devices that a slower network connects: TPU slices or GPU nodes. By
            default, what the devices say.

    Returns:
        A mesh with the axis "data" or, for several slices, the axes "slice" and "data".

    Raises:
        UserError: The installed CUDA libraries do not support the GPU.
    """
    forbid_forks()
    if devices is None:
        devices = jax.devices()
        check_gpu(devices[0])
    # jax.devices() lists the devices of a process together, so its part of a batch is contiguous
    devices = list(devices)
    if num_slices is None:
        slices = [getattr(device, "slice_index", None) or 0 for device in devices]
        sizes = {slices.count(index) for index in slices}
        # slices of different sizes, or interleaved ones, count as one, as batches keep their order
        num_slices = len(set(slices)) if len(sizes) == 1 and slices == sorted(slices) else 1
    if num_slices == 1:
        return Mesh(np.asarray(devices), (DATA,), axis_types=(AxisType.Auto,))
    grid = np.asarray(devices).reshape(num_slices, -1)
    return Mesh(grid, (SLICE, DATA), axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that keeps the entire array on each device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Returns the sharding that splits the axis of the samples over the devices."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, mesh.axis_names if SLICE in mesh.axis_names else DATA))


def state_shardings(abstract_state: Any, mesh: Mesh, sharding: Sharding) -> Any:
    """Returns a sharding for each leaf of a state. The state is given by its shapes.

    With "fsdp", arrays of at least 65,536 elements are split along the largest axis that
    is divisible by the number of devices. The compiler gathers an array when it is used. With
    several slices, each has a copy, so that gathering does not use the slower network.
    """
    num_parts = mesh.shape[DATA]

    def spec(leaf) -> PartitionSpec:
        divisible = [axis for axis, size in enumerate(leaf.shape) if size % num_parts == 0]
        if sharding == "replicated" or not divisible or math.prod(leaf.shape) < MIN_SPLIT_SIZE:
            return PartitionSpec()
        largest = max(divisible, key=lambda axis: leaf.shape[axis])
        return PartitionSpec(*(DATA if axis == largest else None for axis in range(largest + 1)))

    return jax.tree.map(lambda leaf: NamedSharding(mesh, spec(leaf)), abstract_state)


def check_batch_size(key: str, batch_size: int, num_devices: int, num_microbatches: int = 1) -> None:
    """Raises UserError if a batch cannot be split evenly.

    `key` is the config key of the batch size.
    """
    if batch_size % (num_devices * num_microbatches):
        raise UserError(
            f"A batch of {batch_size} cannot be split over {num_devices} devices x {num_microbatches} microbatches: "
            f"make --config.{key} a multiple of {num_devices * num_microbatches}."
        )


def shard_array(array: np.ndarray | jax.Array, sharding: NamedSharding) -> jax.Array:
    """Shards a host array that every process holds in full."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


@functools.cache
def _gather(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def on_host(tree: Any) -> Any:
    """Returns arrays of any sharding as NumPy arrays, in full on each process."""
    forbid_forks()
    mesh_of = {x.sharding.mesh for x in jax.tree.leaves(tree) if not getattr(x, "is_fully_addressable", True)}
    if mesh_of:
        tree = _gather(mesh_of.pop())(tree)
        return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), tree)
    return jax.device_get(tree)
