"""Compares the numbers of an imported model with those of the official implementation.

The model is small and has random weights (parity/README.md). `make test-all` compares a larger one
too, if its files are in ../shared/parity/tiny32. `pytest tests/test_parity.py -s` prints the
figures.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffae_jax.convert import import_official
from diffae_jax.convert.names import autoencoder_names, to_our_layout
from diffae_jax.diffusion.inversion import Method, exact_inversion
from diffae_jax.diffusion.loss import diffusion_loss
from diffae_jax.diffusion.process import image_process, latent_process
from diffae_jax.diffusion.samplers import ddim_decode, ddim_grid
from diffae_jax.evaluation import metrics
from diffae_jax.models import abstract_model
from diffae_jax.models.build import builder, prior_builder
from diffae_jax.models.functional import flatten
from tests.environment import QUICKLY

MINI = Path(__file__).parent / "parity" / "mini16"
LARGER = Path(__file__).parents[2] / "shared" / "parity" / "tiny32"
FIXTURES = [MINI, *([pytest.param(LARGER, marks=pytest.mark.long)] if LARGER.is_dir() else [])]
SINGLE_PASS, LOOP = 1e-5, 1e-4  # relative
STEPS = 10


@pytest.fixture(scope="module", params=FIXTURES, ids=lambda path: path.name)
def fixture(request):
    return request.param


@pytest.fixture(scope="module")
def expected(fixture):
    """Inputs and outputs of the official implementation, with images channels-last."""
    with np.load(fixture / "expected.npz") as arrays:
        return {name: np.moveaxis(a, 1, -1) if a.ndim == 4 and "grad" not in name else a for name, a in arrays.items()}


@pytest.fixture(scope="module")
def model(fixture, one_device):
    return import_official(
        fixture / "autoenc_latent.ckpt",
        latents=fixture / "latent.pkl",
        classifier=fixture / "classifier.ckpt",
        mesh=one_device,
    )


@pytest.fixture(scope="module")
def networks(model):
    """Autoencoder and prior as modules."""
    build = {"autoencoder": builder(model.config, "float32"), "prior": prior_builder(model.config, "float32")}
    graphdefs = {name: abstract_model(make)[0] for name, make in build.items()}
    return nnx.merge(graphdefs["autoencoder"], model.params), nnx.merge(graphdefs["prior"], model.prior)


def difference(name, ours, theirs):
    error = float(np.linalg.norm(np.asarray(ours, np.float64) - theirs) / np.linalg.norm(theirs))
    print(f"{name}: {error:.1e}")
    return error


def test_single_passes(model, networks, expected):
    autoencoder, _ = networks
    z = expected["z_sem"]
    assert difference("z_sem", model.encode(expected["x0"]), z) <= SINGLE_PASS
    assert (
        difference("stylespace", model.network.unet.z_modulation(jnp.asarray(z)), expected["stylespace"]) <= SINGLE_PASS
    )
    eps = jax.jit(autoencoder, **QUICKLY)(expected["x_t"], expected["t"].astype(np.int32), z)
    assert difference("eps_pred", eps, expected["eps_pred"]) <= SINGLE_PASS


def test_steps_of_the_decoder_are_inverted_to_rounding(model, expected):
    method = Method(exact_inversion(tolerance=1e-7, max_calls=40), ("ddim",))
    report = model.invert_with_report(expected["x0"], expected["z_sem"], num_steps=2 * STEPS, method=method)
    assert report.residual.max() <= 2e-7
    decoded = model.decode(expected["z_sem"], report.x_T, num_steps=2 * STEPS)
    # the random networks amplify the rounding of a step by a factor of 2,000
    assert difference("decoded again", decoded, expected["x0"]) <= 1e-3


def test_loss_and_gradients(model, expected):
    graphdef, _ = abstract_model(builder(model.config, "float32"))
    x_0, t, eps = (jnp.asarray(expected[name]) for name in ("x0", "t", "eps"))

    @partial(jax.jit, **QUICKLY)
    def losses_and_grads(params):
        def mean_loss(params):
            network = nnx.merge(graphdef, params)
            z = network.encode(x_0)
            losses = diffusion_loss(image_process(model.config), lambda x_t, t: network(x_t, t, z), x_0, t, eps)
            return losses.mean(), losses

        grads, losses = jax.grad(mean_loss, has_aux=True)(params)
        return losses, grads

    losses, grads = losses_and_grads(model.params)
    assert difference("loss", losses, expected["loss"]) <= SINGLE_PASS
    grads = flatten(grads)
    names = autoencoder_names(model.params)
    compared = 0
    for ours, official in names.items():
        if f"grad/{official}" in expected:
            theirs = to_our_layout(expected[f"grad/{official}"], ours, grads[ours].shape)
            assert difference(f"grad/{official}", grads[ours], theirs) <= LOOP
            compared += 1
    assert compared == sum(name.startswith("grad/") for name in expected) > 0


def test_loops(model, networks, expected):
    autoencoder, _ = networks
    x_T, z = expected["x_T"], expected["z_sem"]
    grid = ddim_grid("linear", STEPS)
    np.testing.assert_array_equal(grid.t, expected["timesteps"])
    assert difference("decode", model.decode(z, x_T, STEPS), expected["decode"]) <= LOOP
    unclipped = jax.jit(
        lambda x: ddim_decode(autoencoder.noise_predictor(grid.t, jnp.asarray(z)), x, grid, clip=False), **QUICKLY
    )(x_T)
    assert difference("decode_unclipped", unclipped, expected["decode_unclipped"]) <= LOOP
    our_x_T = model.invert(expected["x0"], z, STEPS)
    assert difference("encode_x_T", our_x_T, expected["encode_x_T"]) <= LOOP
    roundtrip = model.decode(z, expected["encode_x_T"], STEPS)
    assert difference("roundtrip", roundtrip, expected["roundtrip"]) <= LOOP
    # A network of random weights amplifies a difference in x_T more than 20 times.
    assert difference("roundtrip from our x_T", model.decode(z, our_x_T, STEPS), expected["roundtrip"]) <= 3e-4


def test_latent_ddim(model, networks, expected):
    _, prior = networks
    z_t, t = jnp.asarray(expected["latent_in"]), jnp.asarray(expected["t"], jnp.int32)
    assert difference("latent_eps_pred", jax.jit(prior, **QUICKLY)(z_t, t), expected["latent_eps_pred"]) <= SINGLE_PASS
    loss = diffusion_loss(latent_process(model.config), prior, z_t, t, jnp.asarray(expected["latent_noise"]))
    assert difference("latent_loss", loss, expected["latent_loss"]) <= SINGLE_PASS
    grid = ddim_grid("constant", STEPS)
    sample = jax.jit(lambda z: ddim_decode(prior.noise_predictor(grid.t), z, grid, clip=False), **QUICKLY)(z_t)
    assert difference("latent_sample", sample, expected["latent_sample"]) <= LOOP
    z = model.statistics.denormalize(np.asarray(sample))
    assert difference("unconditional", model.decode(z, expected["x_T"], STEPS), expected["unconditional"]) <= LOOP


def test_statistics_probes_and_edits(model, expected):
    assert difference("conds_mean", model.statistics.mean, expected["conds_mean"]) == 0
    assert difference("conds_std", model.statistics.std, expected["conds_std"]) == 0
    z = expected["z_sem"]
    logits = np.stack([probe.logits(model.statistics.normalize(z)) for probe in model.probes.values()], axis=-1)
    assert difference("classifier_logits", logits, expected["classifier_logits"]) <= SINGLE_PASS
    probabilities = np.stack([model.predict(z, name) for name in model.probes], axis=-1)
    expected_probabilities = 1 / (1 + np.exp(-expected["classifier_logits"].astype(np.float64)))
    assert difference("probabilities", probabilities, expected_probabilities) <= SINGLE_PASS
    moved = model.move(z, "Bags_Under_Eyes", 0.3)
    assert difference("manipulated_z_cls3_0.3", moved, expected["manipulated_z_cls3_0.3"]) <= SINGLE_PASS


def test_paths_and_metrics(model, expected):
    z, x_T = model.path(expected["z_sem"][:2], expected["x_T"][:2], 5)
    assert difference("slerp_x_T", x_T, expected["slerp_x_T"]) <= SINGLE_PASS
    assert difference("lerp_z", z, expected["lerp_z"]) <= SINGLE_PASS
    for name in ("ssim", "mse", "psnr"):
        value = getattr(metrics, name)(expected["x0"], expected["decode"])
        assert difference(name, value, expected[name]) <= SINGLE_PASS


def test_baseline(fixture, expected, one_device):
    baseline = import_official(fixture / "ddpm.ckpt", mesh=one_device)
    assert baseline.config.model.z_dim is None
    network = nnx.merge(abstract_model(builder(baseline.config, "float32"))[0], baseline.params)
    eps = jax.jit(network, **QUICKLY)(expected["x_t"], expected["t"].astype(np.int32))
    assert difference("ddim_eps_pred", eps, expected["ddim_eps_pred"]) <= SINGLE_PASS
    assert difference("ddim_decode", baseline.decode(None, expected["x_T"], STEPS), expected["ddim_decode"]) <= LOOP
    x_T = baseline.invert(expected["x0"], num_steps=STEPS)
    assert difference("ddim_encode_x_T", x_T, expected["ddim_encode_x_T"]) <= LOOP
