"""The same network in PyTorch: it computes what ours computes, and a command times both."""

import json
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.environment import ROOT

torch = pytest.importorskip("torch", reason='PyTorch is missing: pip install --editable ".[bench]"')

from benchmarks.against_torch import arguments_of  # noqa: E402
from benchmarks.measure import Measurement  # noqa: E402
from benchmarks.torch_agreement import agree, check_comparable, check_gradients, random_weights  # noqa: E402
from benchmarks.torch_networks import DiffusionAutoencoder, in_their_layout, load  # noqa: E402
from benchmarks.torch_programs import (  # noqa: E402
    Inputs,
    Variant,
    loss_of,
    on_device,
    process_of,
    program,
    train_step,
    training_state,
)
from diffae_jax.diffusion.loss import draw_t_and_eps  # noqa: E402
from diffae_jax.plan.compiling import compile_program  # noqa: E402
from diffae_jax.runtime.errors import UserError  # noqa: E402
from diffae_jax.stages.autoencoder import autoencoder_program  # noqa: E402
from diffae_jax.training.step import sample_keys  # noqa: E402

BATCH = 4


@pytest.fixture(scope="module", params=["eps", "v"])
def config(request):
    """A small network with all that the paper's networks have: levels, attention, colors."""
    from tests.tiny import get_config

    config = get_config()
    config.image_shape = (8, 8, 3)
    config.model.update(channel_mults=(1, 2), encoder_channel_mults=(1, 2), attention_resolutions=(4,), num_heads=2)
    config.model.dropout = 0.0
    config.train.update(batch_size=BATCH, precision="float32", parameterization=request.param)
    config.evaluation.num_code_steps = 5
    return config


@pytest.fixture(scope="module")
def params(config):
    return random_weights(config)


@pytest.mark.parametrize("variant", ["eager", "channels-last"])
@pytest.mark.parametrize("what", ["encode", "decode"])
def test_outputs_agree(config, params, one_device, what, variant):
    inputs = Inputs.random(config, BATCH)
    _, named = arguments_of(what, config, params, inputs)
    ours = compile_program(config, one_device, what, BATCH)(**named)
    theirs = program(what, config, params, inputs, Variant(variant), "cpu")()
    assert np.ptp(ours) > 0.1, "not constant"
    agree(what, ours, theirs, 5e-5)


def test_gradients_agree(config, params, capsys):
    check_gradients(config, params)
    count = len(jax.tree.leaves(params))
    assert f"the gradients of {count} weights agree" in capsys.readouterr().err


def test_a_difference_is_reported(config, params):
    other = in_their_layout(params)["unet.conv_in.weight"]
    with pytest.raises(UserError, match=r"weight differs by \d.*more than 1e-03"):
        agree("weight", other, torch.from_numpy(other * 1.01), 1e-3)
    with pytest.raises(UserError, match="differs by nan"):
        agree("weight", other, torch.from_numpy(other * np.nan), 1e-3)


def test_a_training_step_changes_the_weights_as_ours_does(config, params, one_device):
    config = config.copy_and_resolve_references()
    config.train.update(max_grad_norm=0.1, ema_decay=0.5)  # which clips, and changes the average
    inputs, key = Inputs.random(config, BATCH), jax.random.key(3)
    ours = autoencoder_program(config, one_device)
    (state, batch, _), _ = arguments_of("train", config, params, inputs)
    state, metrics = ours.step(*jax.device_put((state, batch, key), ours.step.input_shardings[0]))
    assert metrics["grad_norm"] > config.train.max_grad_norm

    keys = jax.vmap(jax.random.split, out_axes=1)(sample_keys(key, 0, BATCH))[0]
    t, eps = (np.array(drawn) for drawn in draw_t_and_eps(keys, jnp.asarray(inputs.x_T)))
    network = DiffusionAutoencoder(config)
    load(network, params)
    average, optimizer = training_state(config, network)
    loss_fn = partial(loss_of, network, *process_of(config, "cpu"))
    images, eps = on_device(inputs.images, "cpu"), on_device(eps, "cpu")
    loss = train_step(
        network, average, optimizer, loss_fn, config.train.max_grad_norm, images, torch.from_numpy(t), eps
    )
    agree("loss", metrics["loss"], loss, 1e-5)

    before, after, ema, mean_gradients = (
        in_their_layout(packed if packed is params else ours.packing.unpack(packed))
        for packed in (params, state.params, state.ema, state.opt_state[0].mu)
    )
    largest = max(np.linalg.norm(array) for array in mean_gradients.values())
    for name, parameter in network.named_parameters():
        mean_gradient = optimizer.state[parameter]["exp_avg"]
        agree(f"mean gradient of {name}", mean_gradients[name], mean_gradient, 1e-3, 1e-3 * largest)
        # the first change is the learning rate; rounding decides its sign without a gradient
        has_gradient = np.abs(mean_gradients[name]) > 1e-5 * largest
        for arrays, theirs in ((after, parameter), (ema, average.module.get_parameter(name))):
            change, their_change = arrays[name] - before[name], theirs.detach().numpy() - before[name]
            np.testing.assert_allclose(change[has_gradient], their_change[has_gradient], rtol=0.01, err_msg=name)


def test_what_pytorch_cannot_do_is_refused(config):
    config = config.copy_and_resolve_references()
    check_comparable(config)
    config.execution.remat = True
    with pytest.raises(UserError, match=r"execution.remat=False, but tiny has True: set --config.execution.remat=Fa"):
        check_comparable(config)
    config.execution.remat = False
    config.image_shape = (8, 8, 8, 1)
    with pytest.raises(UserError, match=r"two spatial axes, but tiny has z_dim 8 and image_shape \(8, 8, 8, 1\)"):
        check_comparable(config)


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks.against_torch", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants", "fast"], "fast is neither eager nor some of channels-last, bfloat16, compiled joined by +"),
        (["--steps=0"], "Error: evaluation.num_code_steps"),
    ],
    ids=["variant", "steps"],
)
def test_a_mistake_is_reported_at_once(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_the_command_times_the_digits(tmp_path):
    file = tmp_path / "figures.json"
    done = run("--config=digits", "--seconds=0.1", "--steps=2", "--variants", "eager", "bfloat16", f"--json={file}")
    assert done.returncode == 0, done.stderr
    rows = [Measurement.of(figures) for figures in json.loads(file.read_text())]
    assert done.stdout.count("\n| digits |") == len(rows) == 12, "two libraries, two precisions, three programs"
    for row in rows:
        is_ours = row.software.startswith("JAX")
        assert is_ours == (not row.ratios)
        assert is_ours or len(row.ratios) == len(row.seconds) >= 3
