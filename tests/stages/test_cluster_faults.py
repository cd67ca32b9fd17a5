"""What the processes of a cluster say when one of them is missing, dies, hangs or differs."""

import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from PIL import Image

from diffae_jax import main
from tests.environment import ROOT, environment
from tests.runs import (
    MANY_STEPS,
    NO_GRIDS,
    TRAINING,
    command,
    finish,
    free_address,
    in_cluster,
    start,
    two_processes,
    wait_for,
    wait_for_checkpoint,
)

LONG_TRAINING = "--config.train.num_images=1_000_000"
NATIVE = re.compile(r"^[IWEF]\d{4} |\*\*\*|Fatal Python error|Traceback|terminate called", re.MULTILINE)


def only_error(output):
    """The sentence at the end of the output, which must have no trace of the libraries."""
    assert not NATIVE.search(output), output
    errors = [line for line in output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, output
    assert output.rstrip().endswith(errors[0]), output
    return errors[0].removeprefix("Error: ")


@pytest.mark.parametrize(("present", "missing", "advice"), [(0, 1, "check that all run"), (1, 0, "process 0 runs")])
def test_missing_process_is_named(tmp_path, present, missing, advice):
    began = time.monotonic()
    process = start(tmp_path, *in_cluster(free_address(), present), "--cluster_timeout=2")
    error = only_error(finish(process, code=3))
    assert time.monotonic() - began < 20
    assert error.startswith(f"Process {missing} of 2 did not come within 2 s: ")
    assert advice in error
    assert error.endswith("or set a longer --cluster_timeout.")


@pytest.mark.long
@pytest.mark.parametrize("present", [0, 1])
def test_missing_task_of_a_scheduler_is_reported(tmp_path, present):
    slurm = {"JOB_ID": "4077", "STEP_NODELIST": "localhost", "NTASKS": "2", "STEP_NUM_TASKS": "2"}
    slurm |= {"PROCID": str(present), "LOCALID": str(present)}
    environ = {f"SLURM_{name}": value for name, value in slurm.items()}
    error = only_error(command(tmp_path, "--cluster_timeout=3", code=3, **environ))
    assert error.startswith("Not all processes came in time: check that all of them run, or set a longer --cluster_")


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.long), 1])
def test_killed_process_ends_the_training_of_the_other(tmp_path, victim):
    processes = two_processes(tmp_path, LONG_TRAINING, NO_GRIDS, TRAINING)
    wait_for_checkpoint(processes[0], tmp_path, 4)
    processes[victim].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    error = only_error(finish(processes[1 - victim], code=3))
    assert time.monotonic() - killed < 30
    assert re.fullmatch(
        rf"Process {victim} ended or lost the connection: see its output\. Step \d+ of the autoencoder is saved\. "
        rf"To resume, run the same command again\.",
        error,
    )


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.long)])
def test_killed_process_ends_the_latents_of_the_other(whole, tmp_path, victim):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    for made in ("latents", "prior", "probes"):
        shutil.rmtree(workdir / made)
    processes = two_processes(workdir, MANY_STEPS, "--stages=latents")
    wait_for(processes[0], workdir, "latents/*")
    processes[victim].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    error = only_error(finish(processes[1 - victim], code=3))
    assert time.monotonic() - killed < 30
    assert error.startswith(f"Process {victim} ended or lost the connection: see its output. Step 40 of the auto")


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
def test_process_that_hangs_ends_the_training_of_the_other(tmp_path, victim):
    # the collectives wait forever, as those of GPUs do after a death; only the heartbeat ends
    processes = two_processes(tmp_path, LONG_TRAINING, TRAINING)
    wait_for_checkpoint(processes[0], tmp_path, 4)
    processes[victim].send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        error = only_error(finish(processes[1 - victim], code=3))
    finally:
        processes[victim].send_signal(signal.SIGKILL)
    assert time.monotonic() - stopped < 40
    assert error.startswith(f"Process {victim} ended or lost the connection")


@pytest.mark.long
def test_tracker_that_cannot_be_used_is_named_and_ends_all_processes(tmp_path):
    (tmp_path / "file").write_text("")
    settings = {"MLFLOW_TRACKING_URI": (tmp_path / "file" / "below").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}
    processes = two_processes(tmp_path / "run", "--config.report.tracker=mlflow", TRAINING, settings=settings)
    first, second = (only_error(finish(process, code=2)) for process in processes)
    assert first.startswith("report.tracker=mlflow cannot be used (Not a directory). Log in or check its server")
    assert second == "Another process could not continue. See its error message."


def run_with_a_bug():
    def split(*_):
        raise AttributeError("a bug")

    jax.random.split = split  # called when the training begins
    main.run()


@pytest.mark.long
def test_bug_in_one_process_is_shown_and_ends_the_other(tmp_path):
    coordinator = free_address()
    good = start(tmp_path, *in_cluster(coordinator, 0), TRAINING, devices=2)
    function = "tests.stages.test_cluster_faults:run_with_a_bug"
    bad = start(tmp_path, *in_cluster(coordinator, 1), TRAINING, devices=2, function=function)
    assert "AttributeError: a bug" in finish(bad, code=1)
    ended = time.monotonic()
    error = only_error(finish(good, code=3))
    assert time.monotonic() - ended < 30
    assert error.startswith("Process 1 ended or lost the connection: see its output. No step is saved yet: run the")


def run_slowly():
    """Takes 35 s before its first computation. The other waits 30 s for its connection."""
    allgather = multihost_utils.process_allgather
    multihost_utils.process_allgather = lambda *arguments: (time.sleep(35), allgather(*arguments))[1]
    main.run()


@pytest.mark.long
def test_slow_start_of_one_process_ends_both(tmp_path):
    coordinator = free_address()
    fast = start(tmp_path, *in_cluster(coordinator, 0), devices=2)
    function = "tests.stages.test_cluster_faults:run_slowly"
    slow = start(tmp_path, *in_cluster(coordinator, 1), devices=2, function=function)
    for process in (fast, slow):
        error = only_error(finish(process, code=3))
        assert "lost" in error
        assert error.endswith("No step is saved yet: run the same command again.")


def refusals(processes):
    """The one sentence of two processes that refuse to start."""
    first, second = (only_error(finish(process, code=2)) for process in processes)
    assert first == second
    return first


def test_different_config_is_refused_by_both(tmp_path):
    processes = two_processes(tmp_path, each=((), ("--config.train.batch_size=32",)))
    assert refusals(processes) == (
        "The processes differ in config.train.batch_size: 16 in process 0, 32 in process 1. Start all processes with "
        "the same flags."
    )
    assert not (tmp_path / "autoencoder").exists()


def test_different_images_are_refused_by_both(tmp_path):
    for name, count in (("one", 20), ("other", 19)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("L", (8, 8), 10 * i).save(tmp_path / name / f"{i}.png")
    each = [(f"--config.data.path={tmp_path / name}",) for name in ("one", "other")]
    error = refusals(two_processes(tmp_path / "run", each=each))
    assert re.match(r"The processes differ in data.json, \w+: \S+ in process 0, \S+ in process 1\. Check that ", error)


def run_in_the_future():
    now = time.time
    time.time = lambda: now() + 100
    main.run()


def test_different_clock_is_refused_by_both(tmp_path):
    coordinator = free_address()
    function = "tests.stages.test_cluster_faults:run_in_the_future"
    processes = [
        start(tmp_path, *in_cluster(coordinator, 0)),
        start(tmp_path, *in_cluster(coordinator, 1), function=function),
    ]
    error = refusals(processes)
    seconds = re.fullmatch(
        r"The clock of process 1 is (\d+) s ahead of that of process 0\. Set the clocks of the machines, for example "
        r"with NTP\.",
        error,
    )
    np.testing.assert_allclose(int(seconds[1]), 100, atol=5)


@pytest.mark.long
def test_different_code_is_refused_by_both(tmp_path):
    package = tmp_path / "code" / "diffae_jax"
    shutil.copytree(ROOT / "diffae_jax", package, ignore=shutil.ignore_patterns("__pycache__"))
    with (package / "training" / "step.py").open("a") as file:
        file.write("# another line\n")
    coordinator = free_address()
    first = start(tmp_path / "run", *in_cluster(coordinator, 0))
    arguments = "-m", "diffae_jax.main", f"--config={ROOT}/tests/tiny.py", f"--workdir={tmp_path / 'run'}"
    second = subprocess.run(
        [sys.executable, *arguments, *in_cluster(coordinator, 1)],
        cwd=tmp_path / "code",
        env=environment(PYTHONPATH=f"{tmp_path / 'code'}:{ROOT}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )
    assert second.returncode == 2, second.stdout
    error = only_error(second.stdout)
    assert only_error(finish(first, code=2)) == error
    assert re.match(
        r"The processes differ in diffae_jax: version (\S+), code \w{8} in process 0, version \1, code \w{8} in "
        r"process 1\. Install the same version on all machines\.",
        error,
    )
