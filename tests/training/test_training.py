"""The step against float64 arithmetic, invariance to the split of a batch, checkpoints."""

import dataclasses
import itertools
import json
import signal
import struct
import sys
import threading
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorboardX.proto import event_pb2

from diffae_jax.data.batches import on_devices
from diffae_jax.runtime import precision
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.interrupts import Stopped
from diffae_jax.runtime.sharding import on_host, replicated, shard_array, split_batch, state_shardings
from diffae_jax.stages.autoencoder import autoencoder_program
from diffae_jax.training import health
from diffae_jax.training.checkpoint import Checkpoints, latest_step
from diffae_jax.training.loop import Intervals, Periodic, Window, fit
from diffae_jax.training.metrics import MetricsWriter
from diffae_jax.training.program import compile_program, count_flops, run_key
from diffae_jax.training.state import make_optimizer
from diffae_jax.training.step import share_of_start

BATCH = 16


def quadratic_loss(params, batch, keys):
    """(w . x - y)^2 of each sample, with an all but invisible use of the keys."""
    del keys
    return jnp.square(batch["x"] @ params["part"]["w"] - batch["y"]), {}


def quadratic_batches(seed=0):
    rng = np.random.default_rng(seed)
    while True:
        x = rng.normal(size=(BATCH, 3)).astype(np.float32)
        yield {"x": x, "y": (x @ np.float32([1, -2, 3])).astype(np.float32)}


def abstract(array, sharding):
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def quadratic_program(
    mesh, loss_fn=quadratic_loss, type_="float32", weight_decay=0.0, abstract_batch=None, **overrides
):
    settings = dict(ema_decay=0.9, max_grad_norm=1.0) | overrides
    return compile_program(
        lambda key: {"part": {"w": jnp.zeros(3)}},
        loss_fn,
        abstract_batch or jax.tree.map(lambda a: abstract(a, split_batch(mesh)), next(quadratic_batches())),
        mesh=mesh,
        optimizer=make_optimizer(0.1, weight_decay),
        precision=type_,
        **settings,
    )


@pytest.mark.parametrize(("weight_decay", "ema_warmup"), [(0.0, False), (0.01, True)])
def test_steps_equal_adam_with_clipping_and_average_in_float64(one_device, weight_decay, ema_warmup):
    program = quadratic_program(one_device, weight_decay=weight_decay, ema_decay=0.3, ema_warmup=ema_warmup)
    key = run_key(0, one_device)
    state = program.init(key)
    w = ema = m = v = np.zeros(3)
    for step, batch in enumerate(itertools.islice(quadratic_batches(), 5), start=1):
        x, y = batch["x"].astype(np.float64), batch["y"].astype(np.float64)
        gradient = 2 * ((x @ w - y)[:, None] * x).mean(0)
        norm = np.linalg.norm(gradient)
        assert norm > 1, "the test must clip"
        gradient = gradient / norm
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        update = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        loss = np.square(x @ w - y).mean()
        w = w - 0.1 * (update + weight_decay * w)
        decay = min(0.3, step / (9 + step)) if ema_warmup else 0.3  # the warm-up ends within these steps
        ema = decay * ema + (1 - decay) * w
        state, metrics = program.step(state, next(on_devices(iter([batch]), split_batch(one_device))), key)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    unpack = program.packing.unpack
    np.testing.assert_allclose(unpack(state.params)["part"]["w"], w, rtol=1e-5)
    np.testing.assert_allclose(unpack(state.ema)["part"]["w"], ema, rtol=1e-5)
    assert int(state.step) == 5


@pytest.mark.parametrize("ema_warmup", [True, False])
def test_share_of_the_start_is_that_of_an_average_of_ones(ema_warmup):
    average = 1.0
    for step in range(150):
        decay = min(0.99, (1 + step) / (10 + step)) if ema_warmup else 0.99
        average *= decay  # everything after the start is 0
        np.testing.assert_allclose(share_of_start(step + 1, 0.99, ema_warmup), average, rtol=1e-9, atol=1e-12)


def run_autoencoder(config, mesh, program=None):
    """Returns the losses of three steps on noise, and the state after them."""
    program = program or autoencoder_program(config, mesh)
    init_key, step_key = jax.random.split(run_key(0, mesh))
    state = program.init(init_key)
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(3):
        images = rng.integers(0, 256, (config.train.batch_size, *config.image_shape), dtype=np.uint8)
        state, metrics = program.step(state, {"image": shard_array(images, split_batch(mesh))}, step_key)
        losses.append(float(metrics["loss"]))
    return losses, state


@pytest.fixture(scope="module")
def wide_config():
    """Wide enough that FSDP splits some arrays."""
    from tests.tiny import get_config

    config = get_config()
    config.model.update(base_channels=64, channel_mults=(1,))
    return config


@pytest.fixture(scope="module")
def reference(wide_config, one_device):
    losses, state = run_autoencoder(wide_config, one_device)
    return losses, jax.device_get(state)


@pytest.fixture(scope="module")
def program_of(wide_config, eight_devices):
    """A function that compiles the training step for eight devices, once for each execution."""

    @cache
    def program(**execution):
        config = wide_config.copy_and_resolve_references()
        config.execution.update(execution)
        return autoencoder_program(config, eight_devices)

    return program


ALL_AT_ONCE = {"sharding": "fsdp", "num_microbatches": 2, "remat": True}


@pytest.mark.parametrize(
    "execution",
    [
        ALL_AT_ONCE,
        *(
            pytest.param(execution, marks=pytest.mark.long)
            for execution in (
                {"sharding": "replicated"},
                {"sharding": "fsdp"},
                {"sharding": "replicated", "num_microbatches": 2},
            )
        ),
    ],
    ids=str,
)
def test_eight_devices_fsdp_accumulation_and_remat_equal_one_device(
    wide_config, reference, eight_devices, program_of, execution
):
    losses, state = run_autoencoder(wide_config, eight_devices, program_of(**execution))
    split = [leaf for leaf in jax.tree.leaves(state) if not leaf.sharding.is_fully_replicated]
    assert bool(split) == (execution["sharding"] == "fsdp")
    expected_losses, expected = reference
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-5)
    assert len(set(losses)) == len(losses), "the steps must differ"
    for ours, theirs in zip(jax.tree.leaves(on_host(state.params)), jax.tree.leaves(expected.params), strict=True):
        # Adam divides tiny gradients by their own size: compare against the length of a step
        np.testing.assert_allclose(ours, theirs, atol=0.05 * wide_config.train.learning_rate)


def test_state_is_donated_and_a_step_moves_nothing_between_host_and_devices(wide_config, eight_devices, program_of):
    program = program_of(**ALL_AT_ONCE)
    text = program.step.as_text()
    for operation in ("infeed", "outfeed", "SendDone", "RecvDone", "callback"):
        assert operation not in text, operation
    key = run_key(0, eight_devices)
    state = program.init(key)
    images = np.zeros((wide_config.train.batch_size, *wide_config.image_shape), np.uint8)
    batch = {"image": shard_array(images, split_batch(eight_devices))}
    with jax.transfer_guard("disallow"):
        new_state, metrics = program.step(state, batch, key)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert metrics["loss"].sharding.is_fully_replicated
    assert program.packing.unpack(new_state.params)["unet"]["conv_in"]["kernel"].shape == (3, 3, 1, 64)
    with pytest.raises(TypeError):
        program.step(new_state, {"image": batch["image"][:8]}, key)  # another shape fails, it does not compile


def test_float16_halves_and_doubles_the_loss_scale_and_skips_bad_steps(one_device):
    def overflowing_loss(params, batch, keys):
        loss, metrics = quadratic_loss(params, batch, keys)
        return loss + jnp.where(batch["y"] == 77, jnp.inf, 0) * params["part"]["w"][0], metrics

    program = quadratic_program(one_device, overflowing_loss, type_="float16")
    key = run_key(0, one_device)
    state = program.init(key)
    good = next(quadratic_batches())
    bad = {**good, "y": good["y"].copy()}
    bad["y"][3] = 77

    def step(state, batch):
        return program.step(state, next(on_devices(iter([batch]), split_batch(one_device))), key)

    state, metrics = step(state, good)
    assert float(metrics["loss_scale"]) == 2**15
    before = jax.device_get(state)
    state, metrics = step(state, bad)
    assert not float(metrics["finite"])
    assert float(state.loss_scale.scale) == 2**14
    assert int(state.step) == 2
    for name in ("params", "ema", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(getattr(state, name)), getattr(before, name))
    state = dataclasses.replace(
        state, loss_scale=dataclasses.replace(state.loss_scale, good_steps=jnp.asarray(1999, jnp.int32))
    )
    state, _ = step(state, good)
    assert float(state.loss_scale.scale) == 2**15
    assert int(state.loss_scale.good_steps) == 0

    exact = quadratic_program(one_device)
    unscaled, _ = exact.step(exact.init(key), next(on_devices(iter([good]), split_batch(one_device))), key)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), before.params, jax.device_get(unscaled.params))


@pytest.mark.parametrize("type_", [pytest.param("bfloat16", marks=pytest.mark.long), "float16"])
def test_half_precision_trains_close_to_float32_with_float32_state(tiny_config, one_device, type_):
    expected, _ = run_autoencoder(tiny_config, one_device)
    tiny_config.train.precision = type_
    losses, state = run_autoencoder(tiny_config, one_device)
    np.testing.assert_allclose(losses, expected, rtol=0.05)
    assert losses != expected
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.ema))} == {jnp.dtype("float32")}


def test_fsdp_splits_only_large_arrays_along_their_largest_divisible_axis(eight_devices):
    shapes = {"large": (3, 3, 128, 256), "odd": (300, 301), "small": (8, 8), "tall": (65536,)}
    abstract = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    shards = {name: s.shard_shape(shapes[name]) for name, s in state_shardings(abstract, eight_devices, "fsdp").items()}
    assert shards == {"large": (3, 3, 128, 32), "odd": (300, 301), "small": (8, 8), "tall": (8192,)}


# --- the loop ------------------------------------------------------------------------------------


def run_loop(
    folder, mesh, num_steps, batches=None, periodic=(), log_every=3, save_every=4, program=None, sample_names=None
):
    checkpoints = Checkpoints(folder / "checkpoints")
    first_step = checkpoints.latest or 0
    if batches is None:
        batches = on_devices(itertools.islice(quadratic_batches(), first_step, None), split_batch(mesh))
    writer = MetricsWriter(folder, "test", "images", first_step, tensorboard=False)
    try:
        return fit(
            program or quadratic_program(mesh),
            batches=batches,
            batch_size=BATCH,
            key=run_key(0, mesh),
            intervals=Intervals(num_steps, log_every, save_every),
            periodic=list(periodic),
            checkpoints=checkpoints,
            writer=writer,
            sample_names=sample_names,
        )
    finally:
        checkpoints.close()
        writer.close()


def rows(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def test_resumed_loop_writes_the_same_metrics_and_state(tmp_path, one_device):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = run_loop(tmp_path / "whole", one_device, 10)
    for num_steps in (4, 5, 10):  # 4 and 5 lie inside reports of 3 steps
        parts = run_loop(tmp_path / "parts", one_device, num_steps)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(parts), jax.device_get(whole))
    expected = rows(tmp_path / "whole")
    assert [row["step"] for row in expected] == [3, 6, 9, 10]
    assert rows(tmp_path / "parts")[-2:] == expected[-2:]


@pytest.fixture(scope="module")
def three_steps_a_call(one_device):
    """A program with three steps per call on data that stay on the device, and its batches."""
    samples = jax.tree.map(lambda *parts: np.concatenate(parts), *itertools.islice(quadratic_batches(), 12))
    rows = np.arange(12 * BATCH, dtype=np.int32).reshape(4, 3, BATCH)
    whole, split = replicated(one_device), split_batch(one_device, axis=1)
    data = jax.tree.map(lambda a: shard_array(a, whole), samples)
    shapes = (jax.tree.map(lambda a: abstract(a, whole), samples), abstract(rows[0], split))
    program = quadratic_program(one_device, abstract_batch=shapes, steps_per_call=3)
    return program, lambda first_step: ((data, shard_array(r, split)) for r in rows[first_step // 3 :])


def test_several_steps_a_call_equal_single_steps(tmp_path, one_device, three_steps_a_call):
    program, calls_from = three_steps_a_call
    for name in ("single", "several"):
        (tmp_path / name).mkdir()
    single = run_loop(tmp_path / "single", one_device, 12)
    run_loop(tmp_path / "several", one_device, 5, batches=calls_from(0), program=program)  # ends after the second call
    several = run_loop(tmp_path / "several", one_device, 12, batches=calls_from(6), program=program)
    assert int(several.step) == 12
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), jax.device_get(several), jax.device_get(single))
    ours, expected = rows(tmp_path / "several"), rows(tmp_path / "single")
    assert [row["step"] for row in ours] == [row["step"] for row in expected] == [3, 6, 9, 12]
    np.testing.assert_allclose([row["loss"] for row in ours], [row["loss"] for row in expected], rtol=1e-5)


def test_what_is_due_within_a_call_is_done_after_it(tmp_path, one_device, three_steps_a_call):
    program, calls_from = three_steps_a_call
    seen = []
    task = Periodic(4, lambda state, step, metrics: seen.append(step) or {})
    run_loop(tmp_path, one_device, 12, calls_from(0), [task], log_every=2, save_every=5, program=program)
    assert seen == [6, 9, 12]
    assert [row["step"] for row in rows(tmp_path)] == [3, 6, 9, 12]
    assert latest_step(tmp_path / "checkpoints") == 12
    assert (tmp_path / "checkpoints" / "6").exists()


def test_non_finite_step_within_a_call_is_named(tmp_path, one_device, three_steps_a_call):
    program, calls_from = three_steps_a_call
    data, _ = next(calls_from(0))
    poisoned = {**data, "y": data["y"].at[7 * BATCH].set(np.nan)}  # of step 8
    calls = ((poisoned, rows) for _, rows in calls_from(0))
    with pytest.raises(UserError, match=r"Step 8: the loss is nan.*you can resume from step 6"):
        run_loop(tmp_path, one_device, 12, batches=calls, program=program)


def test_rows_of_other_stages_are_kept_when_one_resumes(tmp_path):
    for stage, unit, steps in (("autoencoder", "images", (1, 2, 3)), ("prior", "latents", (1, 2, 3, 4))):
        writer = MetricsWriter(tmp_path, stage, unit, 0, tensorboard=False)
        for step in steps:
            writer.write(step, 16 * step, loss=0.5)
        writer.close()
    MetricsWriter(tmp_path, "prior", "latents", 2, tensorboard=False).close()
    seen = [(row["stage"], row["step"], row.get("images"), row.get("latents")) for row in rows(tmp_path)]
    assert seen == [("autoencoder", s, 16 * s, None) for s in (1, 2, 3)] + [("prior", s, None, 16 * s) for s in (1, 2)]


def tensorboard_events(folder):
    """The events of event files. A record is a length, its checksum, an event, its checksum."""
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack_from("<Q", content)
            yield event_pb2.Event.FromString(content[12 : 12 + length])
            content = content[12 + length + 4 :]


def shown_by_tensorboard(folder):
    """The values of each name by step. A later file hides earlier values from its first step."""
    values = {}
    for event in tensorboard_events(folder):
        if event.session_log.status == event_pb2.SessionLog.START:
            values = {name: {s: v for s, v in row.items() if s < event.step} for name, row in values.items()}
        for value in event.summary.value:
            assert event.step not in values.setdefault(value.tag, {})
            values[value.tag][event.step] = value.simple_value
    return values


def test_tensorboard_shows_every_step_once_though_the_run_resumed(tmp_path):
    for first_step, value in ((0, 0.5), (2, 0.25)):  # the first went on to a step 4 of which nothing was saved
        writer = MetricsWriter(tmp_path, "prior", "latents", first_step, tensorboard=True)
        for step in range(first_step + 1, 5):
            writer.write(step, 16 * step, loss=value, **{"z/rank": float(step)})
        writer.close()
    assert len(list((tmp_path / "tensorboard" / "prior").iterdir())) == 2
    assert shown_by_tensorboard(tmp_path / "tensorboard" / "prior") == {
        "loss": {1: 0.5, 2: 0.5, 3: 0.25, 4: 0.25},
        "z/rank": {1: 1, 2: 2, 3: 3, 4: 4},
    }
    assert "tensorflow" not in sys.modules


def test_periodic_tasks_run_at_their_steps_and_after_the_last(tmp_path, one_device):
    seen = []

    def task(state, step, metrics):
        seen.append((step, int(state.step)))
        assert metrics["loss"] > 0
        return {"answer": 42.0}

    run_loop(tmp_path, one_device, 5, periodic=[Periodic(2, task)])
    assert seen == [(2, 2), (4, 4), (5, 5)]
    assert [row["step"] for row in rows(tmp_path) if "answer" in row] == [2, 4, 5]


def test_stop_where_tasks_are_due_lets_none_of_them_out(tmp_path, one_device):
    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    signals = iter([signal.SIGTERM])

    def task(state, step, metrics):
        return {"answer": float(state.step)}

    def stopping_task(state, step, metrics):
        for number in signals:
            signal.raise_signal(number)
        return {}

    run_loop(tmp_path / "whole", one_device, 5, periodic=[Periodic(2, task)])
    with pytest.raises(Stopped) as stopped:
        run_loop(tmp_path / "stopped", one_device, 5, periodic=[Periodic(2, stopping_task), Periodic(2, task)])
    assert (stopped.value.step, latest_step(tmp_path / "stopped" / "checkpoints")) == (2, 2)
    run_loop(tmp_path / "stopped", one_device, 5, periodic=[Periodic(2, task)])
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")


def test_non_finite_loss_stops_naming_the_step_and_keeps_the_last_good_checkpoint(tmp_path, one_device):
    def poisoned_batches():
        for step, batch in enumerate(quadratic_batches(), start=1):
            if step == 7:
                batch["x"][0] = np.nan
            yield batch

    with pytest.raises(UserError, match=r"Step 7: the loss is nan.*you can resume from step 4"):
        run_loop(tmp_path, one_device, 10, batches=on_devices(poisoned_batches(), split_batch(one_device)))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest == 4
    state, _ = checkpoints.restore(4, quadratic_program(one_device).abstract_state)
    checkpoints.close()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_bad_step_names_its_samples_at_once_if_they_have_names(tmp_path, one_device):
    def poisoned_batches():
        for step, batch in enumerate(quadratic_batches(), start=1):
            if step == 2:
                batch["x"][[3, 5]] = np.nan
            yield batch

    seen = []
    batches = on_devices(poisoned_batches(), split_batch(one_device))
    with pytest.raises(UserError) as error:
        run_loop(
            tmp_path,
            one_device,
            10,
            batches=batches,
            periodic=[Periodic(1, lambda state, step, metrics: seen.append(step) or {})],
            sample_names=lambda step: [f"{step}-{i}" for i in range(BATCH)],
        )
    assert seen == [1]
    assert str(error.value) == (
        "Step 2: the loss is nan and the gradient norm nan, so training stopped (nothing has been saved yet). The loss "
        "is not finite for 2 of 16 images (2-3, 2-5), because the x itself is not finite. Look for broken images, or "
        "set a lower --config.train.learning_rate."
    )


def test_steps_with_a_far_higher_loss_are_counted(tmp_path):
    window = Window()
    for step, loss in enumerate([9.0, 9.0, *[1.0] * 10, 20.0, 2.0, 300.0, 1.0]):
        window.add({"loss": loss, "finite": 1.0})
        if step == 12:  # saved and resumed
            window = Window(**json.loads(json.dumps(dataclasses.asdict(window))))
    assert window.take_means()["loss_spikes"] == 2
    window.add({"loss": 1e6, "finite": 1.0})
    assert window.take_means()["loss_spikes"] == 0, "one step is no mean to compare with"


def test_what_a_killed_save_left_is_gone_at_once_but_not_for_a_reader(tmp_path):
    unfinished = tmp_path / "3.tmp.orbax-checkpoint-tmp-1"
    unfinished.mkdir()
    (unfinished / "part").write_text("half")
    assert latest_step(tmp_path) is None
    assert unfinished.exists()
    threads = set(threading.enumerate())
    checkpoints = Checkpoints(tmp_path)
    assert not unfinished.exists()
    assert set(threading.enumerate()) <= threads, "a thread that outlives the program prints a traceback"
    assert checkpoints.latest is None
    checkpoints.close()


# --- health and precision ------------------------------------------------------------------------


def test_effective_rank_counts_equally_strong_directions():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    centered = rng.normal(size=(200, 5))
    centered = np.linalg.qr(centered - centered.mean(0))[0]
    z = centered @ basis[:5] + 3
    np.testing.assert_allclose(health.effective_rank(jnp.asarray(z, jnp.float32)), 5, rtol=1e-4)


def test_z_health_gives_every_image_the_z_of_another():
    z = jnp.arange(6.0)[:, None] * jnp.ones((6, 2))
    values = health.z_health(z, lambda given: jnp.abs(given - z).mean(1))
    assert float(values["z/loss_own"]) == 0
    assert float(values["z/loss_shuffled"]) >= 1


def test_health_line_warns_when_z_is_ignored():
    values = {"z/effective_rank": 3.0, "grad_norm/encoder": 0.1, "z/loss_own": 0.10, "z/loss_shuffled": 0.1001}
    assert "WARNING" in health.describe_z(values, images=100_000)
    assert "start at zero" in health.describe_z(values, images=100)
    assert "The UNet uses z." in health.describe_z({**values, "z/loss_shuffled": 0.2}, images=100_000)


def test_flops_are_counted_or_unknown_where_the_compiler_does_not_tell():
    lowered = jax.jit(lambda a: a @ a).lower(jax.ShapeDtypeStruct((8, 8), jnp.float32))
    written, compiled = lowered.cost_analysis(), lowered.compile().cost_analysis()
    assert count_flops(written, compiled, num_devices=4, num_microbatches=3) == 3 * 2 * 8**3
    assert count_flops(None, compiled, num_devices=4, num_microbatches=3) == 4 * 3 * 2 * 8**3  # as on GPU and TPU
    assert count_flops(None, None, num_devices=4, num_microbatches=3) is None


def test_float16_without_a_working_scale_stops():
    metrics = {"loss": np.inf, "grad_norm": np.inf, "finite": 0.0, "loss_scale": 0.5}
    with pytest.raises(UserError, match="Step 9: gradients overflow"):
        health.check_finite(9, metrics, None)
    health.check_finite(9, {**metrics, "loss_scale": 1024.0}, None)


def test_precision_is_float32_on_cpu():
    assert precision.resolve_precision("auto") == "float32"
    assert precision.resolve_precision("bfloat16") == "bfloat16"


def test_optimizer_is_adam_without_weight_decay():
    params = {"w": jnp.ones(2)}
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = make_optimizer(0.1).update(zero, make_optimizer(0.1).init(params), params)
    assert not np.any(optax.tree.norm(updates))
