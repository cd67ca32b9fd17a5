"""launch/tpu_pod.sh with a `gcloud` that runs the commands of two hosts on this machine.

The interpreter of each host only writes what it gets, and ends like a run at SIGTERM.
"""

import os
import subprocess
import time

import pytest

from tests.environment import ROOT

GCLOUD = """#!/usr/bin/env bash
for argument in "$@"; do
  case $argument in --worker=*) worker=${argument#*=} ;; --command=*) command=${argument#*=} ;; esac
done
[[ $worker == all ]] && workers="0 1" || workers=$worker
for number in $workers; do HOME=$HOSTS/$number bash -c "$command" || exit; done
"""
PYTHON = """#!/usr/bin/env bash
trap 'exit 143' TERM
printf '%s\\n' "$@" >arguments
while :; do sleep 0.1; done
"""


@pytest.fixture
def pod(tmp_path):
    """Returns a function that runs a command of the script, and the folders of two hosts."""
    for number in "01":
        binaries = tmp_path / number / "diffae_jax" / ".venv" / "bin"
        binaries.mkdir(parents=True)
        (binaries / "python").write_text(PYTHON)
        (binaries / "python").chmod(0o755)
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    search = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    env = os.environ | {"TPU_NAME": "diffae", "TPU_ZONE": "here", "HOSTS": str(tmp_path), "PATH": search}

    def call(*arguments, code=0):
        script = ROOT / "launch" / "tpu_pod.sh"
        done = subprocess.run([script, *arguments], env=env, text=True, capture_output=True, timeout=60)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    yield call, [tmp_path / number / "diffae_jax" for number in "01"]
    call("stop")


def arguments_of(host):
    deadline = time.monotonic() + 30
    while not (host / "arguments").exists() or not (host / "arguments").read_text().endswith("\n"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return (host / "arguments").read_text().splitlines()


@pytest.mark.parametrize("bucket", [True, False])
def test_run_reaches_all_hosts_and_stops_with_a_saved_state(pod, tmp_path, bucket):
    call, hosts = pod
    folder = "gs://faces/runs" if bucket else str(tmp_path / "shared disk")
    flags = ["--config=configs/ffhq128.py", "--config.image_shape=(128, 128, 3)", f"--workdir={folder}"]
    call("run", *flags)
    for host in hosts:
        assert arguments_of(host) == ["-m", "diffae_jax.main", *flags]
    assert call("status").count(": running") == 2
    assert "has an active run: stop it first." in call("run", *flags, code=2)
    assert call("stop").count("ended with exit code 143") == 2
    assert not list(tmp_path.rglob("gs:*"))


@pytest.mark.parametrize("folder", ["runs/here", "gs://"])
def test_folder_that_hosts_cannot_share_is_refused(pod, folder):
    call, _ = pod
    assert "Error: Set --workdir=gs://BUCKET/PATH, or an absolute" in call("run", f"--workdir={folder}", code=2)


def test_folder_that_is_not_shared_is_refused(pod, tmp_path):
    call, hosts = pod
    folder = tmp_path / "seen"
    (tmp_path / "gcloud").write_text(
        GCLOUD.replace("do HOME", f"do [[ $number == 1 ]] && mv {folder} {folder}.0; HOME")
    )
    error = call("run", f"--workdir={folder}", code=2)
    assert f"does not share {folder} with host 0: put --workdir on storage that all hosts mount." in error
    assert not (hosts[0] / "arguments").exists()
