"""Runs of the command, and what they leave in their folders."""

import json
import socket
import subprocess
import sys
import time

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from diffae_jax.config import from_json
from diffae_jax.models import abstract_model
from diffae_jax.models.build import builder
from diffae_jax.models.functional import flatten
from diffae_jax.training.checkpoint import latest_step
from diffae_jax.training.packing import Packing
from tests.environment import ROOT, environment
from tests.processes import Forked

MANY_STEPS = "--config.train.num_images=640"  # 40 steps: time enough to be killed in
TRAINING = "--stages=autoencoder"
FEW_STEPS = "--config.train.num_images=64"  # 4 steps, the last of which saves and draws a grid
NO_GRIDS = "--config.report.grid_every=10_000_000"  # but the last one; the first takes seconds to compile


def start(workdir, *arguments, devices=1, function="diffae_jax.main:run", settings=None):
    """Starts a run of the tiny config."""
    arguments = ["--config=tests/tiny.py", f"--workdir={workdir}", *arguments]
    return Forked(function, arguments, devices, settings=settings)


def finish(process, code=0, timeout=300):
    """Waits for the end of a process and returns its output."""
    assert process.wait(timeout) == code, process.output
    return process.output


def command(workdir, *arguments, code=0, **settings):
    """Runs the tiny config as a person does, in an interpreter of its own; returns its output."""
    done = subprocess.run(
        [sys.executable, "-m", "diffae_jax.main", "--config=tests/tiny.py", f"--workdir={workdir}", *arguments],
        cwd=ROOT,
        env=environment(**settings),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def free_address():
    """An address of this machine at which nobody listens."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def in_cluster(coordinator, number, of=2):
    """The flags of one of several processes."""
    return f"--coordinator={coordinator}", f"--num_processes={of}", f"--process_id={number}"


def two_processes(workdir, *arguments, each=((), ()), settings=None):
    """Starts a run of two processes of two devices each, with arguments for both and for each."""
    coordinator = free_address()
    return [
        start(workdir, *in_cluster(coordinator, i), *arguments, *each[i], devices=2, settings=settings)
        for i in range(2)
    ]


def wait_for(process, workdir, pattern):
    """Waits until a path of that pattern is in a run's folder."""
    deadline = time.monotonic() + 300
    while not list(workdir.glob(pattern)):
        assert process.is_running(), process.output
        assert time.monotonic() < deadline, f"no {pattern} came"
        time.sleep(0.002)


def wait_for_line(process, text):
    """Waits until a process has printed a text."""
    deadline = time.monotonic() + 300
    while text not in process.output:
        assert process.is_running(), process.output
        assert time.monotonic() < deadline, f"it did not print {text}"
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
    folder = workdir / stage / "checkpoints"
    return ocp.load_checkpointables(folder / str(latest_step(folder)))["state"]


def final_weights(workdir):
    """The weights of the autoencoder at the end of training, by dotted name."""
    _, abstract = abstract_model(builder(from_json(workdir / "config.json"), "float32"))
    return flatten(Packing(abstract).unpack(jax.tree.map(np.asarray, final_state(workdir)["params"])))


def assert_same_run(workdir, other, stage="autoencoder"):
    assert rows_of(workdir, stage) == rows_of(other, stage)
    jax.tree.map(np.testing.assert_array_equal, final_state(workdir, stage), final_state(other, stage))


def files(folder):
    """The bytes of every file below a folder but the lock."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
