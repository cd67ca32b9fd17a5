"""Eight virtual devices, the persistent compilation cache, and types checked at run time."""

import os
from pathlib import Path

from tests.environment import flags

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags(8)}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ["JAX_PLATFORMS"] = "cpu"

from jaxtyping import install_import_hook

install_import_hook("diffae_jax", "beartype.beartype")  # before any module of the package is imported

import jax  # noqa: E402
import pytest  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402


@pytest.fixture
def tiny_config() -> ConfigDict:
    """A model that compiles in seconds, on the digits."""
    from tests.tiny import get_config

    return get_config()


@pytest.fixture(scope="session")
def one_device() -> jax.sharding.Mesh:
    from diffae_jax.runtime.sharding import make_mesh

    return make_mesh(jax.devices()[:1])


@pytest.fixture(scope="session")
def eight_devices() -> jax.sharding.Mesh:
    from diffae_jax.runtime.sharding import make_mesh

    return make_mesh()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the file that takes longest, so that no worker is left with it at the end."""
    items.sort(key=lambda item: item.path.name != "test_main.py")
