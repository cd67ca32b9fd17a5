"""Runs of two processes, as on two machines."""

import json
import re
import shutil
import signal
import time

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from diffae_jax.data.latents import read_chunks
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.training.checkpoint import find_undamaged, latest_step, steps_in
from tests.runs import (
    FEW_STEPS,
    MANY_STEPS,
    NO_GRIDS,
    TRAINING,
    files,
    final_weights,
    finish,
    rows,
    rows_of,
    start,
    two_processes,
    wait_for,
    wait_for_checkpoint,
)
from tests.training.test_checkpoints import flips


def test_two_processes_equal_one_and_can_be_stopped_and_continued_by_one(whole, tmp_path):
    arguments = MANY_STEPS, NO_GRIDS, TRAINING  # test_buckets.py has a grid of two processes
    processes = two_processes(tmp_path, *arguments)
    wait_for_checkpoint(processes[0], tmp_path, 8)
    processes[1].send_signal(signal.SIGTERM)  # one gets the signal; all must save the same step
    outputs = [finish(process, code=143) for process in processes]
    assert "To resume, run the same command again." in outputs[0]
    assert "images/s" not in outputs[1], "one process reports"
    stopped_at = rows(tmp_path)[-1]["step"]
    checkpoints = tmp_path / "autoencoder" / "checkpoints"
    manifest = json.loads((checkpoints / str(latest_step(checkpoints)) / "manifest.json").read_text())
    assert {"ocdbt.process_0", "ocdbt.process_1"} <= {part for name in manifest["files"] for part in name.split("/")}
    finish(start(tmp_path, *arguments))
    ours, expected = (rows_of(run, "autoencoder") for run in (tmp_path, whole[0]))
    assert stopped_at < 40
    assert [row["step"] for row in ours] == [row["step"] for row in expected]
    losses = [[row["loss"] for row in run if "loss" in row] for run in (ours, expected)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    ours, expected = (final_weights(run) for run in (tmp_path, whole[0]))
    for name in ours:
        # The next normalization takes the biases of the last block away again, for its groups have
        # one channel each. So their gradients are rounding errors, which Adam makes as large as
        # any.
        if not re.fullmatch(r"unet\.up\.2\.(conv1|conv2|skip)\.bias", name):
            assert np.abs(ours[name] - expected[name]).max() < 1e-3, name


@pytest.mark.long
def test_no_flipped_bit_of_a_checkpoint_of_two_processes_is_used_silently(tmp_path):
    for process in two_processes(tmp_path, TRAINING):
        finish(process)
    folder = tmp_path / "autoencoder" / "checkpoints"
    newest, before = (find_undamaged(folder)[0], min(steps_in(folder)))
    saved, found = DiffAE.load(tmp_path).digest(), 0
    for file, position, bit in flips(folder / str(newest), 1000):
        content = file.read_bytes()
        damaged = bytearray(content)
        damaged[position] ^= 1 << bit
        file.write_bytes(damaged)
        step, damages = find_undamaged(folder)
        assert (step, bool(damages)) in ((before, True), (newest, False))
        found += bool(damages)
        if not damages:
            assert DiffAE.load(tmp_path).digest() == saved
        file.write_bytes(content)
    assert found > 950


@pytest.mark.long
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


@pytest.mark.long  # the loop is that of the autoencoder, which the first test stops
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
    assert "To resume, run the same command again." in outputs[0]


def test_what_stops_one_process_stops_the_others(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(20):
        Image.new("L", (8, 8), 100).save(images / f"{i}.png")
    arguments = tmp_path / "run", f"--config.data.path={images}", FEW_STEPS
    finish(start(*arguments, TRAINING))  # on its own, it does not need different images
    outputs = [finish(process, code=2) for process in two_processes(*arguments, "--stages=latents,prior")]
    assert re.search(r"all 20 images have the same value in \d of its 8 dimensions", outputs[0])
    assert "Another process could not continue" in outputs[1]
    assert not (tmp_path / "run" / "latents" / "statistics.npz").exists()
    assert not (tmp_path / "run" / "prior").exists()


@pytest.mark.long
def test_both_processes_end_with_the_exit_code_of_a_problem_that_may_pass(tmp_path):
    with FileLock(tmp_path / ".lock"):
        outputs = [finish(process, code=75) for process in two_processes(tmp_path)]
    assert "is in use by another run" in outputs[0]
    assert "Another process could not continue" in outputs[1]


@pytest.mark.long
def test_two_processes_encode_the_z_of_one(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    for made in ("latents", "prior", "probes"):
        shutil.rmtree(workdir / made)
    for process in two_processes(workdir, MANY_STEPS, "--stages=latents,prior,probes"):
        finish(process)
    assert files(workdir / "latents").keys() == files(whole[0] / "latents").keys()
    for split in ("training", "held_out"):
        ours, expected = (list(read_chunks(run / "latents", split)) for run in (workdir, whole[0]))
        assert [ids for ids, _ in ours] == [ids for ids, _ in expected]
        for (_, z), (_, expected_z) in zip(ours, expected, strict=True):
            np.testing.assert_allclose(z, expected_z, atol=1e-5)
    ours, expected = (DiffAE.load(run).probes["digit"].classes for run in (workdir, whole[0]))
    for value in expected:
        np.testing.assert_allclose(ours[value].weights, expected[value].weights, atol=1e-3)
    losses = [[row["loss"] for row in rows_of(run, "prior")] for run in (workdir, whole[0])]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
