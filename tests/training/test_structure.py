"""What the compiled training step exchanges between devices, and how much memory FSDP saves."""

import collections

import jax
import numpy as np
import pytest

from diffae_jax.plan.hlo import read_program
from diffae_jax.plan.roofline import group_of_first
from diffae_jax.runtime.sharding import make_mesh, shard_array, split_batch
from diffae_jax.stages.autoencoder import autoencoder_program
from diffae_jax.training.packing import SMALL
from diffae_jax.training.program import run_key


@pytest.fixture(scope="module")
def compiled(eight_devices, compiled_quickly):
    """Programs for 8 devices by sharding and number of slices."""
    from tests.tiny import get_config

    config = get_config()
    config.model.update(base_channels=64, num_res_blocks=2)
    programs = {}
    for sharding, slices in (("replicated", 1), ("fsdp", 1), ("fsdp", 2)):
        config.execution.sharding = sharding
        mesh = make_mesh(eight_devices.devices.ravel().tolist(), slices)
        program = autoencoder_program(config, mesh)
        programs[sharding, slices] = program, mesh, read_program(program.step.as_text())
    return config, programs


def size_of(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_data_parallelism_reduces_all_gradients_at_once(compiled):
    program, _, contents = compiled[1]["replicated", 1]
    (reduction,) = contents.collectives
    assert reduction.kind == "all-reduce"
    assert 0 <= reduction.bytes - size_of(program.packing.abstract) < 1000  # and some metrics


def test_fsdp_gathers_each_array_at_most_once_forward_and_once_backward(compiled):
    program, _, contents = compiled[1]["fsdp", 1]
    params = jax.tree_util.tree_leaves_with_path(program.abstract_state.params)
    split = {path: leaf for path, leaf in params if not leaf.sharding.is_fully_replicated}
    vectors = [path for path in split if path[-1].key.startswith(SMALL)]
    assert len(vectors) == 2
    assert len(split) > 4
    kinds = collections.Counter(collective.kind for collective in contents.collectives)
    assert kinds.keys() <= {"all-gather", "all-reduce", "reduce-scatter"}, "neither permutations nor all-to-all"
    assert kinds["all-gather"] <= 2 * len(split)
    gathered = sum(c.bytes for c in contents.collectives if c.kind == "all-gather")
    assert gathered <= 2 * size_of(list(split.values()))
    assert kinds["all-reduce"] + kinds["reduce-scatter"] <= len(split) + 1


def test_fsdp_divides_the_state(compiled):
    replicated, split = (compiled[1][sharding, 1][0] for sharding in ("replicated", "fsdp"))
    arguments = [program.step.memory_analysis().argument_size_in_bytes for program in (replicated, split)]
    assert arguments[1] < arguments[0] / 6  # an eighth, and what is too small to split
    assert split.bytes_per_device < replicated.bytes_per_device


def test_slices_gather_within_and_reduce_between(compiled):
    _, mesh, contents = compiled[1]["fsdp", 2]
    assert mesh.axis_names == ("slice", "data")
    members = collections.defaultdict(set)
    for collective in contents.collectives:
        members[collective.kind].add(tuple(sorted(group_of_first(collective.groups, 8))))
    assert members["all-gather"] == {(0, 1, 2, 3)}
    assert tuple(range(8)) in members["all-reduce"] | members["reduce-scatter"] or (0, 4) in members["all-reduce"]


def test_nothing_is_moved_to_the_host(compiled):
    assert all(contents.host_transfers == 0 for *_, contents in compiled[1].values())


def test_one_step_is_the_same_on_one_and_on_two_slices(compiled):
    config, programs = compiled
    results = []
    for slices in (1, 2):
        program, mesh, _ = programs["fsdp", slices]
        key = run_key(0, mesh)
        images = np.random.default_rng(0).integers(0, 256, (config.train.batch_size, *config.image_shape), np.uint8)
        _, metrics = program.step(program.init(key), {"image": shard_array(images, split_batch(mesh))}, key)
        results.append(jax.device_get(metrics))
    for name, value in results[0].items():
        np.testing.assert_allclose(results[1][name], value, rtol=1e-4, err_msg=name)
