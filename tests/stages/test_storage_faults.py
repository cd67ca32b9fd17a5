"""Disks that are full or read-only, and folders that vanish: a sentence, and nothing is lost."""

import contextlib
import re
import shutil
import subprocess
import sys

import pytest

from diffae_jax.inference.diffae import DiffAE
from diffae_jax.training.checkpoint import steps_in
from tests.environment import ROOT, environment
from tests.runs import MANY_STEPS, TRAINING, assert_same_run, finish, start, wait_for_checkpoint


@contextlib.contextmanager
def disk(folder, megabytes):
    """A file system of its own in memory, where this may be mounted."""
    folder.mkdir()
    mount = shutil.which("mount")
    options = f"size={megabytes}m"
    if (
        not mount
        or subprocess.run([mount, "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode
    ):
        pytest.skip("no permission to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def assert_one_sentence(output, pattern):
    assert re.search(pattern, output), output
    for word in ("Traceback", "orbax", "tensorstore", "Errno"):
        assert word not in output, output


def test_full_disk_ends_training_and_with_space_the_same_command_goes_on(whole, tmp_path):
    with disk(tmp_path / "disk", 14) as folder:
        workdir = folder / "run"
        process = start(workdir, MANY_STEPS, TRAINING)
        wait_for_checkpoint(process, workdir, 4)
        with (folder / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(2**14))
        output = finish(process, code=2)
        assert_one_sentence(output, r"No space left on device\)")
        assert re.search(r"training stopped|The stage autoencoder stopped", output)
        steps = steps_in(workdir / "autoencoder" / "checkpoints")
        assert steps
        output = finish(start(workdir, MANY_STEPS, TRAINING), code=2)
        assert_one_sentence(output, "No space left on device")
        (folder / "filler").unlink()
        output = finish(start(workdir, MANY_STEPS, TRAINING))
        assert f"Resuming after step {steps[-1]} " in output
        assert_same_run(workdir, whole[0])


@pytest.mark.long
def test_folder_that_vanishes_ends_training_with_a_sentence(tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir, MANY_STEPS, TRAINING)
    wait_for_checkpoint(process, workdir, 4)
    workdir.rename(tmp_path / "moved")
    output = finish(process, code=2)
    assert_one_sentence(output, r"does not exist any more|cannot be (written|used)")
    shutil.rmtree(workdir, ignore_errors=True)
    (tmp_path / "moved").rename(workdir)
    assert "Resuming after step" in finish(start(workdir, MANY_STEPS, TRAINING))


@pytest.mark.long
def test_run_on_a_read_only_disk_is_refused_but_its_model_loads(whole, tmp_path):
    with disk(tmp_path / "disk", 50) as folder:
        shutil.copytree(whole[0], folder / "run")
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        assert_one_sentence(finish(start(folder / "run", MANY_STEPS), code=2), "Read-only file system")
        assert DiffAE.load(folder / "run").prior is not None


@pytest.mark.long
def test_limit_of_file_size_ends_training_with_a_sentence(tmp_path):
    arguments = "--config=tests/tiny.py", f"--workdir={tmp_path / 'run'}", MANY_STEPS, TRAINING
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 100; exec "$@"', "bash", sys.executable, "-m", "diffae_jax.main", *arguments],
        cwd=ROOT,
        env=environment(JAX_ENABLE_COMPILATION_CACHE="0"),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 2, done.stdout
    assert_one_sentence(done.stdout, r"checkpoint of step 4 cannot be written .*File too large.*nothing has been saved")
