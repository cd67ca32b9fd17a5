"""Samplers, grids and inversions of `DiffAE`: what goes together, and what noise depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffae_jax.diffusion.samplers import SAMPLERS, stochastic_ddim
from diffae_jax.inference import programs
from diffae_jax.inference.methods import as_round_trip, as_sampler
from diffae_jax.runtime.errors import UserError
from tests.random_models import random_model

IMAGES = np.random.default_rng(1).uniform(-1, 1, (3, 8, 8, 1)).astype(np.float32)
STEPS = 3


@pytest.fixture(scope="module")
def model(one_device):
    return random_model(one_device)


def test_inversion_and_decoding_share_the_grid_and_a_fitting_sampler():
    for inversion, sampler, grid in (
        ("ddim", "ddim", "even"),
        ("exact", "ddim", "even"),
        ("gaussian", "heun", "quadratic"),
    ):
        inverter, decoder = as_round_trip(inversion)
        assert inverter.grid == decoder.grid == grid
        assert decoder == SAMPLERS[sampler]
    inverter, decoder = as_round_trip("exact", grid="log_snr")
    assert inverter.grid == decoder.grid == "log_snr"
    inverter, decoder = as_round_trip("ddim", "dpmpp_2m")
    assert inverter.grid == decoder.grid == "log_snr", "the grid of the sampler"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: m.reconstruct(IMAGES, inversion="exact", sampler="heun"),
            "heun does not decode .* sampler ddim",
        ),
        (
            lambda m: m.edit(IMAGES, "hair/color é", inversion="gaussian", sampler="ddim"),
            "sampler heun or dpmpp_2m",
        ),
        (lambda m: m.reconstruct(IMAGES, sampler="stochastic_ddim"), "stochastic_ddim adds random noise"),
        (lambda m: m.interpolate(IMAGES[0], IMAGES[1], sampler=stochastic_ddim(0.5)), "This sampler adds random noise"),
        (
            lambda m: m.decode(None, IMAGES, sampler="dpmpp_2m", grid="even"),
            "dpmpp_2m on the grid even .* log_snr",
        ),
        (
            lambda m: m.sample(2, sampler="ddim", grid="linear"),
            "no grid linear. Choose one of: even, quad",
        ),
        (lambda m: m.sample(2, latent_sampler="euler"), "no sampler euler"),
        (
            lambda m: m.invert(IMAGES, method="null-text"),
            "no inversion null-text. Choose one of: ddim",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_the_work(model, call, message):
    with pytest.raises(UserError, match=message):
        call(model)


def test_exact_inversion_is_what_reconstruct_uses_and_reports_what_it_took(model, caplog):
    """That it is exact is measured in tests/diffusion: random weights need not have a solution."""
    z = model.encode(IMAGES)
    with caplog.at_level("INFO"):
        report = model.invert_with_report(IMAGES, z, STEPS, method="exact")
    assert (report.num_calls >= STEPS).all()
    assert (report.num_calls <= 10 * STEPS).all()
    assert (report.residual >= 0).all()
    again = model.reconstruct(IMAGES, STEPS, inversion="exact")
    np.testing.assert_allclose(again, model.decode(z, report.x_T, STEPS), atol=1e-4)
    assert f"at most {report.num_calls.max()}" in caplog.text


def test_a_stochastic_sampler_draws_by_seed_and_index_alone(model):
    settings = dict(num_steps=STEPS, num_latent_steps=2, sampler="stochastic_ddim", latent_sampler="stochastic_ddim")
    images = model.sample(4, 7, **settings)
    np.testing.assert_allclose(model.sample(2, 7, first=2, **settings), images[2:], atol=1e-5)
    assert np.abs(model.sample(4, 8, **settings) - images).max() > 0.01
    z, settings = model.encode(IMAGES), dict(sampler="stochastic_ddim")
    x_T = model.noise(np.arange(3), 7)
    decoded = model.decode(z, num_steps=STEPS, seed=7, **settings)
    np.testing.assert_allclose(model.decode(z, x_T, STEPS, 7, **settings), decoded, atol=1e-5)
    np.testing.assert_allclose(model.decode(z[2:], x_T[2:], STEPS, 7, first=2, **settings), decoded[2:], atol=1e-5)
    np.testing.assert_allclose(model.progress(z, x_T, STEPS, 7, **settings)[:, -1], decoded, atol=1e-5)
    jitted = jax.jit(lambda seed: model.decode(z, x_T, STEPS, seed, **settings))(7)
    np.testing.assert_allclose(jitted, decoded, atol=1e-4)
    before = programs.decode._cache_size()
    model.decode(z, x_T, STEPS, 8, **settings)
    assert programs.decode._cache_size() == before, "another seed needs no compilation"


def test_conditional_samples_are_a_subset_of_samples_with_every_sampler(model):
    samplers = dict(sampler="stochastic_ddim", latent_sampler="dpmpp_2m")
    probe = "hair/color é"
    _, indices = model.sample_latents(2, probe, True, 3, 2, sampler="dpmpp_2m")
    found = model.sample_class(2, probe, True, 3, STEPS, 2, **samplers)
    for image, index in zip(found, indices, strict=True):
        np.testing.assert_allclose(model.sample(1, 3, STEPS, 2, first=int(index), **samplers)[0], image, atol=1e-4)


def test_gaussian_inversion_depends_on_seed_and_index(model):
    settings = dict(method="gaussian", num_steps=STEPS)
    z = model.encode(IMAGES)
    x_T = model.invert(IMAGES, z, **settings)
    np.testing.assert_allclose(model.invert(IMAGES[1:], z[1:], first=1, **settings), x_T[1:], atol=1e-5)
    assert np.abs(model.invert(IMAGES, z, seed=1, **settings) - x_T).max() > 1e-3
    reconstructed = model.reconstruct(IMAGES, STEPS, inversion="gaussian")
    np.testing.assert_allclose(model.decode(z, x_T, STEPS, sampler="heun"), reconstructed, atol=1e-5)


def test_a_sampler_with_another_grid_is_another_program_and_an_equal_one_the_same():
    assert hash(as_sampler("heun", "even")) == hash(as_sampler("heun", "even"))
    assert as_sampler("heun", "even") == as_sampler("heun", "even") != as_sampler("heun")
    assert as_sampler("heun", "quadratic") == SAMPLERS["heun"]
    assert jnp.ndim(as_sampler("ddim").rows(np.linspace(1, 0.1, 1000), 2).t) == 1
