"""The command itself, as real processes: whole, killed, stopped, by two processes, and with mistakes."""

import collections
import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from PIL import Image

from diffae_jax.data.formats.digits import digits
from diffae_jax.data.latents import read_parts
from diffae_jax.data.transforms import to_float
from diffae_jax.evaluation import results
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.models.functional import flatten
from diffae_jax.runtime.errors import UserError
from tests.environment import ROOT, environment

MANY_STEPS = "--config.train.num_images=640"  # 40 steps: time enough to be killed in
TRAINING = "--stages=autoencoder"


def start(workdir, *arguments, devices=1, **popen):
    command = [sys.executable, "-m", "diffae_jax.main", "--config=tests/tiny.py", f"--workdir={workdir}", *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(devices, PYTHONUNBUFFERED="1"),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **popen,
    )


def finish(process, code=0, timeout=300):
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == code, output
    return output


def wait_for(process, workdir, pattern):
    """Waits until a path of that pattern is in a run's folder."""
    deadline = time.monotonic() + 300
    while not list(workdir.glob(pattern)):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, f"no {pattern} came"
        time.sleep(0.002)


def wait_for_checkpoint(process, workdir, step):
    wait_for(process, workdir, f"autoencoder/checkpoints/{step}/_CHECKPOINT_METADATA")


def rows(workdir):
    """The rows of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.endswith("_per_second")} for line in lines]


def rows_of(workdir, stage):
    return [row for row in rows(workdir) if row["stage"] == stage]


def final_state(workdir, stage="autoencoder"):
    steps = [int(path.name) for path in (workdir / stage / "checkpoints").glob("[0-9]*")]
    return ocp.load_checkpointables(workdir / stage / "checkpoints" / str(max(steps)))["state"]


def assert_same_run(workdir, other, stage="autoencoder"):
    assert rows_of(workdir, stage) == rows_of(other, stage)
    jax.tree.map(np.testing.assert_array_equal, final_state(workdir, stage), final_state(other, stage))


def files(folder):
    """The bytes of every file below a folder but the lock."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 40 steps that nothing interrupted, and what it printed, with a line for each compilation."""
    workdir = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_LOG_COMPILES", "1")
        return workdir, finish(start(workdir, MANY_STEPS))


def test_run_leaves_everything_that_was_promised(whole):
    workdir, output = whole
    assert json.loads((workdir / "config.json").read_text())["name"] == "tiny"
    logged = rows_of(workdir, "autoencoder")
    assert [row["step"] for row in logged if "loss" in row] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert all(np.isfinite(row["loss"]) for row in logged if "loss" in row)
    assert logged[0]["images"] == 80
    assert {"z/effective_rank", "z/loss_own", "z/loss_shuffled"} <= {name for row in logged for name in row}
    grid = Image.open(workdir / "autoencoder" / "grids" / "0000000640.png")
    assert np.asarray(grid.convert("L")).std() > 10
    reconstruction = results.read(workdir / "evaluation").section("reconstruction")
    inferred, random_ = (reconstruction.find("MSE", f"{kind} x_T", "T = 2") for kind in ("inferred", "random"))
    assert inferred.count == 16
    assert 0 < inferred.value < random_.value
    assert "<img" in (workdir / "evaluation" / "report.html").read_text()
    assert not (workdir / "evaluation" / "parts").exists()
    assert (workdir / "evaluation" / "reconstructions.png").exists()
    for promise in ("parameters", "FLOP", "1,437 to train on, 360 held out", "images/s", "left", "z: effective rank"):
        assert promise in output, promise


def test_run_goes_on_from_z_to_samples_and_a_bundle(whole):
    workdir, output = whole
    logged = rows_of(workdir, "prior")
    # ten steps lie within a call of four: what is due within one comes after it
    assert [row["step"] for row in logged] == [12, 20, 32, 40, 52, 60, 72, 80]
    assert logged[0]["latents"] == 12 * 32
    assert logged[-1]["loss"] < logged[0]["loss"]
    for picture in ("prior/grids/0000002560.png", "evaluation/samples.png"):
        assert np.asarray(Image.open(workdir / picture).convert("L")).std() > 10
    distances = results.read(workdir / "evaluation").section("sampling").figures
    assert {figure.row for figure in distances} >= {"samples", "+ autoencoding", "other real images"}
    assert {figure.count for figure in distances} == {16}
    for promise in ("z of 8 dimensions; 1,797 images to go, less than", "latents/s", "Frechet distance", "samples.png"):
        assert promise in output, promise
    assert f'DiffAE.load("{workdir / "bundle"}")' in output.splitlines()[-4]


def test_z_of_every_image_is_there_once_in_order_and_without_flips(whole):
    workdir, _ = whole
    model = DiffAE.load(workdir)
    for split, source in zip(("training", "held_out"), digits(), strict=True):
        parts = list(read_parts(workdir / "latents", split))
        assert [name for ids, _ in parts for name in ids] == list(source.ids)
        z = np.concatenate([z for _, z in parts])
        np.testing.assert_allclose(z, model.encode(to_float(source.images)), atol=1e-5)
        if split == "training":
            np.testing.assert_allclose(model.statistics.mean, z.astype(np.float64).mean(0), rtol=1e-6)
            np.testing.assert_allclose(model.statistics.std, z.astype(np.float64).std(0, ddof=1), rtol=1e-6)


def test_bundle_of_a_run_is_the_model_of_the_run(whole):
    workdir, _ = whole
    run, bundle = DiffAE.load(workdir), DiffAE.load(workdir / "bundle")
    settings = dict(seed=3, num_steps=3, num_latent_steps=4)
    np.testing.assert_array_equal(bundle.sample(4, **settings), run.sample(4, **settings))
    assert bundle.origin["images_seen"] == 640
    assert bundle.origin["latents_seen"] == 2560
    assert bundle.probes["digit"].as_json() == run.probes["digit"].as_json()


def test_finished_run_is_not_repeated(whole):
    workdir, _ = whole
    before = files(workdir)
    output = finish(start(workdir, MANY_STEPS))
    assert "autoencoder: finished, 640 images seen" in output
    assert "latents: finished, z of 1,797 images" in output
    assert "prior: finished, 2,560 z seen" in output
    assert "probes: finished, digit." in output
    assert "evaluation: finished" in output
    assert "export: finished" in output
    assert files(workdir) == before


def test_probes_read_z_of_the_held_out_images_as_well_as_is_said(whole):
    workdir, output = whole
    model, held_out = DiffAE.load(workdir), digits()[1]
    score = model.probes["digit"].score
    assert f"  digit: 10 classes, accuracy {score.value:.2f} on 360 images" in output
    predicted = model.predict(model.encode(to_float(held_out.images)), "digit")
    assert np.mean(predicted == held_out.labels["digit"].astype(str)) == pytest.approx(score.value, abs=0.01)
    assert score.value > 0.3


def test_probes_that_are_gone_or_of_other_z_are_made_anew(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    shutil.rmtree(workdir / "probes")
    output = finish(start(workdir, MANY_STEPS, "--stages=evaluation,export"))
    assert "evaluation: finished" in output
    assert DiffAE.load(workdir / "bundle").probes == {}
    finish(start(workdir, MANY_STEPS))
    assert files(workdir / "probes") == files(whole[0] / "probes")
    assert files(workdir / "bundle") == files(whole[0] / "bundle")
    for name in ("autoencoder", "labels"):
        inputs = json.loads((workdir / "probes" / "inputs.json").read_text()) | {name: "another"}
        (workdir / "probes" / "inputs.json").write_text(json.dumps(inputs))
        (workdir / "probes" / "old.json").write_bytes((workdir / "probes" / "digit.json").read_bytes())
        if name == "autoencoder":
            assert DiffAE.load(workdir).probes == {}
        else:
            (workdir / "probes" / "old.json").unlink()
        assert "digit: 10 classes" in finish(start(workdir, MANY_STEPS, "--stages=probes"))
        assert files(workdir / "probes") == files(whole[0] / "probes")
    (workdir / "probes" / "digit.json").write_text("{}")
    with pytest.raises(UserError, match="A probe holds name, weights and bias"):
        DiffAE.load(workdir)


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
    with pytest.raises(UserError, match=r"\(2, 1, 8, 8\).*\(N, \*\(8, 8, 1\)\)"):
        model.encode(np.zeros((2, 1, 8, 8), np.float32))
    with pytest.raises(UserError, match=r"2 of 2 images hold numbers that are not finite"):
        model.invert(np.full((2, 8, 8, 1), np.nan, np.float32), num_steps=5)
    with pytest.raises(UserError, match="z, x_T or both"):
        model.decode(None)


@pytest.mark.alone
def test_killed_again_and_again_ends_bit_identical(whole, tmp_path):
    moments = random.Random(0)
    for pattern in (
        "autoencoder/checkpoints/4/_CHECKPOINT_METADATA",
        "autoencoder/checkpoints/24/_CHECKPOINT_METADATA",
        "latents/training-00000.npz",
        "prior/checkpoints/16/_CHECKPOINT_METADATA",
        "evaluation/reconstructions.png",
        ".bundle.*/new/weights.safetensors",
    ):
        process = start(tmp_path, MANY_STEPS)
        wait_for(process, tmp_path, pattern)
        time.sleep(moments.uniform(0, 0.05) if "checkpoints" in pattern else 0)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / "bundle").exists(), "it was killed too late to show anything"
        if pattern.startswith("latents"):
            assert not (tmp_path / "latents" / "statistics.npz").exists(), "all parts were there already"
        if pattern.startswith("prior"):
            assert rows_of(tmp_path, "prior")[-1]["step"] < 80
    output = finish(start(tmp_path, MANY_STEPS))
    assert "prior: finished" in output
    for stage in ("autoencoder", "prior"):
        assert_same_run(tmp_path, whole[0], stage)
    assert files(tmp_path / "bundle") == files(whole[0] / "bundle")
    assert not list(tmp_path.glob(".bundle*")), "what a killed export left"


@pytest.mark.alone
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


@pytest.mark.alone
def test_two_processes_equal_one_and_can_be_stopped_and_continued_by_one(whole, tmp_path):
    processes = two_processes(tmp_path, MANY_STEPS, TRAINING)
    wait_for_checkpoint(processes[0], tmp_path, 12)
    processes[1].send_signal(signal.SIGTERM)  # one is told; all must save the same step
    outputs = [finish(process, code=143) for process in processes]
    assert "Run the same command again to go on." in outputs[0]
    assert "images/s" not in outputs[1], "one process reports"
    stopped_at = rows(tmp_path)[-1]["step"]
    finish(start(tmp_path, MANY_STEPS, TRAINING))
    ours, expected = (rows_of(run, "autoencoder") for run in (tmp_path, whole[0]))
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


@pytest.mark.alone
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


def test_every_program_is_compiled_once(whole):
    _, output = whole
    compilations = re.findall(r"Compiling (?:jit\()?(\w+)\)? with global shapes and types (.*)", output)
    ours = {"train_step", "init", "measure", "encode", "invert", "decode", "sample"}
    counts = collections.Counter(compilation for compilation in compilations if compilation[0] in ours)
    assert {name for name, _ in counts} == ours
    once_a_network = [count for (name, _), count in counts.items() if name == "init"]
    assert once_a_network == [2], counts  # autoencoder and latent DDIM both start from a key
    assert {count for (name, _), count in counts.items() if name != "init"} == {1}, counts
    assert sum(name == "train_step" for name, _ in counts) == 2, "one of the autoencoder, one of the latent DDIM"


@pytest.mark.alone
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
    before = files(workdir)
    output = finish(start(workdir, "--config.train.learning_rate=0.5", "--config.model.z_dim=9"), code=2)
    assert "model.z_dim: 8 -> 9; train.learning_rate: 0.001 -> 0.5" in output
    assert "Traceback" not in output
    output = finish(start(workdir, MANY_STEPS, "--config.prior.width=33"), code=2)
    assert re.search(r"prior.width: 32 -> 33.*removing .*/prior makes room for another prior", output)
    output = finish(start(workdir, "--config.train.num_images=800"), code=2)
    assert re.search(r"from step 40 on to 50 would make .*/latents and .*/prior, .* useless", output)
    assert files(workdir) == before


def test_another_prior_of_the_same_autoencoder_is_trained_once_the_old_one_is_removed(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    shutil.rmtree(workdir / "prior")
    output = finish(start(workdir, MANY_STEPS, "--config.prior.width=33"))
    assert "evaluation: finished" not in output, "its samples are those of the old prior"
    model = DiffAE.load(workdir / "bundle")
    assert model.config.prior.width == 33
    assert model.prior["layers"][0]["linear"]["kernel"].shape == (8, 33)
    shutil.rmtree(workdir / "prior")
    finish(start(workdir, MANY_STEPS, "--config.prior.width=33", "--stages=evaluation,export"))
    assert DiffAE.load(workdir / "bundle").prior is None
    assert not (workdir / "evaluation" / "samples.png").exists()
    shutil.rmtree(workdir / "latents")
    finish(start(workdir, MANY_STEPS, "--config.prior.width=33", "--stages=export"))
    assert DiffAE.load(workdir / "bundle").statistics is None


def test_damaged_bundle_of_a_run_is_written_anew(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    weights = workdir / "bundle" / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    output = finish(start(workdir, MANY_STEPS, "--stages=export"))
    assert "SHA-256 differs" in output
    assert files(workdir / "bundle") == files(whole[0] / "bundle")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda latents: (latents / "inputs.json").unlink(), "nothing tells what it was made from"),
        (lambda latents: (latents / "inputs.json").write_text("{"), "cannot be read as JSON"),
        (lambda latents: (latents / "inputs.json").write_text("[]"), "inputs.json is damaged"),
        (lambda latents: (latents / "statistics.npz").write_bytes(b"PK"), "statistics.npz cannot be read"),
    ],
    ids=["no record", "cut record", "other record", "statistics"],
)
def test_damaged_latents_are_told_in_one_sentence(whole, tmp_path, damage, message):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    damage(workdir / "latents")
    output = finish(start(workdir, MANY_STEPS, "--stages=latents,prior"), code=2)
    assert message in output
    assert "Traceback" not in output


def test_latents_of_another_autoencoder_are_refused(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    shutil.rmtree(workdir / "autoencoder" / "checkpoints" / "40")
    before = files(workdir)
    for stages, message in (
        ("latents", r"latents was made from .*autoencoder_step: 40 then, 36 now.*remove that folder"),
        ("prior", r"those of another autoencoder than the one beside it: remove that folder"),
    ):
        output = finish(start(workdir, MANY_STEPS, f"--stages={stages}"), code=2)
        assert re.search(message, output)
        assert "Traceback" not in output
    assert files(workdir) == before


@pytest.mark.alone
def test_prior_of_two_processes_stops_on_a_signal_to_one(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    shutil.rmtree(workdir / "prior")
    longer = "--config.prior.num_latents=200_000"
    no_grids = "--config.report.prior_grid_every=10_000_000"  # the first takes seconds to compile
    processes = two_processes(workdir, MANY_STEPS, longer, no_grids, "--stages=prior")
    wait_for(processes[0], workdir, "prior/checkpoints/16/_CHECKPOINT_METADATA")
    processes[0].send_signal(signal.SIGTERM)
    sent = time.monotonic()
    outputs = [finish(process, code=143) for process in processes]
    assert time.monotonic() - sent < 10
    assert "Run the same command again to go on." in outputs[0]


@pytest.mark.alone
def test_what_stops_one_process_stops_the_others(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(20):
        Image.new("L", (8, 8), 100).save(images / f"{i}.png")
    processes = two_processes(tmp_path / "run", f"--config.data.path={images}")
    outputs = [finish(process, code=2, timeout=120) for process in processes]
    assert re.search(r"All 20 images have the same value in \d of the 8 dimensions of z", outputs[0])
    assert "Another process could not go on" in outputs[1]
    assert not (tmp_path / "run" / "latents" / "statistics.npz").exists()
    assert not (tmp_path / "run" / "prior").exists()


@pytest.mark.alone
def test_two_processes_encode_the_z_of_one(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    for made in ("latents", "prior", "probes"):
        shutil.rmtree(workdir / made)
    for process in two_processes(workdir, MANY_STEPS, "--stages=latents,prior,probes"):
        finish(process)
    assert files(workdir / "latents").keys() == files(whole[0] / "latents").keys()
    for split in ("training", "held_out"):
        ours, expected = (list(read_parts(run / "latents", split)) for run in (workdir, whole[0]))
        assert [ids for ids, _ in ours] == [ids for ids, _ in expected]
        for (_, z), (_, expected_z) in zip(ours, expected, strict=True):
            np.testing.assert_allclose(z, expected_z, atol=1e-5)
    ours, expected = (DiffAE.load(run).probes["digit"].classes for run in (workdir, whole[0]))
    for value in expected:
        np.testing.assert_allclose(ours[value].weights, expected[value].weights, atol=1e-3)
    losses = [[row["loss"] for row in rows_of(run, "prior")] for run in (workdir, whole[0])]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


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
    arguments = ["--stages=autoencoder"]
    finish(start(tmp_path / "run", *arguments, f"--config.data.path={image_folder}"))
    others = tmp_path / "others"
    shutil.copytree(image_folder, others)
    (others / "3.png").unlink()
    output = finish(start(tmp_path / "run", *arguments, f"--config.data.path={others}"), code=2)
    assert "trained on other images (20 then, 19 now" in output


def test_images_that_cannot_be_used_are_refused_or_left_out_and_told_at_the_end(image_folder, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(image_folder, images)
    (images / "3.png").write_bytes(b"junk")
    arguments = f"--config.data.path={images}", TRAINING
    output = finish(start(tmp_path / "run", *arguments), code=2)
    assert re.search(
        r"3\.png cannot be read as an image .*--config\.data\.skip_bad=True leaves such images out", output
    )
    output = finish(start(tmp_path / "run", *arguments, "--config.data.skip_bad=True"))
    assert "19 to train on" in output
    last = output.splitlines()[-1]
    assert last.startswith("Left out: 1 of the images, which cannot be used (3.png); ")
    assert str(images / "3.png") in (tmp_path / "run" / "data.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "devices", "message"),
    [
        (["--config.train.batchsize=3"], 1, "batchsize"),
        (["--config=configs/nowhere.py"], 1, "configs/nowhere.py"),
        (["--config=configs/ffhq64.py:dim"], 1, "give ddim, the baseline without z"),
        (["--stages=encoder"], 1, "the stages are autoencoder, latents, prior, probes, evaluation, export"),
        (["--stages=latents"], 1, "--stages=autoencoder"),
        (["--stages=prior"], 1, "nor the folder of a trained run"),
        (["--config.prior.batch_size=20"], 8, "--config.prior.batch_size a multiple of 8"),
        (["--config.prior.loss=l2"], 1, "l2"),
        (["--config.execution.steps_per_dispatch=0"], 1, "steps_per_dispatch"),
        (["--config.train.batch_size=12"], 8, "A batch of 12 cannot be split over 8 devices"),
        (["--config.train.batch_size=2000"], 1, "1437 training images are fewer than one batch of 2000"),
        (["--config.model.base_channels=40"], 1, "40 channels cannot be split into 32 normalisation groups"),
        (["--config.data.path="], 1, "--config.data.path=PATH"),
        (["--config.data.path=/nowhere"], 1, "/nowhere is missing"),
        (["--config.data.path=IMAGES", "--config.image_shape=(16, 16, 1)"], 1, "20 of 20 images cannot be used"),
        (["--config.data.path=IMAGES", "--config.data.crop=celeba"], 1, "does not hold the crop celeba"),
        (["--config.data.intensity=1..0"], 1, "data.intensity is LOW..HIGH"),
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
    labels = tmp_path / "labels.csv"
    rows = [f"{i}.png,{i % 2},{i / 7},one" for i in range(20)]
    labels.write_text("\n".join(["file,odd,brightness,same", *rows, "21.png,0,0,one"]))
    arguments = (f"--config.data.path={image_folder}",)
    output = finish(start(tmp_path, *arguments, f"--config.data.labels={labels}"))
    assert "1 of 21 rows of labels are of none of the images (21.png)." in output
    assert re.search(r"  odd: binary, positive is '1', AUROC 0\.\d\d on 20 images", output)
    assert re.search(r"  brightness: continuous, R\^2 -?\d+\.\d\d on 20 images", output)
    assert "  no probe: The labels of same must be of two values at least, and all 20 are one." in output
    assert set(DiffAE.load(tmp_path / "bundle").probes) == {"odd", "brightness"}
    assert "Images: a folder of image files, 20 to train on, 0 held out.\nSizes: all 12x12; all become 8x8." in output
    assert "No images are held out" in output
    assert "Distances are to 10 of the images; 10 other real ones" in output
    assert "labels is left out: no images are held out from training." in output
    distances = results.read(tmp_path / "evaluation").section("sampling")
    assert distances.find("Frechet distance in random convolutions", "other real images").value > 0
    (tmp_path / "one").mkdir()
    arguments = f"--config.data.path={image_folder}", "--config.data.held_out_share=0.05"
    output = finish(start(tmp_path / "one", *arguments))
    assert "19 to train on, 1 held out" in output
    assert "Too few real images to compare samples with: two sets of 2 or more are needed, not of 1 and 16." in output
    assert "probes: the images have no labels (--config.data.labels=FILE.csv)" in output
    assert (tmp_path / "one" / "bundle" / "manifest.json").exists()
    assert len(list((tmp_path / "autoencoder" / "grids").glob("*.png"))) == 1
    shutil.rmtree(tmp_path / "evaluation")
    moved = tmp_path / "moved"
    shutil.copytree(image_folder, moved)
    finish(start(tmp_path, f"--config.data.path={moved}", "--stages=evaluation"))
    assert (tmp_path / "evaluation" / "results.json").exists()
