"""The command itself, as real processes: whole, killed, stopped, by two processes, and with mistakes."""

import collections
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from PIL import Image

from diffae_jax.api import DiffAE
from diffae_jax.data.sources import digits
from diffae_jax.data.transforms import to_float
from diffae_jax.errors import UserError
from diffae_jax.models.functional import flatten

ROOT = Path(__file__).parent.parent
MANY_STEPS = "--config.train.num_images=640"  # 40 steps: time enough to be killed in
TRAINING = "--stages=autoencoder"


def start(workdir, *arguments, devices=1, **popen):
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", "diffae_jax.main", "--config=tests/tiny.py", f"--workdir={workdir}", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **popen
    )


def finish(process, code=0, timeout=300):
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == code, output
    return output


def wait_for_checkpoint(process, workdir, step):
    deadline = time.monotonic() + 300
    while not list((workdir / "autoencoder" / "checkpoints").glob(f"{step}/_CHECKPOINT_METADATA")):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.005)


def rows(workdir):
    """The rows of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def final_state(workdir):
    steps = [int(path.name) for path in (workdir / "autoencoder" / "checkpoints").glob("[0-9]*")]
    return ocp.load_checkpointables(workdir / "autoencoder" / "checkpoints" / str(max(steps)))["state"]


def assert_same_run(workdir, other):
    assert rows(workdir) == rows(other)
    jax.tree.map(np.testing.assert_array_equal, final_state(workdir), final_state(other))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 40 steps that nothing interrupted, and what it printed."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, finish(start(workdir, MANY_STEPS))


def test_run_leaves_everything_that_was_promised(whole):
    workdir, output = whole
    assert json.loads((workdir / "config.json").read_text())["name"] == "tiny"
    logged = rows(workdir)
    assert [row["step"] for row in logged if "loss" in row] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert all(np.isfinite(row["loss"]) for row in logged if "loss" in row)
    assert logged[0]["images"] == 80
    assert {"z/effective_rank", "z/loss_own", "z/loss_shuffled"} <= {name for row in logged for name in row}
    grid = Image.open(workdir / "autoencoder" / "grids" / "0000000640.png")
    assert np.asarray(grid.convert("L")).std() > 10
    results = json.loads((workdir / "evaluation" / "results.json").read_text())
    assert results["num_images"] == 16
    assert 0 < results["steps_2"]["mse_inferred_x_T"] < results["steps_2"]["mse_random_x_T"]
    assert (workdir / "evaluation" / "reconstructions.png").exists()
    for promise in ("parameters", "FLOP", "1,437 to train on, 360 held out", "images/s", "left", "z: effective rank"):
        assert promise in output, promise


def test_finished_run_is_not_repeated(whole):
    workdir, _ = whole
    before = (workdir / "metrics.jsonl").read_bytes()
    output = finish(start(workdir, MANY_STEPS))
    assert "autoencoder: finished, 640 images seen" in output
    assert "evaluation: finished" in output
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_trained_run_loads_as_a_model(whole):
    model = DiffAE.load(whole[0])
    images = to_float(digits()[1].images[:5])
    z = model.encode(images)
    assert z.shape == (5, 8)
    x_T = model.invert(images, z, num_steps=5)
    np.testing.assert_array_equal(model.decode(z, x_T, num_steps=5), model.reconstruct(images, num_steps=5))
    alone = model.decode(z[:2], num_steps=5, seed=3)
    np.testing.assert_allclose(alone, model.decode(z, num_steps=5, seed=3)[:2], atol=1e-4)
    assert np.abs(alone - model.decode(z[:2], num_steps=5, seed=4)).max() > 0.01


def test_model_refuses_what_it_cannot_take(whole):
    model = DiffAE.load(whole[0])
    with pytest.raises(UserError, match=r"uint8 from 0 to 255.*to_float"):
        model.encode(digits()[1].images[:2])
    with pytest.raises(UserError, match=r"\(2, 1, 8, 8\).*\(N, \*\(8, 8, 1\)\)"):
        model.encode(np.zeros((2, 1, 8, 8), np.float32))
    with pytest.raises(UserError, match=r"from nan to nan"):
        model.invert(np.full((2, 8, 8, 1), np.nan, np.float32), num_steps=5)
    with pytest.raises(UserError, match="z, x_T or both"):
        model.decode(None)


def test_killed_again_and_again_ends_bit_identical(whole, tmp_path):
    moments = random.Random(0)
    for step in (4, 12, 24):
        process = start(tmp_path, MANY_STEPS, TRAINING)
        wait_for_checkpoint(process, tmp_path, step)
        time.sleep(moments.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert rows(tmp_path)[-1]["step"] < 40, "it was killed too late to show anything"
    output = finish(start(tmp_path, MANY_STEPS, TRAINING))
    assert "Going on after step" in output
    assert_same_run(tmp_path, whole[0])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_and_says_how_to_go_on(whole, tmp_path, number, code):
    process = start(tmp_path, MANY_STEPS, TRAINING)
    wait_for_checkpoint(process, tmp_path, 4)
    process.send_signal(number)
    sent = time.monotonic()
    output = finish(process, code=code)
    assert time.monotonic() - sent < 10
    assert "Traceback" not in output
    assert "Run the same command again to go on." in output
    finish(start(tmp_path, MANY_STEPS, TRAINING))
    assert_same_run(tmp_path, whole[0])


def two_processes(workdir, *arguments):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    return [
        start(workdir, f"--coordinator={coordinator}", "--num_processes=2", f"--process_id={i}", *arguments, devices=2)
        for i in range(2)
    ]


def test_two_processes_equal_one_and_can_be_stopped_and_continued_by_one(whole, tmp_path):
    processes = two_processes(tmp_path, MANY_STEPS, TRAINING)
    wait_for_checkpoint(processes[0], tmp_path, 12)
    processes[1].send_signal(signal.SIGTERM)  # one is told; all must save the same step
    outputs = [finish(process, code=143) for process in processes]
    assert "Run the same command again to go on." in outputs[0]
    assert "images/s" not in outputs[1], "one process reports"
    stopped_at = rows(tmp_path)[-1]["step"]
    finish(start(tmp_path, MANY_STEPS, TRAINING))
    ours, expected = rows(tmp_path), rows(whole[0])
    assert stopped_at < 40
    assert [row["step"] for row in ours] == [row["step"] for row in expected]
    losses = [[row["loss"] for row in run if "loss" in row] for run in (ours, expected)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    ours, expected = (flatten(final_state(run)["params"]) for run in (tmp_path, whole[0]))
    for name in ours:
        # The next normalisation takes the biases of the last block away again, for its groups have one channel each. So
        # their gradients are rounding errors, which Adam makes as large as any.
        if not re.fullmatch(r"unet\.up\.2\.(conv1|conv2|skip)\.bias", name):
            assert np.abs(ours[name] - expected[name]).max() < 1e-3, name


def test_two_processes_with_fsdp_and_accumulation_equal_one(tmp_path):
    wide = ("--config.model.base_channels=64", "--config.model.channel_mults=(1,)", "--stages=autoencoder")
    for process in two_processes(
        tmp_path / "two", *wide, "--config.execution.sharding=fsdp", "--config.execution.num_microbatches=2"
    ):
        finish(process)
    finish(start(tmp_path / "one", *wide))
    losses = [[row["loss"] for row in rows(tmp_path / name) if "loss" in row] for name in ("two", "one")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert len(losses[0]) == 3


def test_every_program_is_compiled_once(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_LOG_COMPILES", "1")
    output = finish(start(tmp_path))
    compilations = re.findall(r"Compiling (?:jit\()?(\w+)\)? with global shapes and types (.*)", output)
    ours = {"train_step", "init", "measure", "_encode", "_invert", "_decode"}
    counts = collections.Counter(compilation for compilation in compilations if compilation[0] in ours)
    assert {name for name, _ in counts} == ours
    assert set(counts.values()) == {1}, counts
    assert sum(name == "train_step" for name, _ in counts) == 1


def test_second_run_on_a_folder_in_use_is_refused(tmp_path):
    first = start(tmp_path, MANY_STEPS)
    wait_for_checkpoint(first, tmp_path, 4)
    output = finish(start(tmp_path, MANY_STEPS), code=2)
    assert "in use by another run" in output
    assert "Traceback" not in output
    first.kill()
    first.communicate()


def test_other_config_is_refused_and_nothing_is_lost(whole):
    workdir, _ = whole
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file() and path.name != ".lock"}
    output = finish(start(workdir, "--config.train.learning_rate=0.5", "--config.model.z_dim=9"), code=2)
    assert "model.z_dim: 8 -> 9; train.learning_rate: 0.001 -> 0.5" in output
    assert "Traceback" not in output
    assert before == {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(20):
        Image.new("L", (12, 12), 10 * i).save(folder / f"{i}.png")
    return folder


def test_mended_mistake_is_accepted_in_the_same_folder(tmp_path):
    finish(start(tmp_path, "--config.model.base_channels=40"), code=2)
    finish(start(tmp_path, "--stages=autoencoder"))
    assert rows(tmp_path)[-1]["step"] == 12


def test_other_images_are_refused(image_folder, tmp_path):
    arguments = ["--config.data.kind=folder", "--stages=autoencoder"]
    finish(start(tmp_path / "run", *arguments, f"--config.data.path={image_folder}"))
    others = tmp_path / "others"
    shutil.copytree(image_folder, others)
    (others / "3.png").unlink()
    output = finish(start(tmp_path / "run", *arguments, f"--config.data.path={others}"), code=2)
    assert "trained on other images (20 then, 19 now" in output


@pytest.mark.parametrize(
    ("arguments", "devices", "message"),
    [
        (["--config.train.batchsize=3"], 1, "batchsize"),
        (["--config=configs/nowhere.py"], 1, "configs/nowhere.py"),
        (["--config=configs/ffhq64.py:dim"], 1, '"ddim"'),
        (["--stages=encoder"], 1, "the stages are autoencoder, evaluation"),
        (["--config.train.batch_size=12"], 8, "A batch of 12 cannot be split over 8 devices"),
        (["--config.train.batch_size=2000"], 1, "1437 training images are fewer than one batch of 2000"),
        (["--config.model.base_channels=40"], 1, "40 channels cannot be split into 32 normalisation groups"),
        (["--config.data.kind=folder"], 1, "--config.data.path=FOLDER"),
        (["--config.data.kind=folder", "--config.data.path=/nowhere"], 1, "/nowhere is not a folder"),
        (["--config.data.kind=folder", "--config.data.path=IMAGES", "--config.image_shape=(16, 16, 1)"], 1, "12x12"),
        (["--stages=evaluation"], 1, "nor the folder of a trained run"),
        (["--workdir=/proc/nowhere"], 1, "cannot be written"),
        (["--num_processes=2"], 1, "go together"),
        (["digits"], 1, "digits"),
        (["--config.train.precision=float8"], 1, "float8"),
        (["--config.execution.sharding=zero"], 1, "zero"),
        (["--config.train.schedule=sigmoid"], 1, "sigmoid"),
        (["--config.train.batch_size=0"], 1, "batch_size"),
        (["--config.train.num_images=0"], 1, "num_images"),
        (["--config.evaluation.num_steps=(2000,)"], 1, "2000"),
        (["--config.model.channel_mults=()"], 1, "channel_mults"),
        (["--config.seed=-1"], 1, "seed"),
        (["--config.report.tensorboard=True"], 1, "tensorboard"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_told_in_one_sentence(arguments, devices, message, tmp_path, image_folder):
    arguments = [argument.replace("IMAGES", str(image_folder)) for argument in arguments]
    output = finish(start(tmp_path / "run", *arguments, devices=devices), code=2)
    assert message in output
    assert "Traceback" not in output
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_folder_of_images_trains(image_folder, tmp_path):
    output = finish(start(tmp_path, "--config.data.kind=folder", f"--config.data.path={image_folder}"))
    assert "8x8x1, 20 to train on, 0 held out" in output
    assert "no images are held out" in output
    assert len(list((tmp_path / "autoencoder" / "grids").glob("*.png"))) == 1
    shutil.rmtree(tmp_path / "evaluation")
    moved = tmp_path / "moved"
    shutil.copytree(image_folder, moved)
    finish(start(tmp_path, "--config.data.kind=folder", f"--config.data.path={moved}", "--stages=evaluation"))
    assert (tmp_path / "evaluation" / "results.json").exists()
