"""Additional loss terms: what they change, and that the split of a batch has no effect."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffae_jax.models.functional import digest
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.sharding import on_host, shard_array, split_batch
from diffae_jax.stages.autoencoder import autoencoder_program
from diffae_jax.stages.chain import run_stages
from diffae_jax.stages.loss_terms import check_terms
from diffae_jax.training.metrics import read_metrics
from diffae_jax.training.program import compile_program, run_key
from diffae_jax.training.state import make_optimizer
from tests.messages import assert_is_one_sentence
from tests.processes import Forked
from tests.runs import finish
from tests.tiny import get_config

# The contract of a loss: (loss [N], metrics).

SPREADS = [(1, 1), (8, 1), (8, 2), (1, 4)]  # devices, microbatches


def loss_with_metrics(params, batch, keys):
    loss = jnp.square(batch @ params["part"]["w"] - 1)
    return loss, {"error": jnp.abs(batch[:, 0]), "half": 0.5, "twos": jnp.full(len(keys), 2, jnp.int32)}


@pytest.mark.parametrize(("num_devices", "num_microbatches"), SPREADS)
def test_metrics_are_averaged_over_batch_devices_and_microbatches(request, num_devices, num_microbatches):
    mesh = request.getfixturevalue({1: "one_device", 8: "eight_devices"}[num_devices])
    x = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    program = compile_program(
        lambda key: {"part": {"w": jnp.ones(3)}},
        loss_with_metrics,
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split_batch(mesh)),
        mesh=mesh,
        optimizer=make_optimizer(0.1),
        precision="float32",
        ema_decay=0.9,
        max_grad_norm=1.0,
        num_microbatches=num_microbatches,
    )
    key = run_key(0, mesh)
    _, metrics = program.step(program.init(key), shard_array(x, split_batch(mesh)), key)
    x = x.astype(np.float64)
    np.testing.assert_allclose(metrics["loss"], np.square(x.sum(1) - 1).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["error"], np.abs(x[:, 0]).mean(), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["grad_norm"], np.linalg.norm((2 * (x.sum(1) - 1)[:, None] * x).mean(0)), rtol=1e-5
    )
    assert (float(metrics["half"]), float(metrics["twos"])) == (0.5, 2)
    assert all(metric.dtype == jnp.float32 for metric in metrics.values())


# Terms of the autoencoder.


def z_norm(z, batch, keys):
    """A penalty: the mean square of z, of each sample."""
    assert batch["image"].shape == (len(z), 8, 8, 1)
    return 0.1 * jnp.square(z).mean(-1)


def noisy(z, batch, keys):
    """One that draws: how far z is from noise."""
    return jnp.abs(z - jax.vmap(lambda key: jax.random.normal(key, z.shape[1:]))(keys)).mean(-1)


def nothing(z, batch, keys):
    return 0.0 * jnp.square(z).mean(-1)


def contrast(z, batch, keys):
    """One number for all: the mean similarity of different z."""
    directions = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
    return (directions @ directions.T).mean()


TERMS = {"z_norm": z_norm, "noisy": noisy}


def train(mesh, terms, num_steps=2, **execution):
    config = get_config()
    config.execution.update(execution)
    program = autoencoder_program(config, mesh, loss_terms=terms)
    init_key, step_key = jax.random.split(run_key(0, mesh))
    state = first = program.init(init_key)
    first = on_host(first.params)
    rng, rows = np.random.default_rng(0), []
    for _ in range(num_steps):
        images = rng.integers(0, 256, (config.train.batch_size, *config.image_shape), dtype=np.uint8)
        state, metrics = program.step(state, {"image": shard_array(images, split_batch(mesh))}, step_key)
        rows.append({name: float(value) for name, value in metrics.items()})
    return first, on_host(state.params), rows


@pytest.fixture(scope="module")
def without(one_device):
    return train(one_device, {})


@pytest.fixture(scope="module")
def with_terms(one_device):
    return train(one_device, TERMS)


def test_term_is_logged_and_trains_the_encoder_and_the_loss_stays_that_of_the_objective(without, with_terms):
    (_, _, plain), (_, _, rows) = without, with_terms
    assert rows[0]["loss"] == plain[0]["loss"]
    assert rows[0].keys() == plain[0].keys() | {"z_norm", "noisy"}
    # the UNet's output starts at zero, so that only a term moves the encoder in the first step
    assert plain[0]["grad_norm/encoder"] == 0
    assert rows[0]["grad_norm/encoder"] > 0
    assert rows[1]["z_norm"] != rows[0]["z_norm"]


@pytest.mark.long  # that terms leave the loss alone is also shown by the test above
def test_term_of_zero_changes_no_byte_of_the_weights(without, one_device):
    _, params, rows = train(one_device, {"nothing": nothing})
    assert digest(params) == digest(without[1])
    assert rows == [{**row, "nothing": 0.0} for row in without[2]]


@pytest.mark.parametrize(("num_devices", "num_microbatches"), [pytest.param(8, 1, marks=pytest.mark.long), (1, 4)])
def test_terms_are_the_same_however_a_batch_is_spread(request, with_terms, num_devices, num_microbatches):
    mesh = request.getfixturevalue({1: "one_device", 8: "eight_devices"}[num_devices])
    _, params, rows = train(mesh, {"noisy": noisy, "z_norm": z_norm}, num_microbatches=num_microbatches)
    for ours, theirs in zip(rows, with_terms[2], strict=True):
        assert ours.keys() == theirs.keys()
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-4)
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(with_terms[1]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.05 * get_config().train.learning_rate)


@pytest.mark.long  # other terms see it too
def test_term_that_compares_samples_sees_the_batch_of_all_devices(one_device, eight_devices):
    alone, together = (train(mesh, {"contrast": contrast}, 1)[2][0] for mesh in (one_device, eight_devices))
    np.testing.assert_allclose(together["contrast"], alone["contrast"], rtol=1e-5)


@pytest.mark.parametrize("shape", [(16, 8), (8,), (1,)], ids=str)
def test_term_of_another_shape_is_refused(one_device, shape):
    with pytest.raises(UserError, match=r"term odd has shape .*it must be \(16,\), or one number") as refusal:
        autoencoder_program(get_config(), one_device, loss_terms={"odd": lambda z, batch, keys: jnp.zeros(shape)})
    assert_is_one_sentence(refusal.value)


@pytest.mark.parametrize("name", ["loss", "grad_norm", "finite", "loss_scale", "step", "stage", "images", "z/a", ""])
def test_term_named_as_another_metric_is_refused(tiny_config, name):
    with pytest.raises(UserError, match=r"already a metric\. Rename it") as refusal:
        check_terms(tiny_config, {name: z_norm})
    assert_is_one_sentence(refusal.value)


def test_baseline_has_no_z_for_a_term(tiny_config):
    tiny_config.model.z_dim = None
    with pytest.raises(UserError, match="baseline has no z"):
        check_terms(tiny_config, {"z_norm": z_norm})


def run(folder, num_steps, terms, named=()):
    config = get_config()
    config.train.num_images, config.train.loss_terms = num_steps * config.train.batch_size, named
    config.report.update(log_every=16, save_every=32, health_every=10**9, grid_every=10**9)
    run_stages(config, folder, ["autoencoder"], loss_terms=terms)


def run_from_arguments():
    """For a process of one device."""
    run(sys.argv[1], int(sys.argv[2]), TERMS)


def test_run_writes_terms_and_resumes_only_with_the_same(tmp_path):
    def train(num_steps):
        finish(Forked("tests.stages.test_loss_terms:run_from_arguments", [str(tmp_path), num_steps]))
        return [row["step"] for row in read_metrics(tmp_path) if "z_norm" in row]

    assert train(2) == [1, 2]
    assert json.loads((tmp_path / "config.json").read_text())["train"]["loss_terms"] == ["noisy", "z_norm"]
    with pytest.raises(UserError, match=r"train\.loss_terms: \['noisy', 'z_norm'\] -> \[\]"):
        run(tmp_path, 4, {})
    with pytest.raises(UserError, match="loss_terms names noisy, z_norm, but a config cannot hold the code"):
        run(tmp_path, 4, {}, ("noisy", "z_norm"))
    assert train(4) == [1, 2, 3, 4]
    assert (tmp_path / "autoencoder" / "checkpoints" / "4").exists()
