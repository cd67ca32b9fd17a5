"""What is said about a step that is not finite: the images, and the layer or the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffae_jax.diffusion.process import image_process, latent_process
from diffae_jax.models import abstract_model
from diffae_jax.models.build import builder, prior_builder
from diffae_jax.models.functional import flatten, unflatten
from diffae_jax.stages.autoencoder import autoencoder_loss
from diffae_jax.stages.prior import prior_loss
from diffae_jax.training.diagnosis import explain, first_bad_layer
from diffae_jax.training.step import sample_keys
from tests.random_models import initial

NAMES = ["a.png", "b.png", "c.png", "d.png"]
HUGE = 3e38  # a finite weight whose products are not


def parts_of(remat):
    """(loss function, weights, batch, keys) of an autoencoder with attention."""
    from tests.tiny import get_config

    config = get_config()
    config.model.update(attention_resolutions=(8,))
    config.execution.remat = remat
    graphdef, _ = abstract_model(builder(config, "float32"))
    params = initial(builder(config, "float32"))
    # layers that start at zero would hide what comes before them
    leaves, tree = jax.tree.flatten(params)
    params = jax.tree.unflatten(tree, [leaf + 0.01 for leaf in leaves])
    images = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 1)).astype(np.float32)
    keys = sample_keys(jax.random.key(0), 3, 4)
    return autoencoder_loss(graphdef, image_process(config)), params, {"image": jnp.asarray(images)}, keys


@pytest.fixture(scope="module")
def autoencoder():
    return parts_of(remat=False)


def explained(loss_fn, params, batch, keys, noun="image"):
    return explain(params, batch, keys, NAMES, noun, loss_fn=loss_fn, num_microbatches=2)


@pytest.mark.long
def test_nothing_is_said_of_a_step_that_is_finite(autoencoder):
    assert explained(*autoencoder) == ""
    loss_fn, *inputs = autoencoder
    assert first_bad_layer(loss_fn, *inputs) is None


@pytest.mark.parametrize(
    ("layer", "remat"),
    [
        ("encoder.blocks.1.conv1", True),
        ("encoder.out", False),
        pytest.param("unet.middle.0.attention.qkv", True, marks=pytest.mark.long),
        pytest.param("unet.up.1.norm2", False, marks=pytest.mark.long),
    ],
)
def test_first_layer_with_an_output_that_is_not_finite_is_named(layer, remat):
    loss_fn, params, batch, keys = parts_of(remat)
    flat = flatten(params)
    name = next(name for name in (f"{layer}.kernel", f"{layer}.scale") if name in flat)
    changed = unflatten(flat | {name: jnp.full_like(flat[name], HUGE)})
    said = explained(loss_fn, changed, batch, keys)
    assert said == (
        "The loss is not finite for 4 of 4 images (a.png, b.png, c.png and 1 more); the first layer whose output is "
        f"not finite is {layer}."
    )


def test_image_that_is_not_finite_is_named(autoencoder):
    loss_fn, params, batch, keys = autoencoder
    image = batch["image"].at[2, 0, 0, 0].set(jnp.nan)
    said = explained(loss_fn, params, {"image": image}, keys)
    assert said == "The loss is not finite for 1 of 4 images (c.png), because the image itself is not finite."


def test_weights_that_are_not_finite_are_named(autoencoder):
    loss_fn, params, batch, keys = autoencoder
    flat = flatten(params)
    flat["unet.conv_in.bias"] = flat["unet.conv_in.bias"].at[0].set(jnp.inf)
    said = explained(loss_fn, unflatten(flat), batch, keys)
    assert said == "1 weight array is not finite (unet.conv_in.bias)."


def test_gradient_that_is_not_finite_is_named_if_the_loss_is_finite():
    def loss_fn(params, batch, keys):
        return jnp.sqrt(params["part"]["w"] * 0) + batch["x"], {}

    keys, params = sample_keys(jax.random.key(0), 3, 4), {"part": {"w": jnp.float32(1)}}
    said = explained(loss_fn, params, {"x": jnp.ones(4)}, keys)
    assert said == "The loss is finite, but not the gradient of part.w."


def test_layer_of_the_prior_is_named(tiny_config):
    graphdef, _ = abstract_model(prior_builder(tiny_config, "float32"))
    params = initial(prior_builder(tiny_config, "float32"))
    flat = flatten(params)
    flat["layers.1.linear.kernel"] = jnp.full_like(flat["layers.1.linear.kernel"], HUGE)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8)), jnp.float32)
    loss_fn = prior_loss(graphdef, latent_process(tiny_config))
    said = explained(loss_fn, unflatten(flat), z, sample_keys(jax.random.key(0), 3, 4), "latent")
    assert said.startswith("The loss is not finite for 4 of 4 latents (a.png, b.png, c.png and 1 more);")
    assert said.endswith(" is layers.1.linear.")
