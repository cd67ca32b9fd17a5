"""DiffAE under jit, grad and vmap: methods return the same as outside, or raise UserError."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffae_jax import DiffAE, to_uint8
from diffae_jax.models.build import builder
from diffae_jax.probes import ClassProbe, Probe
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.sharding import make_mesh
from tests.environment import QUICKLY
from tests.processes import Forked
from tests.random_models import initial, random_model
from tests.runs import finish

IMAGES = np.random.default_rng(1).uniform(-1, 1, (2, 8, 8, 1)).astype(np.float32)
STEPS = 2
CLOSE = dict(atol=1e-4, rtol=1e-4)


def row(seed):
    return np.random.default_rng(seed).normal(size=8).astype(np.float32)


def own_model(mesh):
    hue = {value: Probe(f"hue={value}", row(i), 0.0) for i, value in enumerate("rgb")}
    probes = {
        "smile": Probe("smile", row(3), 0.3),
        "age": Probe("age", row(4), 40.0, kind="continuous"),
        "hue": ClassProbe("hue", hue),
    }
    return random_model(mesh, probes=probes)


@pytest.fixture(scope="module")
def model(one_device):
    return own_model(one_device)


@pytest.fixture(scope="module")
def codes(model):
    z = model.encode(IMAGES)
    return z, model.invert(IMAGES, z, STEPS)


def assert_same(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), found, expected)


# Each method as a function of arrays: images, z, x_T.
METHODS = {
    "encode": lambda m, x, z, x_T: m.encode(x),
    "invert": lambda m, x, z, x_T: m.invert(x, z, STEPS),
    "invert by its own z": lambda m, x, z, x_T: m.invert(x, num_steps=STEPS),
    "decode": lambda m, x, z, x_T: m.decode(z, x_T, STEPS),
    "decode noise": lambda m, x, z, x_T: m.decode(z, num_steps=STEPS, seed=5),
    "progress": lambda m, x, z, x_T: m.progress(z, x_T, STEPS),
    "reconstruct": lambda m, x, z, x_T: m.reconstruct(x, STEPS),
    "reconstruct from noise": lambda m, x, z, x_T: m.reconstruct(x, STEPS, infer_x_T=False, seed=5),
    "variations": lambda m, x, z, x_T: m.variations(x, 3, STEPS, seed=5, first=2),
    "interpolate": lambda m, x, z, x_T: m.interpolate(x[0], x[1], 3, STEPS),
    "path": lambda m, x, z, x_T: m.path(z, x_T, 3),
    "edit": lambda m, x, z, x_T: m.edit(x, "smile", 0.5, STEPS),
    "sweep": lambda m, x, z, x_T: m.sweep(x, "smile", (0.5, -1), STEPS),
    "edit to a value": lambda m, x, z, x_T: m.edit(x, "age", num_steps=STEPS, to=42),
    "move": lambda m, x, z, x_T: m.move(z, "smile", -0.4),
    "move to a probability": lambda m, x, z, x_T: m.move(z, "smile", to=0.8),
    "predict a probability": lambda m, x, z, x_T: m.predict(z, "smile"),
    "predict a value": lambda m, x, z, x_T: m.predict(z, "age"),
    "predict one class": lambda m, x, z, x_T: m.predict(z, "hue=g"),
    "noise": lambda m, x, z, x_T: m.noise(np.arange(3, 5), seed=5),
    "sample": lambda m, x, z, x_T: m.sample(2, 5, STEPS, 2, first=1),
}


SIMILAR = (  # others of METHODS call the same programs, and tests below trace edits and decode noise
    *("reconstruct from noise", "sweep", "edit to a value"),
    *("invert by its own z", "decode noise", "edit"),
)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long if n in SIMILAR else ()) for n in METHODS])
def test_method_is_the_same_under_jit(model, codes, name):
    arguments = (IMAGES, *codes)
    expected = METHODS[name](model, *arguments)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(expected)), "outside it is what it was"
    assert_same(jax.jit(partial(METHODS[name], model), **QUICKLY)(*arguments), expected)
    shapes = jax.eval_shape(lambda: METHODS[name](model, *arguments))  # nothing but constants
    assert jax.tree.map(lambda a: (a.shape, a.dtype), shapes) == jax.tree.map(lambda a: (a.shape, a.dtype), expected)


def test_methods_of_constants_are_the_same_under_jit(model, codes):
    def calls():
        return model.encode(IMAGES), model.predict(codes[0], "smile"), model.noise(np.arange(2), 5)

    assert_same(jax.jit(calls, **QUICKLY)(), calls())


def test_methods_work_in_the_body_of_a_scan_and_for_shapes(model, codes):
    z, x_T = codes
    _, moved = jax.lax.scan(lambda strength, _: (strength * 2, model.move(z, "smile", strength)), 0.1, length=3)
    assert_same(moved[2], model.move(z, "smile", 0.4))
    shape = jax.eval_shape(lambda z: model.decode(z, x_T, STEPS), z)
    assert (shape.shape, shape.dtype) == (x_T.shape, np.float32)


BATCHED = {  # over images, z and x_T of one image each, which keep an axis of one where the method needs it
    "encode": lambda m, x, z, x_T: m.encode(x)[0],
    "edit": lambda m, x, z, x_T: m.edit(x, "smile", 0.5, STEPS)[0],  # encodes, inverts and decodes
    "move": lambda m, x, z, x_T: m.move(z[None], "smile", to=0.8)[0],
    "predict": lambda m, x, z, x_T: m.predict(z[None], "smile")[0],
}
WHOLE = {"move": "move to a probability", "predict": "predict a probability"}


@pytest.mark.parametrize("name", BATCHED)
def test_method_is_the_same_under_vmap(model, codes, name):
    expected = METHODS[WHOLE.get(name, name)](model, IMAGES, *codes)
    assert_same(jax.vmap(partial(BATCHED[name], model))(IMAGES, *codes), expected)


def test_images_that_share_noise_under_vmap_and_those_of_seeds_that_are_traced(model, codes):
    z, _ = codes
    each = jax.vmap(lambda z: model.decode(z[None], num_steps=STEPS, seed=5)[0])(z)
    assert_same(each, model.decode(z, model.noise(np.array([0, 0]), 5), STEPS))
    seeds = jnp.array([5, 6])
    assert_same(jax.vmap(lambda seed: model.noise(np.arange(2), seed))(seeds)[1], model.noise(np.arange(2), 6))
    assert_same(jax.vmap(lambda seed: model.sample(2, seed, STEPS, 2))(seeds)[1], model.sample(2, 6, STEPS, 2))
    drawn = jax.jit(lambda z, seed: model.decode(z, num_steps=STEPS, seed=seed), **QUICKLY)(z, 6)
    assert_same(drawn, model.decode(z, num_steps=STEPS, seed=jnp.int32(6)))


DIFFERENTIABLE = {  # one number, as a function of images, z and a strength
    "variations": lambda m, x, z, s: m.variations(x, 2, STEPS).std.mean(),
    "edit": lambda m, x, z, s: m.edit(x, "smile", s, STEPS).mean(),
    "move and predict": lambda m, x, z, s: m.predict(m.move(z, "age", s), "smile").sum(),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("variations", marks=pytest.mark.long),  # an edit goes through the same programs, and the inversion
        "edit",
        "move and predict",
    ],
)
def test_gradient_of_a_method_equals_finite_differences(model, codes, name):
    arguments = tuple(jnp.asarray(a) for a in (IMAGES * 0.9, codes[0], np.float32(0.3)))
    function = partial(DIFFERENTIABLE[name], model)
    gradients = jax.grad(function, (0, 1, 2))(*arguments)  # without jit: only what depends on these is traced
    norm = np.sqrt(sum(float((g**2).sum()) for g in gradients))
    assert norm > 1e-3
    step = 3e-3 / max(norm, norm**2)
    ends = [tuple(a + sign * step * g for a, g in zip(arguments, gradients, strict=True)) for sign in (-1, 1)]
    below, above = (function(np.asarray(x), np.asarray(z), float(s)) for x, z, s in ends)
    np.testing.assert_allclose((above - below) / (2 * step), norm**2, rtol=0.05)


def test_images_of_every_kind_are_taken_while_jax_traces(model, tmp_path):
    as_bytes = to_uint8(IMAGES)
    expected = model.encode(as_bytes)
    pictures = [Image.fromarray(image[..., 0]) for image in as_bytes]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    assert_same(jax.jit(model.encode, **QUICKLY)(as_bytes), expected)
    for images in (as_bytes, pictures, tmp_path):
        shifted = jax.jit(lambda shift, images=images: model.encode(images) + shift, **QUICKLY)(1.0)
        assert_same(shifted, expected + 1)
    halves = model.encode(IMAGES.astype(np.float16))
    assert_same(jax.jit(model.encode, **QUICKLY)(IMAGES.astype(np.float16)), halves)


def test_model_is_saved_loaded_and_identified_while_jax_traces(model, codes, one_device, tmp_path):
    z = codes[0]

    @partial(jax.jit, **QUICKLY)
    def call(z):
        model.save(tmp_path / "bundle")
        loaded = DiffAE.load(tmp_path / "bundle", mesh=one_device)
        assert loaded.digest() == model.digest()
        return loaded.decode(z, num_steps=STEPS), loaded.encode(IMAGES)

    assert_same(call(z), (model.decode(z, num_steps=STEPS), z))


def test_model_over_several_devices_is_traced_too(model, codes, eight_devices):
    many = random_model(eight_devices, probes=model.probes)
    one = jax.device_put(codes[0], jax.devices()[0])
    for z in (codes[0], one):
        decoded = jax.jit(lambda z: many.decode(z, num_steps=STEPS), **QUICKLY)(z)
        assert_same(decoded, model.decode(codes[0], num_steps=STEPS))
        assert_same(jax.jit(many.predict, static_argnums=1)(z, "smile"), model.predict(codes[0], "smile"))


# --- what is refused -----------------------------------------------------------------------------


REFUSED = {
    "fit_probe": (lambda m, x, z, x_T: m.fit_probe("a", z, [0, 1]), "fit_probe works on the host. Call it outside"),
    "fit_probe of traced labels": (
        lambda m, x, z, x_T: m.fit_probe("a", np.zeros((2, 8), np.float32), z[:, 0]),
        "fit_probe works on the host",
    ),
    "principal_components": (
        lambda m, x, z, x_T: m.principal_components(z, 1),
        "principal_components works on the host. Call it outside",
    ),
    "predict a class": (
        lambda m, x, z, x_T: m.predict(z, "hue"),
        "Probe hue predicts the name of a class, which JAX cannot trace.* with the probe hue=r",
    ),
    "strength of each image": (
        lambda m, x, z, x_T: m.move(z, "smile", z[:, 0]),
        r"The strength of an edit must be one number, not an array of shape \(2,\)",
    ),
    "x_T of another shape": (lambda m, x, z, x_T: m.decode(z, x_T[:, 1:]), r"x_T must have the shape"),
    "images of another shape": (
        lambda m, x, z, x_T: m.encode(x[:, 1:]),
        r"The images have shape \(2, 7, 8, 1\), but the model needs \(N, \*\(8, 8, 1\)\)",
    ),
    "images of whole numbers": (
        lambda m, x, z, x_T: m.encode(x.astype(np.int32)),
        "Images must be uint8 or floats in .*, not int32",
    ),
    "list of images": (
        lambda m, x, z, x_T: m.encode([x[0], x[1]]),
        "These images are a list of traced arrays. Make them one array with jnp.stack",
    ),
    "weights": (
        lambda m, x, z, x_T: DiffAE(m.config, jax.tree.map(lambda a: a * z[0, 0], m.params)),
        "The weights of DiffAE cannot be traced.*diffae_jax.inference.programs",
    ),
}
UNTYPED = {  # what types that are checked would refuse first, as they are in this process
    "sample_class by a traced seed": (
        lambda m, x, z, x_T: m.sample_class(2, "smile", seed=z[0, 0]),
        "sample_class works on the host. Call it outside jit, grad and vmap, or use sample",
    ),
    "z of another shape": (lambda m, x, z, x_T: m.decode(z[0], x_T), r"z must have the shape \(N, 8\), not \(8,\)"),
    "as many z": (lambda m, x, z, x_T: m.decode(z[:1], x_T), "There are 2 images but 1 z"),
    "list of z": (lambda m, x, z, x_T: m.invert(x, list(z)), "These z are a list of traced arrays"),
    "numbers of no row": (
        lambda m, x, z, x_T: m.noise(z[0, 0].astype(int)),
        r"`numbers` must hold image indices in the shape \(N,\), not \(\)",
    ),
    "traced to": (
        lambda m, x, z, x_T: m.move(np.zeros((1, 8), np.float32), "age", to=z.sum()),
        "The value `to` of an edit must be known before JAX compiles",
    ),
    "traced number of steps": (
        lambda m, x, z, x_T: m.decode(z, x_T, z.sum()),
        "The number of steps must be known before JAX compiles, but is traced: bind its value with functools.partial",
    ),
    "traced number of frames": (
        lambda m, x, z, x_T: m.path(z, x_T, z.sum()),
        "The number of frames must be known",
    ),
    "traced first image": (
        lambda m, x, z, x_T: m.sample(2, first=z.sum()),
        "The index of the first image must be known",
    ),
    "traced choice of x_T": (
        lambda m, x, z, x_T: m.reconstruct(x, STEPS, z.sum() > 0),
        "infer_x_T must be known before JAX compiles",
    ),
    "seed that is no number": (
        lambda m, x, z, x_T: m.decode(z, seed=z[0]),
        r"The seed must be one whole number, not float.. of shape \(8,\)",
    ),
}
TRANSFORMATIONS = {
    "jit": jax.jit,
    "grad": lambda function: lambda *arrays: jax.grad(function, (0, 1, 2))(*map(jnp.asarray, arrays)),
    "vmap": lambda function: lambda *arrays: jax.vmap(function)(*(a[None] for a in arrays)),
}


@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_work_is_reported_in_one_line(model, codes, name, transformation):
    call, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as refused:
        TRANSFORMATIONS[transformation](partial(call, model))(IMAGES, *codes)
    assert len(str(refused.value)) < 300
    assert "racer" not in str(refused.value)


def test_what_works_on_the_host_is_refused_under_jit_of_constants_and_works_elsewhere(model, codes):
    calls = {
        "fit_probe": lambda: model.fit_probe("new", np.eye(8, dtype=np.float32), [0, 1] * 4),
        "principal_components": lambda: model.principal_components(np.eye(8, dtype=np.float32), 1),
        "sample_class": lambda: model.sample_class(1, "smile", num_steps=STEPS, num_latent_steps=2),
        "sample_latents": lambda: model.sample_latents(1, "smile", num_latent_steps=2),
    }
    for name, call in calls.items():
        with pytest.raises(UserError, match=f"{name} works on the host"):
            jax.jit(lambda call=call: (call(), 0)[1])()
        gradient = jax.grad(lambda x, call=call: (call(), x)[1])(1.0)
        assert gradient == 1, "constants are known while gradients are taken"


def test_traced_bytes_are_not_taken_for_values_of_an_intensity(model, one_device):
    config = model.config.copy_and_resolve_references()
    config.data.intensity = "0.0..4095.0"
    ranged = DiffAE(config, model.params, mesh=one_device)
    counts = np.full((1, 8, 8, 1), 200, np.uint8)
    scaled = counts.astype(np.float32) * (2 / 4095) - 1
    for dtype in (np.uint8, np.int32):
        with pytest.raises(UserError, match=r"range of values 0\.\.4095 .* 0 scaled to -1 and 4095 to 1"):
            jax.jit(ranged.encode)(counts.astype(dtype))
    assert_same(jax.jit(ranged.encode, **QUICKLY)(scaled), ranged.encode(counts))


def test_baseline_without_z_is_traced_too(model, one_device):
    config = model.config.copy_and_resolve_references()
    config.model.z_dim = None
    baseline = DiffAE(config, initial(builder(config, "float32")), mesh=one_device)
    x_T = baseline.noise(np.arange(2))
    call = partial(baseline.decode, None, num_steps=STEPS)
    assert_same(jax.jit(call, **QUICKLY)(x_T), call(x_T))
    assert_same(jax.jit(lambda: baseline.sample(2, num_steps=STEPS), **QUICKLY)(), call(x_T))
    with pytest.raises(UserError, match="it has no encoder and no z"):
        jax.jit(baseline.encode)(IMAGES)


def in_64_bits():
    """For a process of its own, in which types are not checked."""
    jax.config.update("jax_enable_x64", True)
    model = own_model(make_mesh())
    z, x = np.random.default_rng(0).normal(size=(2, 8)), np.random.default_rng(1).uniform(-1, 1, (2, 8, 8, 1))

    def call(z, x):
        return model.decode(z, x, STEPS), model.encode(x), model.move(z, "age", to=42), model.predict(z, "smile")

    for found, expected in zip(jax.jit(call)(z, x), call(z, x), strict=True):
        assert found.dtype == expected.dtype == np.float32, (found.dtype, expected.dtype)
        np.testing.assert_allclose(found, expected, **CLOSE)
    for name, (function, message) in UNTYPED.items():
        print(name)  # the last one is that of an error
        with pytest.raises(UserError, match=message):
            jax.jit(lambda x, z, function=function: function(model, x, z, x))(x, z)


def test_numbers_of_64_bits_become_those_of_32_and_plain_values_are_asked_for_in_one_sentence():
    finish(Forked(f"{__name__}:in_64_bits", []))
