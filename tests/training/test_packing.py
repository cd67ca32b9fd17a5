"""Small weights in few vectors, and checkpoints of versions that did not pack them."""

import contextlib
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.sharding import replicated, split_batch, state_shardings
from diffae_jax.training.checkpoint import Checkpoints, load_ema
from diffae_jax.training.loop import begin
from diffae_jax.training.packing import SMALL, Packing
from diffae_jax.training.program import compile_program
from diffae_jax.training.state import TrainState, make_optimizer

SHAPES = {
    "encoder": {"norm": {"scale": (5,), "bias": (5,)}, "conv": {0: {"kernel": (3, 3, 100, 100)}}},
    "unet": {"linear": (2, 3), "small": (300, 300)},  # a user may give a large weight this name
    "whole": {"kernel": (300, 300)},  # a part without small weights
    "scale": (),  # a part that is a single number
}


def weights(seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32), SHAPES, is_leaf=lambda node: isinstance(node, tuple)
    )


def abstract(tree):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), np.float32), tree)


def vector_of(part):
    (vector,) = (leaf for name, leaf in part.items() if name.startswith(SMALL))
    return vector


PACKING = Packing(abstract(weights()))


def test_unpack_inverts_pack_on_host_and_devices():
    params = weights()
    packed = jax.jit(PACKING.pack)(params)
    assert {name: leaf.shape for name, leaf in packed["encoder"].items() if not name.startswith(SMALL)} == {
        "conv.0.kernel": (3, 3, 100, 100)
    }
    assert packed["unet"]["small"].shape == (300, 300)
    assert vector_of(packed["encoder"]).shape == vector_of(packed["unet"]).shape == (1024,)
    assert packed["whole"].keys() == {"kernel"}
    for back in (jax.jit(PACKING.unpack)(packed), PACKING.unpack(jax.device_get(packed))):
        assert jax.tree.structure(back) == jax.tree.structure(params)
        jax.tree.map(np.testing.assert_array_equal, back, params)


def test_gradients_of_packed_weights_are_packed_gradients():
    def loss(params):
        return sum(jnp.sum(jnp.sin(leaf) * (1 + jnp.square(leaf))) for leaf in jax.tree.leaves(params))

    params = weights()
    of_packed = jax.grad(lambda packed: loss(PACKING.unpack(packed)))(PACKING.pack(params))
    expected = PACKING.pack(jax.grad(loss)(params))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), of_packed, expected)


def test_optimizer_state_is_packed_too_and_adam_does_the_same():
    optimizer = make_optimizer(0.1, 0.01)
    params, grads = weights(), weights(1)
    state = TrainState.create(params, optimizer)
    packed = PACKING.pack_state(state)
    assert len(jax.tree.leaves(packed)) == 4 + 4 * 6  # step, Adam's count, two of the loss scale; four sets of weights
    updates, _ = optimizer.update(grads, state.opt_state, params)
    packed_updates, _ = optimizer.update(PACKING.pack(grads), packed.opt_state, packed.params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), PACKING.unpack(packed_updates), updates)


def test_fsdp_splits_a_large_vector_of_small_weights(eight_devices):
    many = Packing({"unet": {i: jax.ShapeDtypeStruct((1000,), np.float32) for i in range(70)}})
    packed = jax.eval_shape(many.pack, many.abstract)
    assert vector_of(packed["unet"]).shape == (71_680,)
    shardings = state_shardings(packed, eight_devices, "fsdp")
    assert vector_of(shardings["unet"]).spec == PartitionSpec("data")


def test_each_small_array_starts_at_an_aligned_address():
    packed = PACKING.pack(jax.tree.map(np.ones_like, weights()))
    (starts,) = np.nonzero(np.diff(vector_of(packed["encoder"]), prepend=0) > 0)
    np.testing.assert_array_equal(starts, [0, 64])


@pytest.fixture(scope="module")
def program(one_device):
    def loss_fn(params, batch, keys):
        return batch * sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params)), {}

    return compile_program(
        lambda key: weights(),
        loss_fn,
        jax.ShapeDtypeStruct((2,), np.float32, sharding=split_batch(one_device)),
        mesh=one_device,
        optimizer=make_optimizer(0.1),
        precision="float32",
        ema_decay=0.9,
        max_grad_norm=1.0,
    )


@pytest.mark.parametrize("was_packed", [True, False])
def test_state_is_restored_from_both_layouts(tmp_path, program, one_device, was_packed):
    optimizer = make_optimizer(0.1)
    state = TrainState.create(jax.device_put(weights(), replicated(one_device)), optimizer)
    state = dataclasses.replace(state, ema=jax.device_put(weights(2), replicated(one_device)))
    packed = PACKING.pack_state(state)
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(5, packed if was_packed else state, {"count": 3, "sums": {}, "num_spikes": 0})
        checkpoints.wait()
        restored, window = begin(program, checkpoints, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, restored, packed)
    assert window.count == 3
    located = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated(one_device)), PACKING.abstract
    )
    ema, step, damages = load_ema(tmp_path, located)
    jax.tree.map(np.testing.assert_array_equal, ema, weights(2))
    assert (step, damages) == (5, {})
    located["unet"]["linear"] = jax.ShapeDtypeStruct((3, 2), np.float32, sharding=replicated(one_device))
    with pytest.raises(UserError, match=f"config.json, for example in unet{'' if was_packed else '.linear'}. Restore"):
        load_ema(tmp_path, located)  # as many numbers, another network
