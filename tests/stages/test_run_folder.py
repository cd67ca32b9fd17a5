"""The lock of a run folder: one run at a time, and none that outlives its process."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from diffae_jax.runtime.errors import UserError
from diffae_jax.stages.run_folder import RunFolder
from tests.environment import ROOT
from tests.messages import assert_is_one_sentence

HOLD = """
import sys, time
from diffae_jax.config import default
from diffae_jax.stages.run_folder import RunFolder
with RunFolder(sys.argv[1], default()):
    print("held", flush=True)
    time.sleep(600)
"""


def is_refused(folder, config):
    with pytest.raises(UserError, match="in use by another run: wait for it, or set a different --workdir") as refusal:
        RunFolder(folder, config).__enter__()
    assert_is_one_sentence(refusal.value)


def test_two_runs_of_a_process_hold_the_folder_one_after_the_other_only(tmp_path, tiny_config):
    folders = [RunFolder(tmp_path, tiny_config) for _ in range(2)]  # which live on: leaving each has to unlock
    for folder in folders:
        with folder:
            is_refused(tmp_path, tiny_config)
        with pytest.raises(RuntimeError, match="lost"), RunFolder(tmp_path, tiny_config):
            raise RuntimeError("lost")


def test_folder_that_was_refused_is_free_though_its_error_is_kept(tmp_path, tiny_config):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match="cannot be written") as kept:
        RunFolder(tmp_path, tiny_config).__enter__()
    (tmp_path / "config.json").rmdir()
    with RunFolder(tmp_path, tiny_config):
        assert kept.value.__traceback__ is not None


def test_run_that_was_killed_leaves_no_lock_behind(tmp_path, tiny_config):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            is_refused(tmp_path, tiny_config)
        finally:
            holder.send_signal(signal.SIGKILL)
        holder.wait()
        with RunFolder(tmp_path, tiny_config):
            assert (tmp_path / ".lock").exists()


@pytest.mark.parametrize("answer", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_system_without_locks_gives_a_warning(tmp_path, tiny_config, monkeypatch, capsys, answer):
    def flock(file, operation):
        raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(fcntl, "flock", flock)  # as such a file system answers
    with RunFolder(tmp_path, tiny_config):
        assert (tmp_path / "config.json").exists()
    assert "has no locks: make sure that no other run uses the folder" in capsys.readouterr().out


def test_home_is_found(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with RunFolder("~/run", tiny_config) as folder:
        assert folder.path == tmp_path / "run"
    assert (tmp_path / "run" / "config.json").exists()
    assert not Path("~").exists()
