"""The number type in which networks compute."""

import jax


def resolve_precision(name: str) -> str:
    """Returns the number type for a precision; "auto" gives the fastest that the device supports.

    That is bfloat16 on TPUs and on GPUs since Ampere, float16 on older GPUs (V100), float32 on
    CPUs.
    """
    if name != "auto":
        return name
    device = jax.devices()[0]
    if device.platform == "tpu":
        return "bfloat16"
    if device.platform == "gpu":
        return precision_of_gpu(float(getattr(device, "compute_capability", "8.0")))
    return "float32"


def precision_of_gpu(compute_capability: float) -> str:
    """Returns the fastest number type of a GPU: bfloat16 exists since Ampere (8.0)."""
    return "bfloat16" if compute_capability >= 8 else "float16"
