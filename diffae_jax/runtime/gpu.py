"""Whether the installed CUDA libraries support the GPU of this machine."""

import importlib.metadata
import re
from collections.abc import Callable
from typing import Any

from diffae_jax.runtime.errors import UserError

OLDEST_FOR_CUDA13 = 7.5  # compute capability; the V100 has 7.0
LAST_CUDNN_FOR_OLDER = (9, 10)
REPAIR = 'pip install "jax[cuda12]" nvidia-cudnn-cu12==9.10.2.21'


def installed_version(package: str) -> str | None:
    """Returns the version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_gpu(device: Any, version_of: Callable[[str], str | None] = installed_version) -> None:
    """Raises UserError if the installed CUDA or cuDNN is too new for a GPU such as the V100.

    Args:
        device: A device of JAX; others than GPUs are never refused.
        version_of: Returns the version of an installed package, or None.
    """
    capability = getattr(device, "compute_capability", None) if device.platform == "gpu" else None
    if not re.fullmatch(r"\d+\.\d+", str(capability)) or float(capability) >= OLDEST_FOR_CUDA13:
        return  # GPUs of AMD have names such as gfx942
    gpu = f"This GPU ({device.device_kind}, compute capability {capability})"
    if version_of("jax-cuda13-plugin") and not version_of("jax-cuda12-plugin"):
        raise UserError(
            f"{gpu} needs CUDA 12, but CUDA 13 is installed: run pip uninstall jax-cuda13-plugin; {REPAIR}."
        )
    cudnn = version_of("nvidia-cudnn-cu12")
    if cudnn and tuple(map(int, cudnn.split(".")[:2])) > LAST_CUDNN_FOR_OLDER:
        raise UserError(f"{gpu} needs cuDNN 9.10 or older, but {cudnn} is installed: run {REPAIR}.")
