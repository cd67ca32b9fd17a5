"""Counterfactuals against closed forms, and against Adam in NumPy with finite differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffae_jax.data.latents import LatentStatistics
from diffae_jax.diffusion.process import image_process
from diffae_jax.diffusion.samplers import DDIM
from diffae_jax.inference import batching, counterfactual, programs
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.sharding import make_mesh
from tests.jaxprs import equations
from tests.messages import assert_is_one_sentence
from tests.random_models import random_model

IMAGES = np.random.default_rng(1).uniform(-1, 1, (4, 8, 8, 1)).astype(np.float32)
WEIGHTS = np.random.default_rng(2).normal(size=(64, 3)).astype(np.float32)
QUICK = dict(num_steps=2, steps=20)
BOTH = dict(on="z and x_T", **QUICK)


def brightness(images):
    return images.mean((1, 2, 3))


def logits(images):
    return images.reshape(len(images), -1) @ WEIGHTS


def probability(images):
    return jax.nn.sigmoid(200 * (images.mean((1, 2, 3)) - 0.2))


def with_sensitive_z(mesh, **settings):
    """A model whose images change visibly within a standard deviation of its z."""
    model = random_model(mesh, **settings)
    model.statistics = LatentStatistics(model.statistics.mean, 30 * model.statistics.std)
    return model


@pytest.fixture(scope="module")
def model(one_device):
    return with_sensitive_z(one_device)


@pytest.fixture(scope="module")
def brighter(model):
    """Two images become brighter and two darker, each to its own target."""
    target = model_brightness(model) + np.array([0.3, -0.3, 0.2, -0.2], np.float32)
    return model.counterfactual(IMAGES, brightness, target, penalty=0.3, **BOTH), target


def model_brightness(model):
    return model.reconstruct(IMAGES, 2).astype(np.float64).mean((1, 2, 3)).astype(np.float32)


# --- what comes out ------------------------------------------------------------------------------


def test_brightness_reaches_the_target_from_both_sides_and_the_result_is_consistent(model, brighter):
    found, target = brighter
    assert found.reached.all()
    after = found.images.astype(np.float64).mean((1, 2, 3))
    np.testing.assert_allclose(found.f_after, after, atol=1e-5)
    assert (np.sign(target - found.f_before) * (after - target) >= -1e-5).all()
    assert np.abs(after - target).max() < 0.01, "bisection stops where the target is reached"
    np.testing.assert_allclose(found.reconstruction, model.reconstruct(IMAGES, 2), atol=1e-5)
    np.testing.assert_allclose(found.f_before, model_brightness(model), atol=1e-5)
    np.testing.assert_allclose(model.decode(found.z, found.x_T, 2), found.images, atol=1e-4)


def test_distance_is_in_the_unit_of_the_strength_of_an_edit(model, brighter):
    found, _ = brighter
    z, x_T = model.encode(IMAGES), model.invert(IMAGES, num_steps=2)
    in_z = np.square((found.z - z).astype(np.float64) / model.statistics.std).mean(1)
    in_x_T = np.square((found.x_T - x_T).astype(np.float64)).mean((1, 2, 3))
    np.testing.assert_allclose(found.distance, np.sqrt(in_z + in_x_T), rtol=1e-3)
    moved = model.move(z, "hair/color é", 0.7)
    np.testing.assert_allclose(np.sqrt(np.square((moved - z) / model.statistics.std).mean(1)), 0.7, rtol=1e-3)


def numpy_search(model, target, steps, step_size, penalty):
    """Adam on normalized z in float64, by central differences, for one image after the other.

    Returns the normalized change at each step and f there.
    """
    z, x_T = model.encode(IMAGES), model.invert(IMAGES, num_steps=2)
    changes, values = [], []
    for i in range(len(IMAGES)):

        def f(moves, i=i):
            codes = (z[i] + moves * model.statistics.std).astype(np.float32)
            decoded = model.decode(codes, np.repeat(x_T[i : i + 1], len(moves), 0), 2)
            return decoded.astype(np.float64).mean((1, 2, 3))

        u, m, v = np.zeros(8), np.zeros(8), np.zeros(8)
        start = f(np.zeros((16, 8)))[0]
        sign, h = np.sign(target - start), 1e-2
        for k in range(steps + 1):
            around = f(u + h * np.concatenate([np.eye(8), -np.eye(8)]))
            changes.append(u)
            values.append(f(np.repeat(u[None], 16, 0))[0])
            slope = -sign * (around[:8] - around[8:]) / (2 * h) / abs(target - start)
            g = slope + penalty * 2 * u / 8
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            rate = step_size * 0.5 * (1 + np.cos(np.pi * k / steps))
            u = u - rate * (m / (1 - 0.9 ** (k + 1))) / (np.sqrt(v / (1 - 0.999 ** (k + 1))) + 1e-8)
    return np.reshape(changes, (len(IMAGES), steps + 1, 8)), np.reshape(values, (len(IMAGES), steps + 1))


def test_steps_are_those_of_adam_with_finite_differences(model, caplog):
    """The target is too far for these steps, so the step that comes closest is the result."""
    settings = dict(steps=3, step_size=0.1, penalty=0.3)
    changes, values = numpy_search(model, 0.9, **settings)
    found = model.counterfactual(IMAGES, brightness, 0.9, num_steps=2, **settings)
    assert not found.reached.any()
    closest = values.argmax(1)
    moved = (found.z.astype(np.float64) - model.encode(IMAGES)) / model.statistics.std
    np.testing.assert_allclose(moved, changes[np.arange(4), closest], atol=0.01)
    np.testing.assert_allclose(found.f_after, values.max(1), atol=1e-3)
    assert np.abs(moved).max() > 0.1, "several steps were taken"
    np.testing.assert_array_equal(found.x_T, model.invert(IMAGES, num_steps=2))
    assert caplog.messages == [
        "4 of 4 counterfactuals do not reach the target (the first is image 0). Use more steps, a smaller penalty, or "
        'on="z and x_T".'
    ]


def test_penalty_keeps_counterfactuals_nearer(one_device):
    model = with_sensitive_z(one_device, seed=3)
    target = model_brightness(model) + np.array([0.3, -0.3, 0.2, -0.2], np.float32)
    near, free = (model.counterfactual(IMAGES, brightness, target, penalty=p, **BOTH) for p in (0.3, 0.0))
    assert near.reached.all()
    assert free.reached.all()
    assert (near.distance < 0.99 * free.distance).all()


def test_results_do_not_depend_on_the_other_images_and_are_the_same_each_time(model, brighter, monkeypatch):
    found, target = brighter
    again = model.counterfactual(IMAGES, brightness, target, penalty=0.3, **BOTH)
    jax.tree.map(np.testing.assert_array_equal, found, again)
    # 8 images in memory for each: a batch of one
    monkeypatch.setattr(batching, "BATCH_ELEMENTS", counterfactual.GRADIENT_MEMORY * 64)
    single = model.counterfactual(IMAGES, brightness, target, penalty=0.3, **BOTH)
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-3), single, found)


def test_class_gets_the_largest_logit_and_an_image_that_has_it_stays(model):
    start = (model.reconstruct(IMAGES, 2).reshape(4, -1) @ WEIGHTS).argmax(1)
    target = np.where(np.arange(4) == 2, start, (start + 1) % 3)
    found = model.counterfactual(IMAGES, logits, target, **BOTH)
    assert found.f_after.shape == (4, 3)
    assert found.reached.all()
    np.testing.assert_array_equal((found.images.reshape(4, -1).astype(np.float64) @ WEIGHTS).argmax(1), target)
    np.testing.assert_array_equal(found.distance == 0, np.arange(4) == 2)
    np.testing.assert_array_equal(found.z[2], model.encode(IMAGES)[2])


def test_shortfall_is_the_closed_form_of_each_kind():
    p, target = np.array([1e-20, 0.2, 0.9]), np.array([0.9, 0.1, 0.5])
    log_odds = np.log(p / (1 - p)) - np.log(target / (1 - target))
    arrays = [jnp.asarray(a, jnp.float32) for a in (p, p, target)]
    np.testing.assert_allclose(counterfactual.shortfall(*arrays, "binary"), -log_odds * [1, -1, -1], rtol=1e-4)
    np.testing.assert_allclose(counterfactual.shortfall(*arrays, "continuous"), (target - p) * [1, -1, -1], rtol=1e-5)
    scores = jnp.array([[1.0, 4.0, 2.5], [3.0, -1.0, 0.0]])
    np.testing.assert_allclose(
        counterfactual.shortfall(scores, scores, jnp.array([2, 0]), "classes"), [1.5, -3], rtol=1e-6
    )
    slope = jax.grad(lambda x: counterfactual.shortfall(jax.nn.sigmoid(x), x * 0, x * 0 + 0.9, "binary").sum())
    np.testing.assert_allclose(slope(jnp.array([-40.0, 0.0])), -1, rtol=1e-3, err_msg="not flat where p is")


def test_flat_probability_reaches_the_target(model):
    found = model.counterfactual(IMAGES, probability, 0.6, kind="binary", **BOTH | dict(steps=40))
    assert (found.f_before < 1e-6).all(), "where the gradient of the probability itself is negligible"
    assert found.reached.all()
    assert ((found.f_after >= 0.6) & (found.f_after <= 1)).all()


@pytest.mark.parametrize(
    "shape",
    [(8, 2), pytest.param((4, 4, 4, 2), marks=pytest.mark.long)],  # convolutions over three axes compile for long
    ids=["signals", "volumes"],
)
def test_images_of_other_ranks_on_several_devices(one_device, shape):
    """Decoding the codes on one device gives the images that two devices found."""
    images = np.random.default_rng(1).uniform(-1, 1, (2, *shape)).astype(np.float32)
    axes = tuple(range(1, images.ndim))
    two_devices = make_mesh(jax.devices()[:2])
    one, two = (random_model(mesh, image_shape=shape) for mesh in (one_device, two_devices))
    found = two.counterfactual(images, lambda x: x.mean(axes), 0.1, **BOTH | dict(steps=8))
    assert found.images.shape == images.shape
    assert found.reached.all()
    np.testing.assert_allclose(found.images, one.decode(found.z, found.x_T, 2), atol=1e-3)
    np.testing.assert_allclose(found.f_after, found.images.astype(np.float64).mean(axes), atol=1e-5)


# --- how it runs ---------------------------------------------------------------------------------


def traced(model, f=brightness, num_steps=2):
    """The compiled function of the search for four images, before it is compiled."""
    decode = partial(
        programs.decode,
        graphdef=model.graphdef,
        process=image_process(model.config),
        sampler=DDIM,
        num_steps=num_steps,
        remat=True,
    )
    search = partial(counterfactual.search, f=f, kind="continuous", decode=decode, on="z and x_T")
    numbers = jnp.zeros(4), jnp.zeros(4), model.statistics.std, 3, 0.1, 0.1
    return jax.jit(search).trace(model.params, np.zeros((4, 8), np.float32), IMAGES, *numbers)


def test_all_steps_are_one_loop_on_the_devices(model):
    names = [equation.primitive.name for equation in equations(traced(model).jaxpr.jaxpr)]
    assert names.count("while") == 1, "the loop of Adam; bisection is a scan of a known length"
    assert not [name for name in names if "callback" in name or "device_put" in name]


@pytest.mark.long  # the search decodes with remat=True, whose memory tests/diffusion measures
def test_memory_grows_with_the_root_of_the_steps_of_the_decoder(model):
    few, many = (
        traced(model, num_steps=steps).lower().compile().memory_analysis().temp_size_in_bytes for steps in (4, 64)
    )
    assert many < 2 * few, "storing the activations of each step takes 16 times as much"


# --- what is refused -----------------------------------------------------------------------------


def nan_when_bright(images):
    bright = images.mean((1, 2, 3))
    return jnp.where((bright > 0.05) & (jnp.arange(len(images)) == 2), jnp.nan, bright)


def root(images):
    """Its gradient is infinite where an image has a negative mean, but not its value."""
    mean = images.mean((1, 2, 3))
    return jnp.sqrt(jnp.maximum(mean, 0)) + mean


REFUSED = {
    "numpy": (
        dict(f=lambda x: np.asarray(x).mean((1, 2, 3))),
        r"f cannot be differentiated by JAX: TracerArray.*jax.num",
    ),
    "branches": (dict(f=lambda x: x[:, 0, 0, 0] if x.mean() > 0 else x[:, 1, 0, 0]), "f cannot be .* TracerBool"),
    "an error": (dict(f=lambda x: x @ jnp.ones((3, 3))), "f cannot be differentiated by JAX: TypeError: dot_general"),
    "whole numbers": (dict(f=lambda x: logits(x).argmax(1)), "f returns int32, which has no gradient"),
    "one number": (dict(f=jnp.mean), r"f must return one value per image, \[N\], .* for 2 images .* of shape \(\)"),
    "images": (dict(f=lambda x: x), r"of shape \(2, 8, 8, 1\)"),
    "two arrays": (dict(f=lambda x: (brightness(x), logits(x))), "f must return one array, .* not a tuple"),
    "one class": (dict(f=lambda x: brightness(x)[:, None]), r"of shape \(2, 1\): one class"),
    "steps": (dict(f=lambda x: jnp.round(brightness(x))), "The gradient of f is 0 for all of 4 images"),
    "a constant": (dict(f=lambda x: jnp.zeros(len(x))), "The gradient of f is 0 for all of 4 images"),
    "logarithm": (dict(f=lambda x: jnp.log(brightness(x) - 9)), "f is not finite for image 0 at step 0"),
    "root": (dict(f=lambda x: jnp.sqrt(brightness(x) * 0)), "The gradient of f is not finite for image 0 at step 0"),
    "kind of logits": (dict(f=logits, kind="binary"), r"f of kind binary must return \[N\]"),
    "kind of values": (dict(kind="classes"), r"f of kind classes must return \[N, K\]"),
    "no probability": (
        dict(f=lambda x: brightness(x) - 3, kind="binary"),
        "must return probabilities, but it returns -3",
    ),
    "target of a probability": (dict(f=probability, kind="binary", target=1.0), "between 0 and 1, .* not 1.0"),
    "target of a class": (dict(f=logits, target=3), "a class from 0 to 2, not 3"),
    "fraction of a class": (dict(f=logits, target=0.5), "a class from 0 to 2, not 0.5"),
    "target without a value": (dict(target=np.array([0.1, np.nan, 0.1, 0.1])), "The target must be a number, not nan"),
    "target without end": (dict(target=10**400), "The target must be a number, not an integer of 1,329 bits"),
    "yes or no": (dict(target=True), "The target must be a number, not True"),
    "yes or no of a class": (dict(f=logits, target=True), "a class from 0 to 2, not True"),
    "target of text": (dict(target="bright"), "The target must be a number, not bright"),
    "targets": (dict(target=[0.1, 0.2]), r"one for each of 4 images, not an array of shape \(2,\)"),
    "on": (dict(on="x"), '`on` must be "z" or "z and x_T".* It is x'),
    "no steps": (dict(steps=0), "takes 1 to 10,000 steps, not 0"),
    "step size": (dict(step_size=0), "step_size of a counterfactual must be a number above 0, not 0"),
    "long step": (dict(step_size=10**400), "must be a number above 0, not an integer of 1,329 bits"),
    "penalty": (dict(penalty=-1.0), "penalty of a counterfactual must be a number at least 0, not -1.0"),
    "steps of the decoder": (dict(num_steps=1001), "1 to 1000 steps, not 1001"),
    "sampler": (dict(sampler="euler"), "There is no sampler euler"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_at_the_start(model, name, monkeypatch):
    monkeypatch.setattr(counterfactual, "search", None)  # nothing has been searched yet
    arguments, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as refused:
        model.counterfactual(IMAGES, **dict(f=brightness, target=0.2) | dict(num_steps=2, on="z") | arguments)
    assert_is_one_sentence(refused.value)


def test_wrong_types_are_refused_too():
    with pytest.raises(UserError, match="f must be a function of images, not 3"):
        counterfactual.check_function(3, (8, 8, 1), None)
    with pytest.raises(UserError, match="kind of f must be continuous, binary or classes, not regression"):
        counterfactual.check_function(brightness, (8, 8, 1), "regression")
    for name, value in dict(steps=1.5, step_size="big", penalty=float("nan")).items():
        with pytest.raises(UserError, match=f"not {value}"):
            counterfactual.check_settings(**dict(on="z", steps=1, step_size=0.1, penalty=0.1) | {name: value})


def test_targets_may_be_a_column_of_objects():
    column = np.array([2, np.int64(0), 1], object)
    found = counterfactual.as_target(column, 3, "classes", 3)
    assert (found.tolist(), found.dtype) == ([2, 0, 1], np.int32)
    assert counterfactual.as_target(column, 3, "continuous", None).tolist() == [2, 0, 1]
    with pytest.raises(UserError, match="a class from 0 to 1, not 2"):
        counterfactual.as_target(column, 3, "classes", 2)


def test_nan_of_f_stops_the_search_with_image_and_step(model):
    with pytest.raises(UserError, match=r"f is not finite for image 2 at step [1-9]\d?\. Check f") as refused:
        model.counterfactual(IMAGES, nan_when_bright, 0.5, **BOTH)
    assert_is_one_sentence(refused.value)


def test_models_and_transformations_without_counterfactuals_say_so(one_device, model):
    config = model.config.copy_and_resolve_references()
    config.model.z_dim = None
    baseline = random_model(one_device, statistics=None, prior=None, probes={})
    baseline.config = config
    with pytest.raises(UserError, match="is a DDIM baseline: it has no encoder"):
        baseline.counterfactual(IMAGES, brightness, 0.2)
    plain = random_model(one_device, statistics=None, prior=None)
    with pytest.raises(UserError, match="no mean and standard deviation of z, which probes and counterfactuals need"):
        plain.counterfactual(IMAGES, brightness, 0.2)
    with pytest.raises(UserError, match="counterfactual works on the host"):
        jax.jit(lambda x: model.counterfactual(x, brightness, 0.2).images)(IMAGES)
