"""DiffAE against the definitions of the paper, and its gradients against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from diffae_jax import to_uint8
from diffae_jax.config import check
from diffae_jax.diffusion.process import image_process
from diffae_jax.diffusion.samplers import DDIM, ddim_decode, ddim_grid
from diffae_jax.inference import batching, programs
from diffae_jax.models.functional import flatten
from diffae_jax.probes import Probe
from diffae_jax.runtime.errors import UserError
from tests.environment import QUICKLY
from tests.random_models import random_model

IMAGES = np.random.default_rng(1).uniform(-1, 1, (4, 8, 8, 1)).astype(np.float32)
STEPS = 3


@pytest.fixture(scope="module")
def model(one_device):
    rng = np.random.default_rng(2)
    probes = {
        "smile": Probe("smile", rng.normal(size=8).astype(np.float32), 0.3),
        "age": Probe("age", rng.normal(size=8).astype(np.float32), 40.0, kind="continuous"),
    }
    return random_model(one_device, probes=probes)


@pytest.fixture(scope="module")
def codes(model):
    z = model.encode(IMAGES)
    return z, model.invert(IMAGES, z, STEPS)


# --- images --------------------------------------------------------------------------------------


def test_images_of_every_kind_have_the_same_z_and_conversions_are_said_once(one_device, tmp_path, capsys, caplog):
    model = random_model(one_device)
    as_bytes = to_uint8(IMAGES)
    for i, image in enumerate(as_bytes):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{i}.png")
    pictures = [Image.fromarray(image[..., 0]) for image in as_bytes]
    z = model.encode(as_bytes.astype(np.float32) / 127.5 - 1)
    for images in (as_bytes, pictures, tmp_path, [tmp_path / f"{i}.png" for i in range(4)]):
        np.testing.assert_allclose(model.encode(images), z, atol=1e-5)
        np.testing.assert_allclose(model.invert(images, z, STEPS), model.invert(as_bytes, z, STEPS), atol=1e-5)
    assert caplog.text.count("Images of uint8 were scaled from 0..255 to [-1, 1].") == 1
    assert capsys.readouterr().out == "", "what a program prints stays its own"
    caplog.clear()
    model = random_model(one_device)
    model.reconstruct(tmp_path, STEPS)
    assert caplog.text == "", "files of the right size are taken as they are"


def test_batches_are_full_but_for_the_last(model, monkeypatch):
    images = np.concatenate([IMAGES] * 3)[:9]
    whole = model.reconstruct(images, STEPS)
    sizes, on_host = [], batching.on_host
    monkeypatch.setattr(batching, "BATCH_ELEMENTS", 8 * 64)
    monkeypatch.setattr(
        batching, "on_host", lambda batch: sizes.append(len(jax.tree.leaves(batch)[0])) or on_host(batch)
    )
    np.testing.assert_allclose(model.reconstruct(images, STEPS), whole, atol=1e-4)
    assert sizes == [8, 1] * 3, "nine images in batches of at most eight: encoded, inverted, decoded"


def test_repr_is_one_line_with_what_is_known(one_device):
    model = random_model(one_device, origin={"run": "tiny", "images_seen": 80_000})
    expected = (
        "DiffAE(tiny: 8x8x1, z of 8, trained on 80,000 images, prior, probes hair/color é; float32 on 1 cpu device)"
    )
    assert repr(model) == expected
    for origin in ({}, {"images_seen": "many"}, {"images_seen": -1}, {"images_seen": 10**4000}):
        model.origin = origin
        assert repr(model) == expected.replace(" trained on 80,000 images,", "")
    model.origin = {"imported_from": "last.ckpt", "images_seen": 5}
    assert "trained" not in repr(model), "the last training of an imported model with a prior is that of its prior"
    bare = random_model(one_device, prior=None, probes={}, origin=model.origin)
    assert repr(bare) == "DiffAE(tiny: 8x8x1, z of 8, trained on 5 images; float32 on 1 cpu device)"


# --- paths, variations, progress -----------------------------------------------------------------


def test_interpolation_leads_from_one_reconstruction_to_the_other(model, codes):
    frames = model.interpolate(IMAGES[0], IMAGES[1], num_frames=5, num_steps=STEPS)
    assert frames.shape == (5, 8, 8, 1)
    ends = model.reconstruct(IMAGES[:2], STEPS)
    np.testing.assert_allclose(frames[[0, -1]], ends, atol=1e-4)
    # the middle by hand: the mean z, and x_T on the arc, in float64
    z, x_T = (code.astype(np.float64) for code in codes)
    angle = np.arccos((x_T[0] * x_T[1]).sum() / np.sqrt((x_T[0] ** 2).sum() * (x_T[1] ** 2).sum()))
    middle = np.sin(angle / 2) / np.sin(angle) * (x_T[0] + x_T[1])
    expected = model.decode((z[:1] + z[1:2]) / 2, middle[None], STEPS)
    np.testing.assert_allclose(frames[2:3], expected, atol=1e-4)
    with pytest.raises(UserError, match="image_a must be one image, not 2"):
        model.interpolate(IMAGES[:2], IMAGES[1])
    with pytest.raises(UserError, match="number of frames must be at least 1, not 0"):
        model.interpolate(IMAGES[0], IMAGES[1], num_frames=0)


def test_variations_share_z_alone(model, codes):
    images, mean, std = model.variations(IMAGES[:2], num_variations=3, num_steps=STEPS, seed=4)
    assert images.shape == (2, 3, 8, 8, 1)
    expected = model.decode(np.repeat(codes[0][:2], 3, axis=0), None, STEPS, seed=4)
    np.testing.assert_allclose(images.reshape(6, 8, 8, 1), expected, atol=1e-4)
    np.testing.assert_allclose(mean, images.astype(np.float64).mean(1), atol=1e-6)
    np.testing.assert_allclose(std, images.astype(np.float64).std(1), atol=1e-5)
    assert std.mean() > 0.01


def test_progress_ends_in_the_image(model, codes):
    progress = model.progress(*codes, num_steps=4)
    assert progress.shape == (4, 4, 8, 8, 1)
    np.testing.assert_allclose(progress[:, -1], model.decode(*codes, num_steps=4), atol=1e-4)
    assert np.abs(progress[:, 0] - progress[:, -1]).max() > 0.01


# --- edits ---------------------------------------------------------------------------------------


def test_edit_of_no_strength_is_the_reconstruction_exactly(model):
    np.testing.assert_array_equal(model.edit(IMAGES, "smile", 0, STEPS), model.reconstruct(IMAGES, STEPS))


def test_a_sweep_has_the_edits_of_each_strength(model):
    swept = model.sweep(IMAGES, "smile", (-0.5, 0, 1.0), STEPS)
    assert swept.shape == (len(IMAGES), 3, *IMAGES.shape[1:])
    for i, strength in enumerate((-0.5, 0, 1.0)):
        np.testing.assert_allclose(swept[:, i], model.edit(IMAGES, "smile", strength, STEPS), atol=1e-5)
    with pytest.raises(UserError, match="number of strengths must be at least 1"):
        model.sweep(IMAGES, "smile", (), STEPS)


def test_edit_moves_normalized_z_along_the_probe_and_keeps_the_noise_map(model, codes):
    z, x_T = codes
    w = model.probes["smile"].weights.astype(np.float64)
    normal = (z - model.statistics.mean) / model.statistics.std + 0.3 * np.sqrt(8) * w / np.linalg.norm(w)
    expected = model.decode(normal * model.statistics.std + model.statistics.mean, x_T, STEPS)
    np.testing.assert_allclose(model.edit(IMAGES, "smile", num_steps=STEPS), expected, atol=1e-4)
    np.testing.assert_allclose(model.edit(IMAGES, model.probes["smile"], 0.3, STEPS), expected, atol=1e-4)


@pytest.mark.parametrize(("probe", "to"), [("smile", 0.9), ("smile", 0.1), ("age", 65)])
def test_calibrated_edit_reaches_what_was_asked(model, codes, probe, to):
    z = model.move(codes[0], probe, to=to).astype(np.float64)
    value = (z - model.statistics.mean) / model.statistics.std @ model.probes[probe].weights + model.probes[probe].bias
    np.testing.assert_allclose(1 / (1 + np.exp(-value)) if probe == "smile" else value, to, rtol=1e-4)
    edited = model.edit(IMAGES, probe, num_steps=STEPS, to=to)
    np.testing.assert_allclose(edited, model.decode(z.astype(np.float32), codes[1], STEPS), atol=1e-4)
    np.testing.assert_allclose(model.predict(z.astype(np.float32), probe), to, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(probe="beard"), "beard.*smile"),
        (dict(probe="smile", strength=np.nan), "from -1000 to 1000, not nan"),
        (dict(probe="smile", strength=1e39), "from -1000 to 1000"),
        (dict(probe="smile", to=1.5), "1.5"),
        (dict(probe="smile", strength=1.0, to=0.5), "not both"),
        (dict(probe="age", to=np.inf), "inf"),
        (dict(probe=Probe("long", np.ones(9, np.float32), 0.0)), "8 dimensions"),
        (dict(probe="smile", num_steps=1001), "1 to 1000 steps, not 1001"),
    ],
    ids=str,
)
def test_edits_that_cannot_be_are_refused(model, arguments, message):
    with pytest.raises(UserError, match=message):
        model.edit(IMAGES, **arguments)


def test_model_without_statistics_says_what_probes_need(one_device):
    model = random_model(one_device, statistics=None, prior=None)
    with pytest.raises(UserError, match="mean and standard deviation of z"):
        model.edit(IMAGES, Probe("a", np.ones(8, np.float32), 0.0))


# --- conditional samples -------------------------------------------------------------------------


def accepted_by_hand(model, probe, sign, seed, count, latent_steps):
    """Numbers and normalized z of the first candidates that are accepted, one after the other."""
    grid = ddim_grid(model.config.prior.schedule, latent_steps)
    network = nnx.merge(model.prior_graphdef, model.prior)
    decode = jax.jit(lambda z_T: ddim_decode(network.noise_predictor(grid.t), z_T, grid, clip=False))
    found = []
    for i in range(1000):
        _, z_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), i))
        z = np.asarray(decode(jax.random.normal(z_key, (1, 8))))[0]
        p = 1 / (1 + np.exp(-sign * (z.astype(np.float64) @ probe.weights + probe.bias)))
        if p > 0.5 and jax.random.uniform(jax.random.fold_in(z_key, 1)) < p:
            found.append((i, z))
        if len(found) == count:
            return [np.stack(rows) for rows in zip(*found, strict=True)]
    raise AssertionError("too few")


@pytest.mark.parametrize("positive", [True, False])
def test_conditional_samples_are_those_that_rejection_by_hand_accepts(model, eight_devices, positive, caplog):
    caplog.set_level("INFO", "diffae_jax")
    probe = model.probes["smile"]
    settings = dict(positive=positive, seed=3, num_steps=STEPS, num_latent_steps=2)
    images = model.sample_class(6, "smile", **settings)
    numbers, _ = accepted_by_hand(model, probe, 1 if positive else -1, 3, 6, 2)
    samples = model.sample(int(numbers[-1]) + 1, 3, STEPS, 2)
    np.testing.assert_allclose(images, samples[numbers], atol=1e-4)
    drawn = f"6 of {numbers[-1] + 1} z drawn are {'' if positive else 'not '}smile"
    assert drawn in caplog.text
    many = random_model(eight_devices, probes=model.probes)
    np.testing.assert_allclose(many.sample_class(4, probe, **settings), images[:4], atol=1e-4)


def test_rejection_sampling_is_one_loop_without_the_host(model):
    before = programs.latents_of_class._cache_size()
    never = Probe("never", np.full(8, 1e-3, np.float32), -100.0)
    for _ in range(2):
        with pytest.raises(UserError, match=r"0 of 600 z drawn are never, but 2 were requested.*max_tries"):
            model.sample_class(2, never, num_steps=1, num_latent_steps=2, max_tries=300)
    assert programs.latents_of_class._cache_size() == before + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_images=0, probe="smile"), "number of images must be at least 1, not 0"),
        (dict(num_images=2, probe="beard"), "beard"),
        (dict(num_images=2, probe="age"), "age is continuous.* needs a binary one"),
        (dict(num_images=2, probe="smile", max_tries=0), "number of tries must be at least 1, not 0"),
        (dict(num_images=2**20, probe="smile", max_tries=2**10), "less than 1,073,741,824, not 1,073,741,824"),
        (dict(num_images=2, probe="smile", num_latent_steps=1001), "1 to 1000 steps"),
    ],
    ids=str,
)
def test_conditional_samples_that_cannot_be_are_refused(model, one_device, arguments, message):
    with pytest.raises(UserError, match=message):
        model.sample_class(**arguments)
    with pytest.raises(UserError, match="no prior"):
        random_model(one_device, prior=None, probes=model.probes).sample_class(2, "smile")


# --- transformations of JAX ----------------------------------------------------------------------


def test_gradient_of_decode_equals_finite_differences(one_device):
    model = random_model(one_device, seed=1)  # few of its predicted x_0 change between clipped and not
    z = jnp.asarray(model.encode(IMAGES[:2]))
    x_T = jnp.asarray(model.invert(IMAGES[:2], z, STEPS))
    target = jnp.asarray(IMAGES[2:])

    def distance(z, x_T):
        return jnp.square(model.decode(z, x_T, num_steps=20) - target).sum()

    value, gradients = jax.jit(jax.value_and_grad(distance, (0, 1)), **QUICKLY)(z, x_T)
    assert np.isfinite(value)
    compiled = jax.jit(distance, **QUICKLY)
    for place, gradient in enumerate(gradients):
        norm = jnp.linalg.norm(gradient)
        step = 2.5e-4 / norm * gradient  # short, because a predicted x_0 is clipped in each step
        ends = [[z, x_T], [z, x_T]]
        ends[0][place] -= step
        ends[1][place] += step
        below, above = (compiled(*arguments) for arguments in ends)
        assert norm > 0.01
        np.testing.assert_allclose((above - below) / 5e-4, norm, rtol=0.02)


@pytest.mark.long  # the loop itself is measured in tests/diffusion
def test_memory_of_the_gradient_of_decode_grows_with_the_root_of_the_steps(model, codes):
    z, x_T = (np.repeat(code, 64, axis=0) for code in codes)
    used = {}
    for num_steps in (25, 100, 400):
        gradient = jax.jit(jax.grad(lambda x_T, n=num_steps: model.decode(z, x_T, n).sum()))
        used[num_steps] = gradient.lower(x_T).compile().memory_analysis().temp_size_in_bytes
    print("\nbytes of a gradient through decode:", used)
    grown = used[400] - used[25]
    assert grown < 60 * x_T.nbytes, "a plain scan keeps x_t and more for each of 375 steps"
    assert used[400] < 2 * used[100] < 4 * used[25]


def test_core_decodes_as_the_model_and_is_differentiable_in_the_weights(model, codes):
    z, x_T = codes
    settings = dict(process=image_process(model.config), sampler=DDIM, num_steps=STEPS)
    core = programs.decode(model.params, x_T, z, graphdef=model.graphdef, **settings)
    np.testing.assert_allclose(core, model.decode(z, x_T, STEPS), atol=1e-4)
    gradient = jax.grad(lambda params: programs.encode(params, IMAGES, graphdef=model.graphdef).sum())(model.params)
    assert all(np.isfinite(leaf).all() for leaf in flatten(gradient).values())
    check(model.config)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, z, x: m.decode(z[:, :5], x), r"z must have the shape \(N, 8\), not \(4, 5\)"),
        (lambda m, z, x: m.decode(z, np.repeat(x, 2, axis=-1)), r"x_T must have the shape .*, not \(4, 8, 8, 2\)"),
        (lambda m, z, x: m.decode(None, x), "z is None, but tiny needs z of 8 dimensions"),
        (
            lambda m, z, x: m.decode(np.where(z == z[1], np.nan, z), x),
            "1 of 4 z holds values .* not finite; the first is at index 1",
        ),
        (lambda m, z, x: m.move(z[:, :1], "smile", 0.3), "z must have the shape"),
        (lambda m, z, x: m.move(np.where(z == z[2], np.inf, z), "smile", to=0.5), "1 of 4 z holds values"),
        (lambda m, z, x: m.predict(np.full_like(z, np.nan), "smile"), "4 of 4 z hold values"),
        (lambda m, z, x: m.fit_probe("x" * 300, z, [0, 1, 0, 1]), "too long for a file"),
        (lambda m, z, x: m.fit_probe("", z, [0, 1, 0, 1]), "name of a probe must be text"),
        (lambda m, z, x: m.variations(IMAGES, 0), "number of variations must be at least 1, not 0"),
        (lambda m, z, x: m.reconstruct(IMAGES, 0), "1 to 1000 steps, not 0"),
        (lambda m, z, x: m.principal_components(z, 9), "count must be 1 to .* dimensions, not 9"),
    ],
)
def test_codes_and_numbers_that_are_none_are_reported_in_one_line(model, codes, call, message):
    with pytest.raises(UserError, match=message):
        call(model, *codes)


def test_codes_of_other_types_of_number_are_taken(model, codes):
    z, x_T = codes
    np.testing.assert_allclose(
        model.decode(z.astype(np.float64), x_T.astype(np.float64), STEPS), model.decode(z, x_T, STEPS), atol=1e-5
    )


def test_probe_is_not_called_like_a_class_of_another(one_device):
    model = random_model(one_device, probes={})
    z = model.encode(np.random.default_rng(0).uniform(-1, 1, (12, 8, 8, 1)).astype(np.float32))
    probe = model.fit_probe("hue", z, ["r", "g", "b"] * 4)
    assert set(model.predict(z, "hue")) <= {"r", "g", "b"}
    with pytest.raises(UserError, match="hue=r is already the name of a class of another probe"):
        model.fit_probe("hue=r", z, [0, 1] * 6)
    with pytest.raises(UserError, match=r"hue has a direction for each class.*hue=b, hue=g, hue=r"):
        model.edit(IMAGES, "hue")
    assert model.fit_probe("hue", z, ["r", "g", "b"] * 4) is not probe
