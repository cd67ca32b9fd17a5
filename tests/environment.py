"""What the processes of the tests run with."""

import os
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]  # of the repository
QUICKLY = {"compiler_options": {"xla_backend_optimization_level": 0}}  # for `jax.jit` and `compile`: see `flags`


def flags(num_devices: int, level: int = 0) -> str:
    """Returns XLA flags for a number of virtual devices and fast compilation.

    Programs of level 0 compile in a third of the time of those of level 1, and run for three times
    as long: 1.4 s and 90 ms instead of 4.6 s and 35 ms for a step of the tiny networks.
    """
    quick = f"--xla_backend_optimization_level={level}"
    if version("jaxlib").startswith("0.10."):  # jaxlib 0.12 ends at this flag
        quick += " --xla_cpu_use_fusion_emitters=false"  # the older emitters compile in half the time
    return f"{quick} --xla_force_host_platform_device_count={num_devices}"


def environment(num_devices: int = 1, **settings: str) -> dict[str, str]:
    """Returns the environment of a process that is started by a test."""
    return os.environ | {"XLA_FLAGS": flags(num_devices)} | settings
