"""Training on a CPU: one device for each core."""

import os
import subprocess
import sys

import joblib
import pytest

from tests.environment import ROOT

PROGRAM = """
import sys
from diffae_jax.cli.train import parse
from diffae_jax.runtime.cpu import use_all_cores
use_all_cores(parse(["--config=digits", *sys.argv[1:]]).config)
import jax
print(jax.device_count())
"""
CORES = min(joblib.cpu_count(only_physical_cores=True), 8)


def run(arguments, **settings):
    inherited = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment = inherited | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | settings
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "settings", "count"),
    [
        ([], {}, max(n for n in range(1, CORES + 1) if 32 % n == 0)),
        (["--config.train.batch_size=1"], {}, 1),
        (["--config.execution.num_microbatches=32"], {}, 1),
        ([], {"JAX_NUM_CPU_DEVICES": "3"}, 3),
        ([], {"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}, 5),
    ],
)
def test_each_core_is_a_device_if_batches_can_be_split(arguments, settings, count):
    assert run(["-c", PROGRAM, *arguments], **settings) == (0, f"{count}\n", "")


def test_settings_are_checked_before_cores_are_counted(tmp_path):
    wrong = "--config.execution.num_microbatches=0"
    code, _, errors = run(["-m", "diffae_jax.main", "--config=digits", wrong, f"--workdir={tmp_path / 'run'}"])
    assert code == 2
    assert "num_microbatches" in errors
    assert "Traceback" not in errors


def test_config_that_uses_jax_keeps_its_devices(tmp_path):
    config = "import jax.numpy as jnp\nX = jnp.ones(3)\nfrom configs.digits import get_config\n"
    (tmp_path / "mine.py").write_text(config)
    program = PROGRAM.replace("--config=digits", f"--config={tmp_path / 'mine.py'}")
    assert run(["-c", program]) == (0, "1\n", "")


def test_devices_of_a_program_that_has_imported_jax_are_its_own():
    program = "import jax; from diffae_jax.main import run; run(['--config=digits', '--stages=none']); "
    code, output, errors = run(["-c", f"try:\n    {program}\nexcept SystemExit:\n    print(jax.device_count())"])
    assert (code, output) == (0, "1\n"), errors
