"""The types that networks compute in."""

import jax


def resolve_precision(name: str) -> str:
    """Turns "auto" into the fastest type that the first device computes well; other names pass unchanged.

    bfloat16 on TPU and on GPUs since Ampere, float16 on older GPUs (V100), float32 on CPU.
    """
    if name != "auto":
        return name
    device = jax.devices()[0]
    if device.platform == "tpu":
        return "bfloat16"
    if device.platform == "gpu":
        capability = float(getattr(device, "compute_capability", "8.0"))
        return "bfloat16" if capability >= 8 else "float16"
    return "float32"
