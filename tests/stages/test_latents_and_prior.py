"""z of a data set: files, statistics and order; training of the prior and its samples."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffae_jax import DiffAE
from diffae_jax.data.batches import batches_of_rows, on_devices, ordered_batches
from diffae_jax.data.latents import LatentStatistics, chunk_path, chunk_starts, read_chunks, write_chunk
from diffae_jax.data.sources import Arrays
from diffae_jax.diffusion.process import Process
from diffae_jax.diffusion.samplers import ddim_decode, ddim_grid
from diffae_jax.models import abstract_model, split
from diffae_jax.models.build import builder, prior_builder
from diffae_jax.models.functional import digest
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.files import write_json
from diffae_jax.runtime.sharding import on_host, replicated, shard_array, split_batch
from diffae_jax.stages.prior import ZERO_PREDICTOR_LOSS, prior_loss, prior_program
from diffae_jax.training.program import run_key

# --- statistics and files ------------------------------------------------------------------------


def test_statistics_of_parts_are_those_of_the_whole_in_float64():
    scale, shift = np.array([1, 10, 0.01, 1, 3]), np.array([0, 1000, 5, -1, 1e4])
    z = (np.random.default_rng(0).normal(size=(3000, 5)) * scale + shift).astype(np.float32)
    ours = LatentStatistics.of([z[:1], z[1:1025], z[1025:1027], z[1027:]])
    exact = z.astype(np.float64)
    np.testing.assert_allclose(ours.mean, exact.mean(0), rtol=1e-7)
    np.testing.assert_allclose(ours.std, exact.std(0, ddof=1), rtol=1e-7)
    normal = ours.normalize(z).astype(np.float64)
    np.testing.assert_allclose(normal.std(0, ddof=1), 1, rtol=1e-3)
    np.testing.assert_allclose(ours.denormalize(ours.normalize(z)), z, rtol=1e-6, atol=1e-6)


def test_dimension_without_variance_and_single_image_are_refused():
    z = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    z[:, 2] = 0.1  # no sum of float32 gives exactly fifty times that
    with pytest.raises(
        UserError, match=r"all 50 images have the same value in 1 of its 4 dimensions \(the first is 2\)"
    ):
        LatentStatistics.of([z[:20], z[20:]])
    with pytest.raises(UserError, match="at least two images, not 1"):
        LatentStatistics.of([z[:1]])


@pytest.fixture
def parts(tmp_path):
    """z of 2,500 images in three parts."""
    z = np.random.default_rng(0).normal(size=(2500, 3)).astype(np.float32)
    ids = [f"é/{i}.png" for i in range(len(z))]
    for start in chunk_starts(len(z)):
        write_chunk(chunk_path(tmp_path, "training", start), ids[start : start + 1024], z[start : start + 1024])
    write_json(tmp_path / "inputs.json", {"training": len(z), "held_out": 0})
    return tmp_path, ids, z


def test_parts_come_back_whole_and_in_order(parts):
    folder, ids, z = parts
    assert sorted(path.name for path in folder.glob("*.npz")) == [f"training-0000{i}.npz" for i in range(3)]
    read = list(read_chunks(folder, "training"))
    assert list(itertools.chain.from_iterable(ids for ids, _ in read)) == ids
    np.testing.assert_array_equal(np.concatenate([z for _, z in read]), z)
    assert list(read_chunks(folder, "held_out")) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes().replace(b"\x00\x00", b"\x00\x01", 50)),
        lambda path: np.savez(path, ids=np.asarray(["a"]), z=np.zeros((1, 3), np.float32)),
        lambda path: np.savez_compressed(path, ids=np.asarray(["a"] * 1024), z=np.zeros((1024, 3), np.float32)),
        lambda path: np.savez(path, ids=np.asarray(["a"] * 1024), z=np.asarray(["a"] * 1024)),
        lambda path: np.savez(path, ids=np.asarray(["a"] * 1024), z=np.zeros(1024, np.float32)),
        lambda path: np.savez(path, ids=np.asarray(["a"] * 1024), z=np.full((1024, 3), np.nan, np.float32)),
    ],
    ids=["missing", "cut", "empty", "changed", "too short", "packed", "text", "flat", "not finite"],
)
def test_damaged_part_is_named(parts, damage):
    folder, _, _ = parts
    damage(folder / "training-00001.npz")
    with pytest.raises(UserError, match=r"training-00001.npz .*Run the stage latents to encode its images again"):
        list(read_chunks(folder, "training"))


def test_damaged_record_is_reported(parts):
    folder, _, _ = parts
    for count in ("many", 2.5, -1, None, 10**15):
        write_json(folder / "inputs.json", {"training": count})
        with pytest.raises(UserError, match=r"inputs.json is damaged. Remove .* and run the same command again"):
            list(read_chunks(folder, "training"))


def test_no_flipped_bit_of_a_part_leads_to_another_error(parts):
    folder, _, _ = parts
    write_chunk(folder / "training-00002.npz", ["a"] * 452, np.zeros((452, 3), np.float32))
    content = (folder / "training-00002.npz").read_bytes()
    rng = np.random.default_rng(0)
    headers = [*range(300), *range(len(content) - 300, len(content))]
    for at in rng.choice(headers, 150, replace=False):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[at] ^= 1 << bit
            (folder / "training-00002.npz").write_bytes(damaged)
            try:
                list(read_chunks(folder, "training"))
            except UserError as error:
                assert "training-00002.npz" in str(error)  # noqa: PT017 - some bits are of no account


def test_z_that_is_not_finite_is_refused_with_its_image_and_not_written(tmp_path):
    z = np.ones((3, 2), np.float32)
    z[1, 1] = np.inf
    with pytest.raises(UserError, match=r"1 of 3 z is not finite. The first is that of b\.png"):
        write_chunk(tmp_path / "training-00000.npz", ["a.png", "b.png", "c.png"], z)
    assert not list(tmp_path.iterdir())


# --- order ---------------------------------------------------------------------------------------


def rows_of(count, steps=3, **settings):
    settings = dict(batch_size=8, seed=3) | settings
    calls = itertools.islice(batches_of_rows(20, steps=steps, **settings), count)
    return [row.tolist() for call in calls for row in call]


def test_every_z_comes_once_an_epoch_and_epochs_differ():
    order = list(itertools.chain.from_iterable(rows_of(5)))
    epochs = [order[start : start + 20] for start in range(0, 120, 20)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert rows_of(5) != rows_of(5, seed=4)


@pytest.mark.parametrize("first_step", range(1, 8))
def test_rows_from_any_step_are_the_rest_of_the_rows(first_step):
    assert rows_of(4, first_step=first_step)[:8] == rows_of(6)[first_step : first_step + 8]


def test_rows_do_not_depend_on_the_steps_a_call_nor_on_processes():
    assert rows_of(15, steps=1) == rows_of(5, steps=3) == rows_of(3, steps=5)
    parts = [rows_of(5, num_processes=2, process_index=i) for i in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == rows_of(5)


def test_ordered_batches_bring_every_image_once_and_fill_up_the_last():
    numbers = Arrays(np.arange(50, dtype=np.uint8).reshape(50, 1, 1), [""] * 50)
    batches = [batch.ravel().tolist() for batch in ordered_batches(numbers, 10, 31, batch_size=8)]
    assert batches == [list(range(10, 18)), list(range(18, 26)), [*range(26, 31), 30, 30, 30]]


# --- training ------------------------------------------------------------------------------------


def latent_batches(config, mesh, z, first_step=0):
    rows = batches_of_rows(
        len(z),
        batch_size=config.prior.batch_size,
        steps=config.execution.steps_per_dispatch,
        seed=0,
        first_step=first_step,
    )
    resident = shard_array(z, replicated(mesh))
    return ((resident, rows) for rows in on_devices(rows, split_batch(mesh, axis=1)))


def run_prior(config, mesh, num_calls=2):
    z = np.random.default_rng(0).normal(size=(100, config.model.z_dim)).astype(np.float32)
    program = prior_program(config, mesh, len(z))
    init_key, step_key = jax.random.split(run_key(0, mesh, 1))
    state, losses = program.init(init_key), []
    for batch in itertools.islice(latent_batches(config, mesh, z), num_calls):
        state, metrics = program.step(state, batch, step_key)
        losses += metrics["loss"].tolist()
    return losses, state


@pytest.fixture(scope="module")
def wide_config():
    """With a prior wide enough that FSDP splits some arrays."""
    from tests.tiny import get_config

    config = get_config()
    config.prior.update(width=256)
    return config


@pytest.fixture(scope="module")
def alone(wide_config, one_device):
    losses, state = run_prior(wide_config, one_device)
    return losses, jax.device_get(state.params)


@pytest.mark.parametrize("sharding", [pytest.param("replicated", marks=pytest.mark.long), "fsdp"])
def test_eight_devices_train_the_prior_of_one(wide_config, alone, eight_devices, sharding):
    config = wide_config.copy_and_resolve_references()
    config.execution.sharding = sharding
    losses, state = run_prior(config, eight_devices)
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state)) == (sharding == "fsdp")
    np.testing.assert_allclose(losses, alone[0], rtol=1e-5)
    assert len(set(losses)) == 8
    for ours, theirs in zip(jax.tree.leaves(on_host(state.params)), jax.tree.leaves(alone[1]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.05 * config.prior.learning_rate)


def test_steps_a_call_change_nothing(wide_config, alone, one_device):
    config = wide_config.copy_and_resolve_references()
    config.execution.steps_per_dispatch = 2
    losses, _ = run_prior(config, one_device, num_calls=4)
    np.testing.assert_allclose(losses, alone[0], rtol=1e-5)


def test_call_moves_nothing_but_rows_and_takes_over_the_state(tiny_config, eight_devices):
    z = np.zeros((100, tiny_config.model.z_dim), np.float32)
    program = prior_program(tiny_config, eight_devices, len(z))
    text = program.step.as_text()
    for operation in ("infeed", "outfeed", "SendDone", "RecvDone", "callback"):
        assert operation not in text, operation
    state, key = program.init(run_key(0, eight_devices)), run_key(0, eight_devices)
    batch = next(latent_batches(tiny_config, eight_devices, z))
    with jax.transfer_guard("disallow"):
        program.step(state, batch, key)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not batch[0].is_deleted()


@pytest.mark.parametrize("loss", ["l1", "mse"])
def test_loss_of_a_network_that_says_nothing(tiny_config, loss):
    graphdef, params = split(prior_builder(tiny_config, "float32")(nnx.Rngs(0)))
    params["out"] = jax.tree.map(jnp.zeros_like, params["out"])
    keys = jax.random.split(jax.random.key(0), 4000)
    z = jnp.ones((4000, tiny_config.model.z_dim))
    losses, _ = jax.jit(prior_loss(graphdef, Process("constant", error=loss)))(params, z, keys)
    np.testing.assert_allclose(losses.mean(), ZERO_PREDICTOR_LOSS[loss], rtol=0.02)


# --- sampling ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights():
    """A config and random weights of its networks, including those that start at zero."""
    from tests.tiny import get_config

    config = get_config()
    rng = np.random.default_rng(0)
    networks = [abstract_model(make(config, "float32"))[1] for make in (builder, prior_builder)]
    random = jax.tree.map(lambda a: rng.normal(scale=0.1, size=a.shape).astype(np.float32), networks)
    statistics = LatentStatistics(*rng.uniform(1, 2, (2, config.model.z_dim)).astype(np.float32))
    return config, *random, statistics


def model_on(mesh, weights):
    config, autoencoder, prior, statistics = weights
    return DiffAE(config, autoencoder, statistics=statistics, prior=prior, mesh=mesh)


def test_sample_is_latent_ddim_then_decoder_one_by_one(weights, one_device):
    model = model_on(one_device, weights)
    config, _, prior, statistics = weights
    sampled = model.sample(3, seed=5, num_steps=4, num_latent_steps=7)
    grid = ddim_grid(config.prior.schedule, 7)
    network = nnx.merge(model.prior_graphdef, prior)
    for i in range(3):
        x_key, z_key = jax.random.split(jax.random.fold_in(jax.random.key(5), i))
        z_T = jax.random.normal(z_key, (1, config.model.z_dim))
        z = np.asarray(ddim_decode(network.noise_predictor(grid.t), z_T, grid, clip=False))
        x_T = np.asarray(jax.random.normal(x_key, (1, *config.image_shape)))
        expected = model.decode(statistics.denormalize(z), x_T, num_steps=4)
        np.testing.assert_allclose(sampled[i : i + 1], expected, atol=2e-5)


def test_samples_depend_on_seed_and_number_alone(weights, one_device, eight_devices):
    few, many = (model_on(mesh, weights) for mesh in (one_device, eight_devices))
    images = many.sample(20, seed=1, num_steps=3, num_latent_steps=5)
    assert images.shape == (20, 8, 8, 1)
    assert len({image.tobytes() for image in images}) == 20
    np.testing.assert_allclose(few.sample(3, seed=1, num_steps=3, num_latent_steps=5), images[:3], atol=1e-5)
    assert np.abs(few.sample(3, seed=2, num_steps=3, num_latent_steps=5) - images[:3]).max() > 0.1


def test_sampling_is_one_program_compiled_once(weights, one_device):
    from diffae_jax.inference import programs

    model = model_on(one_device, weights)
    before = programs.sample._cache_size()
    for seed in range(3):
        model.sample(5, seed=seed, num_steps=2, num_latent_steps=2)
    assert programs.sample._cache_size() == before + 1


def test_baseline_samples_from_noise_alone(weights, one_device):
    config = weights[0].copy_and_resolve_references()
    with config.unlocked():
        config.model.z_dim = None
    shapes = abstract_model(builder(config, "float32"))[1]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: rng.normal(scale=0.1, size=a.shape).astype(np.float32), shapes)
    baseline = DiffAE(config, params, mesh=one_device)
    images = baseline.sample(2, seed=1, num_steps=3)
    assert images.shape == (2, 8, 8, 1)
    assert np.abs(images[0] - images[1]).max() > 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(num_images=0), "number of images must be at least 1, not 0"),
        (dict(num_images=2, num_steps=1001), "1 to 1000 steps, not 1001"),
        (dict(num_images=2, num_latent_steps=0), "1 to 1000 steps, not 0"),
        (dict(num_images=2, seed=2**31), "seed must be a whole number between 0 and 2147483647, not 2147483648"),
        (dict(num_images=2, seed=-1), "seed must be a whole number between"),
    ],
    ids=str,
)
def test_samples_that_cannot_be_are_refused(weights, one_device, settings, message):
    with pytest.raises(UserError, match=message):
        model_on(one_device, weights).sample(**settings)


def test_model_without_prior_says_how_to_get_one(weights, one_device):
    config, autoencoder, _, statistics = weights
    model = DiffAE(config, autoencoder, statistics=statistics, mesh=one_device)
    with pytest.raises(UserError, match=r"tiny has no prior.*--stages=latents,prior"):
        model.sample(2)
    with pytest.raises(UserError, match="1 to 1000 steps, not 2000"):
        model.decode(np.zeros((1, 8), np.float32), num_steps=2000)


def test_digest_tells_weights_apart(weights):
    _, autoencoder, _, _ = weights
    assert digest(autoencoder) == digest(jax.tree.map(np.copy, autoencoder))
    changed = jax.tree.map(np.copy, autoencoder)
    changed["unet"]["conv_in"]["bias"][3] += 1e-7
    assert digest(changed) != digest(autoencoder)
