"""Without PyTorch, the comparison says how to install it."""

import importlib.util
import subprocess
import sys

import pytest

from tests.environment import ROOT


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed")
def test_missing_pytorch_is_reported_with_its_command():
    done = subprocess.run([sys.executable, "-m", "benchmarks.against_torch"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        'PyTorch is not installed: run pip install --editable ".[bench]" in the folder of the project.\n'
    )
