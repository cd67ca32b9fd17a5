"""Runs in buckets, with real processes, and servers of S3 and GCS on this machine."""

import contextlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from diffae_jax.data.detect import open_images
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.runtime import bucket_lock, buckets
from diffae_jax.runtime.bucket_lock import BucketLock, BucketLockedError
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.files import names_below
from diffae_jax.training.checkpoint import find_undamaged, latest_step, steps_in
from tests.buckets import BUCKET, Store
from tests.environment import ROOT, environment
from tests.random_models import random_model
from tests.runs import FEW_STEPS, MANY_STEPS, TRAINING, files, finish, free_address, start, two_processes

SCHEMES = ("s3", "gs")
WITHOUT_EVALUATION = "--stages=autoencoder,latents,prior,probes,export"


@pytest.fixture(scope="module", params=SCHEMES)
def store(request, tmp_path_factory):
    """A server that this process uses, with an own cache for copies."""
    opened = Store(request.param)
    opened.settings["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    opened.settings["AWS_EC2_METADATA_DISABLED"] = "true"  # asks a server on clouds only
    with opened.used_here():
        yield opened
    opened.close()


def content(folder):
    return {name: (folder / name).read_bytes() for name in names_below(folder)}


def wait_until(condition, process, limit=200):
    deadline = time.monotonic() + limit
    while not condition():
        assert process.is_running(), process.output
        assert time.monotonic() < deadline, process.output
        time.sleep(0.1)


def assert_one_sentence(output, pattern):
    assert re.search(pattern, output), output
    for word in ("Traceback", "botocore", "aiohttp", "gcsfs", "Errno", "Unclosed", "Retry"):
        assert word not in output, output


# the test below kills and resumes a run in S3, and one further below takes its lock twice
@pytest.mark.parametrize("store", [pytest.param("s3", marks=pytest.mark.long), "gs"], indirect=True)
def test_run_is_used_by_one_process_and_resumes_after_a_kill(store):
    workdir, endless = store.path("used"), "--config.train.num_images=1_000_000"
    process = start(workdir, endless, TRAINING, settings=store.settings)
    wait_until(lambda: steps_in(workdir / "autoencoder" / "checkpoints"), process)
    other = start(workdir, endless, TRAINING, settings=store.settings)
    assert_one_sentence(finish(other, code=75), rf"{workdir} is in use by another run \(process \d+ on .*\): wait")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = start(workdir, endless, TRAINING, settings=store.settings)
    wait_until(lambda: "Resuming after step" in process.output, process)
    process.send_signal(signal.SIGKILL)
    process.wait()


# the test above kills and resumes a run in either kind of bucket
@pytest.mark.parametrize("store", ["s3", pytest.param("gs", marks=pytest.mark.long)], indirect=True)
def test_killed_run_ends_in_the_same_bundle_as_on_a_disk(store, whole):
    workdir = store.path("killed")
    process = start(workdir, MANY_STEPS, WITHOUT_EVALUATION, settings=store.settings)
    wait_until(lambda: steps_in(workdir / "autoencoder" / "checkpoints"), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    output = finish(start(workdir, MANY_STEPS, WITHOUT_EVALUATION, settings=store.settings))
    assert "Resuming after step" in output
    assert_one_sentence(output, "The model is in|Wrote")
    assert _without_card(content(workdir / "bundle")) == _without_card(files(whole[0] / "bundle"))
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    expected = [json.loads(line)["step"] for line in (whole[0] / "metrics.jsonl").read_text().splitlines()]
    assert steps == expected
    assert not (workdir / ".lock").exists()
    assert DiffAE.load(str(workdir / "bundle")).digest() == DiffAE.load(whole[0] / "bundle").digest()
    assert DiffAE.load(str(workdir)).digest() == DiffAE.load(whole[0]).digest()
    _check_damage(workdir)


def _without_card(bundle):
    """The files of a bundle without its card, which has results and names the folder."""
    card = {name for name in bundle if name == "README.md" or name.startswith("pictures/")}
    manifest = json.loads(bundle["manifest.json"]) | {"card": None}
    return {name: content for name, content in bundle.items() if name not in card} | {"manifest.json": manifest}


def _check_damage(workdir):
    checkpoints = workdir / "autoencoder" / "checkpoints"
    newest, before = latest_step(checkpoints), min(steps_in(checkpoints))
    file = max((checkpoints / str(newest) / name for name in names_below(checkpoints / str(newest))), key=_size)
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    time.sleep(1.1)  # S3 has times in seconds
    file.write_bytes(bytes(damaged))
    step, damages = find_undamaged(checkpoints)
    assert step == before
    assert damages == {newest: f"{file} does not match the manifest (SHA-256 differs)"}
    weights = workdir / "bundle" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match=re.escape(str(weights))):
        DiffAE.load(workdir / "bundle")


def _size(path):
    return path.object().size


@pytest.mark.long
def test_killed_at_random_moments_ten_times_ends_in_the_same_bundle(store, whole):
    workdir, moments = store.path("killed-often"), random.Random(store.scheme)
    for _ in range(10):
        process = start(workdir, MANY_STEPS, settings=store.settings)
        deadline = time.monotonic() + moments.uniform(3, 25)
        while process.is_running() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert_one_sentence(finish(start(workdir, MANY_STEPS, settings=store.settings)), "The model is in")
    assert _without_card(content(workdir / "bundle")) == _without_card(files(whole[0] / "bundle"))


@pytest.mark.long
def test_damaged_step_is_set_aside_and_trained_again(store, whole):
    workdir = store.path("damaged")
    finish(start(workdir, MANY_STEPS, TRAINING, settings=store.settings))
    checkpoints = workdir / "autoencoder" / "checkpoints"
    (checkpoints / "40" / "state" / "manifest.ocdbt").unlink()
    output = finish(start(workdir, MANY_STEPS, WITHOUT_EVALUATION, settings=store.settings))
    assert "manifest.ocdbt is missing. It was renamed to" in output
    assert "Resuming after step 36" in output
    assert (checkpoints / "40.damaged" / "manifest.json").exists()
    assert content(workdir / "bundle") == files(whole[0] / "bundle")


def test_two_processes_write_one_checkpoint(tmp_path):
    with contextlib.closing(Store("s3")) as store, store.used_here():
        store.settings["XDG_CACHE_HOME"] = str(tmp_path)
        workdir = store.path("two")
        for process in two_processes(workdir, TRAINING, FEW_STEPS, settings=store.settings):
            finish(process)
        assert find_undamaged(workdir / "autoencoder" / "checkpoints") == (4, {})
        names = names_below(workdir)
        assert not [name for name in names if "ocdbt.process_1" in name], "it has no index"
        assert DiffAE.load(str(workdir)).origin["images_seen"] == 64


@pytest.mark.long
@pytest.mark.parametrize("scheme", SCHEMES)
def test_two_killed_processes_resume(scheme, tmp_path):
    with contextlib.closing(Store(scheme)) as store, store.used_here():
        store.settings["XDG_CACHE_HOME"] = str(tmp_path)
        workdir = store.path("two")
        checkpoints = workdir / "autoencoder" / "checkpoints"
        processes = two_processes(workdir, TRAINING, MANY_STEPS, settings=store.settings)
        wait_until(lambda: steps_in(checkpoints), processes[0])
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
        outputs = [finish(process) for process in two_processes(workdir, TRAINING, MANY_STEPS, settings=store.settings)]
        assert "Resuming after step" in outputs[0]
        assert find_undamaged(checkpoints) == (40, {})
        assert DiffAE.load(str(workdir)).origin["images_seen"] == 40 * 16


@pytest.mark.long  # a minute, in which a server may answer again
def test_server_that_hangs_ends_a_run_in_a_sentence_and_nothing_is_lost(tmp_path):
    with contextlib.closing(Store("s3")) as store:
        store.settings["XDG_CACHE_HOME"] = str(tmp_path)
        workdir = store.path("run")
        process = start(workdir, "--config.train.num_images=16000", TRAINING, settings=store.settings)
        with store.used_here():
            wait_until(lambda: steps_in(workdir / "autoencoder" / "checkpoints"), process)
            store.process.send_signal(signal.SIGSTOP)
            stopped = time.monotonic()
            output = finish(process, code=75)
            assert time.monotonic() - stopped < 150
            store.process.send_signal(signal.SIGCONT)
            assert_one_sentence(output, r"(training|stage autoencoder) stopped.*does not answer")
            saved = latest_step(workdir / "autoencoder" / "checkpoints")
            process = start(workdir, "--config.train.num_images=16000", TRAINING, settings=store.settings)
            wait_until(lambda: f"Resuming after step {saved} " in process.output, process)
            process.send_signal(signal.SIGKILL)
            process.wait()


def test_store_that_cannot_be_used_is_refused_in_a_sentence(store):
    _refuses(store.settings, f"{store.scheme}://nowhere-x/run", "there is no bucket nowhere-x")
    if store.scheme == "gs":
        _refuses(store.settings, "gs://denied/run", "access was denied")
    else:
        empty = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "HOME": "/nowhere"}
        _refuses(store.settings, store.path("run"), "no credentials were found", **empty)
        store.request("POST", "/moto-api/reset-auth", b"0")  # from now on, keys are checked
        try:
            _refuses(store.settings, store.path("run"), "access was denied")
        finally:
            store.request("POST", "/moto-api/reset-auth", b"inf")
    assert not store.path("run").exists()


@pytest.mark.parametrize("scheme", ["s3", pytest.param("gs", marks=pytest.mark.long)])
def test_server_that_is_down_is_refused_in_a_sentence(scheme):
    nobody = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST"}[scheme]
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    settings = keys | {nobody: f"http://{free_address()}"}
    _refuses(settings, f"{scheme}://{BUCKET}/run", "the server does not answer", code=75)


def _refuses(settings_of_store, workdir, reason, code=2, **settings):
    begun = time.monotonic()
    output = finish(start(workdir, TRAINING, settings=settings_of_store | settings), code=code)
    assert_one_sentence(output, rf"Error: {workdir} cannot be (read|written) \({reason}")
    assert len(output.strip().splitlines()) == 1, output
    assert time.monotonic() - begun < 90


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(buckets.PACKAGES, "gs", "no_such_package")
    buckets._file_system.cache_clear()
    sentence = 'gs:// needs no_such_package, which is not installed: pip install "diffae_jax[gcs]".'
    with pytest.raises(UserError, match=re.escape(sentence)):
        DiffAE.load("gs://bucket/model")


def test_only_one_of_several_processes_gets_the_lock(store, monkeypatch):
    monkeypatch.setattr(bucket_lock, "RENEW_SECONDS", 0.2)
    path, results = store.path("locks/.lock"), []

    def take(lock):
        try:
            lock.acquire()
            results.append(lock)
        except BucketLockedError as error:
            results.append(str(error))

    locks = [BucketLock(path) for _ in range(4)]
    threads = [threading.Thread(target=take, args=[lock]) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = [result for result in results if isinstance(result, BucketLock)]
    assert len(held) == 1
    assert {result for result in results if result not in held} == {f"process {os.getpid()} on {os.uname().nodename}"}
    held[0].release()
    assert not path.exists()


def test_lock_that_nobody_renews_becomes_free(store, monkeypatch):
    monkeypatch.setattr(bucket_lock, "STALE_SECONDS", 3)
    path = store.path("stale/.lock")
    path.write_text(json.dumps({"host": "elsewhere", "process": 1, "machine": "another", "token": "x"}))
    begun = time.monotonic()
    lock = BucketLock(path)
    lock.acquire()
    assert 2 < time.monotonic() - begun < 30
    lock.release()


def test_run_that_lost_its_lock_ends(store):
    workdir = store.path("taken")
    process = start(workdir, "--config.train.num_images=160000", TRAINING, settings=store.settings)
    wait_until(lambda: (workdir / ".lock").exists(), process)
    (workdir / ".lock").write_text(json.dumps({"host": "elsewhere", "process": 7, "token": "x"}))
    output = finish(process, code=75)
    assert_one_sentence(output, rf"Error: {workdir} is now used by another run \(process 7 on elsewhere\)")


def test_images_in_a_bucket_are_those_of_a_disk(store, image_folder, tmp_path):
    names = sorted(path.name for path in image_folder.iterdir())[:4]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        for name in names:
            store.path(f"data/photos/{name}").write_bytes((image_folder / name).read_bytes())
            opened.write(image_folder / name, name)
    pixels = np.stack([np.asarray(Image.open(image_folder / name)) for name in names])[..., None]
    np.savez(tmp_path / "a.npz", images=pixels)
    store.path("data/a.npz").upload(tmp_path / "a.npz")
    store.path("data/a.zip").write_bytes(archive.getvalue())
    for name in ("data/photos", "data/a.zip", "data/a.npz", "data/a.npz#images"):
        opened = open_images(f"{store.scheme}://tests/{name}", (12, 12, 1)).source
        assert len(opened) == 4
        np.testing.assert_array_equal(np.stack([opened[i] for i in range(4)]), pixels)
    with pytest.raises(UserError, match=f"{store.scheme}://tests/data/none is missing"):
        open_images(f"{store.scheme}://tests/data/none", (12, 12, 1))


@pytest.mark.parametrize("end", [b"\r", b"\n", b"\r\n", b"\0", b"--==0=="])
def test_files_are_stored_to_the_last_byte(store, end):
    path = store.path("bytes/file")
    path.write_bytes(b"a" + end)
    assert path.read_bytes() == b"a" + end


def test_name_that_leads_out_of_a_folder_is_refused(store):
    if store.scheme == "gs":
        return  # the emulator does not take such a name
    store.path("hostile/manifest.json").write_text("{}")
    store.path("hostile/../../../evil").write_text("x")
    with pytest.raises(UserError, match="which no folder can hold"):
        DiffAE.load(store.path("hostile"))


def test_saved_model_is_loaded_and_replaced(store, one_device):
    model = random_model(one_device)
    path = str(store.path("models/one"))
    for _ in range(2):
        model.save(path)
        assert DiffAE.load(path, one_device).digest() == model.digest()
    edits = {"README.md": b"# Mine", "pictures/own.png": b"\x89PNG\r\n\x1a\n"}
    for name, content in edits.items():
        store.path(f"models/one/{name}").write_bytes(content)
    model.save(path)
    assert {name: store.path(f"models/one/{name}").read_bytes() for name in edits} == edits
    store.path("models/one/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt, which is not part of a bundle"):
        model.save(path)


def test_importing_the_package_loads_no_library_of_stores():
    program = (
        "import sys, diffae_jax, diffae_jax.stages.chain, diffae_jax.cli.train\n"
        "found = {'fsspec', 's3fs', 'gcsfs', 'botocore', 'aiohttp'} & set(sys.modules)\n"
        "assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
