"""One CPU device for each core, because XLA leaves a third of the cores idle with a single one."""

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported late: `use_all_cores` comes before JAX looks for devices
    import jax

MOST_DEVICES = 8  # each holds a copy of the weights and of the optimizer state
FLAG = "xla_force_host_platform_device_count"


def use_all_cores(config: Any) -> None:
    """Lets JAX use the cores of this machine as devices, over which training splits each batch.

    This has no effect on GPUs and TPUs. Call it before JAX looks for devices. The environment
    variable JAX_NUM_CPU_DEVICES, or the XLA flag for the same purpose, takes precedence.

    Args:
        config: The config of the training. The number of devices divides its batch sizes.
    """
    if "JAX_NUM_CPU_DEVICES" in os.environ or FLAG in os.environ.get("XLA_FLAGS", ""):
        return
    import jax
    from joblib import cpu_count

    most = min(cpu_count(only_physical_cores=True), MOST_DEVICES)
    batch_sizes = config.train.batch_size // config.execution.num_microbatches, config.prior.batch_size
    fitting = (n for n in range(most, 0, -1) if all(size % n == 0 for size in batch_sizes))
    with contextlib.suppress(RuntimeError):  # a config file has used JAX, which fixed the number of devices
        jax.config.update("jax_num_cpu_devices", next(fitting, 1))


def speed_of_products(device: "jax.Device", dtype: str, *, size: int) -> float:
    """Returns the FLOP/s that a device reaches in products of two matrices of `size` rows."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((size, size), dtype, device=device)
    product = jax.jit(lambda a: a @ a).lower(a).compile()
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        jax.block_until_ready(product(a))
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)
