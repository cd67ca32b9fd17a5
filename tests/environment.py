"""What the processes of the tests run with."""

import os
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]  # of the repository


def flags(num_devices: int, level: int = 1) -> str:
    """Returns XLA flags for a number of virtual devices and fast compilation.

    At level 0, a program compiles in half the time, but is slow: for those that take a few steps.
    """
    quick = f"--xla_backend_optimization_level={level}"
    if version("jaxlib").startswith("0.10."):  # jaxlib 0.12 ends at this flag
        quick += " --xla_cpu_use_fusion_emitters=false"  # the older emitters compile in half the time
    return f"{quick} --xla_force_host_platform_device_count={num_devices}"


def environment(num_devices: int = 1, **settings: str) -> dict[str, str]:
    """Returns the environment of a process that is started by a test."""
    return os.environ | {"XLA_FLAGS": flags(num_devices)} | settings
