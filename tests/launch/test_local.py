"""launch/local.sh starts real processes, passes signals on, and returns the first failure."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffae_jax.training.checkpoint import latest_step
from tests.environment import ROOT, environment
from tests.runs import NO_GRIDS, TRAINING

SCRIPT = ROOT / "launch" / "local.sh"
ENDLESS = "--config.train.num_images=1_000_000"
LIMIT = 60  # seconds in which all processes end; a lost one is noticed within 30 s


class Started:
    """launch/local.sh with the tiny config, on a terminal of its own."""

    def __init__(self, folder: Path, *arguments: str, count: int = 2, path: str = "", **settings: str):
        python = Path(sys.executable).parent
        search = os.pathsep.join([*filter(None, [path]), str(python), os.environ["PATH"]])
        settings = {"VIRTUAL_ENV": str(python.parent), "PATH": search, "LOGS": str(folder / "logs"), **settings}
        self.folder, self.output = folder / "run", ""
        self._terminal, script_side = pty.openpty()

        def take_terminal() -> None:  # of which Ctrl-C signals the script
            os.setsid()
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # which background jobs ignore, and Bash could not trap
            os.close(os.open(os.ttyname(script_side), os.O_RDWR))

        self._process = subprocess.Popen(
            [SCRIPT, str(count), "--config=tests/tiny.py", f"--workdir={self.folder}", *arguments],
            cwd=ROOT,
            env=environment(**settings),
            stdin=script_side,
            stdout=script_side,
            stderr=script_side,
            preexec_fn=take_terminal,
        )
        os.close(script_side)

    def press_ctrl_c(self) -> None:
        os.write(self._terminal, b"\x03")

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def kill(self, number: int) -> None:
        os.kill(self._pid_of(number), signal.SIGKILL)

    def wait_for_step(self, step: int) -> None:
        folder = self.folder / "autoencoder" / "checkpoints"
        self._read(lambda: folder.exists() and (latest_step(folder) or 0) >= step)

    def finish(self, code: int, timeout: float = LIMIT) -> str:
        """Waits for the end and returns what the terminal has shown."""
        began = time.monotonic()
        self._read(lambda: self._process.poll() is not None)
        assert self._process.returncode == code, self.output
        assert time.monotonic() - began < timeout
        os.close(self._terminal)
        return self.output.replace("\r\n", "\n")

    def _read(self, until) -> None:
        """Reads the terminal, which would otherwise fill up, until something holds."""
        deadline = time.monotonic() + 300
        os.set_blocking(self._terminal, False)
        held = False
        while not held:
            held = until()
            assert held or self._process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            try:
                self.output += os.read(self._terminal, 2**20).decode(errors="replace")
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:  # all processes have closed it
                self._process.wait(10)

    def _pid_of(self, number: int) -> int:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes().decode().split("\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if f"--workdir={self.folder}" in command and f"--process_id={number}" in command:
                return int(folder.name)
        raise AssertionError(f"there is no process {number}:\n{self.output}")


def write_script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def last_step(run: Started) -> int:
    return latest_step(run.folder / "autoencoder" / "checkpoints")


@pytest.mark.long  # test_two_processes.py stops two processes, and the test below has what the script adds
def test_ctrl_c_saves(tmp_path):
    run = Started(tmp_path, TRAINING, ENDLESS, NO_GRIDS)
    run.wait_for_step(4)
    run.press_ctrl_c()
    output = run.finish(code=128 + signal.SIGINT)
    assert "of 2 cpu" in output  # each process has one
    assert f"training stopped, and step {last_step(run):,} is saved." in output
    assert "Process 0 ended with exit code 130." in output
    assert "Process 1 ended with exit code 130." in output
    assert (tmp_path / "logs" / "1.log").exists()


def test_code_of_the_first_process_that_fails_is_returned_when_all_have_ended(tmp_path):
    # test_cluster_faults.py shows that the other one ends after a death, and with code 3
    act = 'case "$*" in *process_id=1*) kill -9 $$ ;; *process_id=0*) sleep 1; exit 3 ;; *) exec {} "$@" ;; esac'
    write_script(tmp_path / "python3", act.format(sys.executable))
    output = Started(tmp_path, path=str(tmp_path)).finish(code=128 + signal.SIGKILL)
    assert "Process 1 ended with exit code 137." in output
    assert "Process 0 ended with exit code 3." in output


@pytest.mark.long  # the test above, and test_cluster_faults.py, show the two parts of it
def test_killed_process_ends_the_others(tmp_path):
    run = Started(tmp_path, TRAINING, ENDLESS)
    run.wait_for_step(4)
    run.kill(1)
    output = run.finish(code=128 + signal.SIGKILL)
    assert "Process 1 ended with exit code 137." in output
    assert "Error: Process 1 ended or lost the connection: see its output. Step " in output
    assert "Process 0 ended with exit code 3." in output


@pytest.mark.long
def test_sigterm_saves_and_a_finished_run_ends_well(tmp_path):
    run = Started(tmp_path, TRAINING, ENDLESS)
    run.wait_for_step(4)
    run.terminate()
    output = run.finish(code=128 + signal.SIGTERM)
    saved = last_step(run)
    assert f"training stopped, and step {saved:,} is saved." in output
    assert "Process 0 ended with exit code 143." in output
    assert "Process 1 ended with exit code 143." in output

    run = Started(tmp_path, TRAINING, f"--config.train.num_images={16 * (saved + 4)}")
    output = run.finish(code=0, timeout=300)
    assert "ended with exit code" not in output
    assert last_step(run) == saved + 4


@pytest.mark.long  # waits 31 s
def test_process_that_does_not_end_is_killed(tmp_path):
    # process 1 fails, and process 0 waits for it and ignores signals
    act = 'case "$*" in *process_id=1*) exit 5 ;; *process_id=0*) trap "" TERM; sleep 300 ;; *) exec {} "$@" ;; esac'
    write_script(tmp_path / "python3", act.format(sys.executable))
    began = time.monotonic()
    output = Started(tmp_path, "--cluster_timeout=1", path=str(tmp_path)).finish(code=5)
    assert 30 < time.monotonic() - began < 50
    assert "Killed the processes 0, which did not end within 31 s." in output


@pytest.mark.parametrize(
    ("count", "error"),
    [("0", "Error: 0 is not a number of processes"), ("--config=tests/tiny.py", "is not a number of processes")],
)
def test_wrong_number_is_refused(tmp_path, count, error):
    assert error in Started(tmp_path, count=count).finish(code=2)


@pytest.mark.parametrize(("visible", "used"), [({}, ["0", "1"]), ({"CUDA_VISIBLE_DEVICES": "5,3,1"}, ["5", "3"])])
def test_each_process_sees_one_gpu(tmp_path, visible, used):
    write_script(tmp_path / "nvidia-smi", "echo 0; echo 1")
    show = 'case "$*" in *process_id=*) echo "GPU $CUDA_VISIBLE_DEVICES of $*" ;; *) exec {} "$@" ;; esac'
    write_script(tmp_path / "python3", show.format(sys.executable))
    output = Started(tmp_path, path=str(tmp_path), JAX_PLATFORMS="", **visible).finish(code=0)
    lines = [line for line in output.splitlines() if line.startswith("GPU")]
    lines += (tmp_path / "logs" / "1.log").read_text().splitlines()
    assert [re.match(r"GPU (\S+) of .*--process_id=(\d)$", line).groups() for line in lines] == [
        (used[0], "0"),
        (used[1], "1"),
    ]
    assert len({re.search(r"--coordinator=(localhost:\d+) --num_processes=2 ", line)[1] for line in lines}) == 1


def test_each_process_needs_a_gpu(tmp_path):
    write_script(tmp_path / "nvidia-smi", "echo 0; echo 1")
    output = Started(tmp_path, count=3, path=str(tmp_path), JAX_PLATFORMS="").finish(code=2)
    assert "Error: 3 processes need 3 GPUs, and there are 2: start fewer, or set JAX_PLATFORMS=cpu." in output
