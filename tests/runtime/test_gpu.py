"""Refusal of CUDA libraries that do not support an older GPU."""

import types

import jax
import pytest

from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.gpu import check_gpu, installed_version

V100 = types.SimpleNamespace(platform="gpu", compute_capability="7.0", device_kind="Tesla V100-SXM2-16GB")
T4 = types.SimpleNamespace(platform="gpu", compute_capability="7.5", device_kind="Tesla T4")
CUDA12, CUDA13 = "jax-cuda12-plugin", "jax-cuda13-plugin"


@pytest.mark.parametrize(
    ("installed", "sentence"),
    [
        ({CUDA12: "0.10.2", "nvidia-cudnn-cu12": "9.28.0.42"}, "needs cuDNN 9.10 or older, but 9.28.0.42 is installed"),
        ({CUDA12: "0.10.2", "nvidia-cudnn-cu12": "10.0.0.1"}, "but 10.0.0.1 is installed"),
        ({CUDA13: "0.10.2"}, "needs CUDA 12, but CUDA 13 is installed"),
    ],
)
def test_a_v100_is_refused_with_the_remedy(installed, sentence):
    with pytest.raises(UserError, match=r"compute capability 7\.0") as refused:
        check_gpu(V100, installed.get)
    assert sentence in str(refused.value)
    assert "nvidia-cudnn-cu12==9.10.2.21" in str(refused.value)


def test_others_are_not_refused():
    check_gpu(V100, {CUDA12: "0.10.2", "nvidia-cudnn-cu12": "9.10.2.21"}.get)
    check_gpu(V100, {CUDA12: "0.10.2"}.get)  # a cuDNN of the system, whose version JAX checks
    check_gpu(T4, {CUDA13: "0.10.2", "nvidia-cudnn-cu13": "9.28.0.42"}.get)
    mi300 = types.SimpleNamespace(platform="gpu", compute_capability="gfx942:sramecc+:xnack-", device_kind="MI300X")
    check_gpu(mi300, {}.get)
    check_gpu(jax.devices("cpu")[0], {"nvidia-cudnn-cu12": "9.28.0.42"}.get)


def test_versions_are_those_of_installed_packages():
    assert installed_version("jax") == jax.__version__
    assert installed_version("no-such-package") is None
