"""What the processes of the tests run with."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]  # of the repository


def flags(num_devices: int) -> str:
    """Returns XLA flags for a number of virtual devices and fast compilation."""
    # XLA's older emitters need half the time to compile a training step
    quick = "--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false"
    return f"{quick} --xla_force_host_platform_device_count={num_devices}"


def environment(num_devices: int = 1, **settings: str) -> dict[str, str]:
    """Returns the environment of a process that is started by a test."""
    return os.environ | {"XLA_FLAGS": flags(num_devices)} | settings
