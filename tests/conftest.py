"""Eight virtual devices, the persistent compilation cache, and types checked at run time."""

import fcntl
import gc
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partialmethod
from pathlib import Path

from tests.environment import QUICKLY, flags

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags(8, level=1)}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
os.environ["JAX_PLATFORMS"] = "cpu"
# Idle threads of OpenBLAS spin. Workers, and processes that tests start, inherit this setting.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="huggingface-")  # where Parquet is copied to
os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

install_import_hook("diffae_jax", "beartype.beartype")  # before any module of the package is imported

from diffae_jax.runtime.process import GC_THRESHOLDS  # noqa: E402

gc.set_threshold(*GC_THRESHOLDS)  # as the commands do

import jax  # noqa: E402
import pytest  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402
from PIL import Image  # noqa: E402


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


SLOW = (  # files of slow tests, the slowest first
    *("test_docs.py", "test_notebooks.py", "test_buckets.py", "test_evaluation.py", "test_own_data.py"),
    *("test_page.py", "test_transformations.py", "test_counterfactual.py", "test_training.py", "test_structure.py"),
    *("test_wheel.py", "test_two_processes.py", "test_cluster_faults.py", "test_origin.py", "test_loss_terms.py"),
    *("test_local.py", "test_interrupted.py", "test_same_folder.py"),
)


@pytest.hookimpl(trylast=True)  # of the tests that run
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts slow tests first in the part that each worker begins with, so that all end together."""
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    others = iter([item for item in items if item.path.name not in SLOW])
    ordered = []
    for i in range(count):
        slow = [item for name in SLOW[i::count] for item in items if item.path.name == name]
        ordered += [*slow, *itertools.islice(others, max(0, len(items) // count - len(slow)))]
    items[:] = [*ordered, *others]


@pytest.fixture
def tiny_config() -> ConfigDict:
    """A model that compiles in seconds, on the digits."""
    from tests.tiny import get_config

    return get_config()


@pytest.fixture(scope="module")
def compiled_quickly() -> Iterator[None]:
    """Training programs are compiled quickly, for tests that take few steps."""
    compile_ = partialmethod(jax.stages.Lowered.compile, **QUICKLY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", compile_)
        yield


@pytest.fixture(scope="session")
def one_device() -> jax.sharding.Mesh:
    from diffae_jax.runtime.sharding import make_mesh

    return make_mesh(jax.devices()[:1])


@pytest.fixture(scope="session")
def eight_devices() -> jax.sharding.Mesh:
    from diffae_jax.runtime.sharding import make_mesh

    return make_mesh()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Returns a shared folder. The first worker that needs it fills it; later it is read-only.

    `make test` sets a folder that its two runs share.
    """
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    folder = Path(os.environ.get("SHARED_TEST_FOLDER", folder))

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        with (folder / f"{name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not lock.seek(0, os.SEEK_END):  # empty
                shutil.rmtree(folder / name, ignore_errors=True)  # what a worker left that failed
                (folder / name).mkdir()
                fill(folder / name)
                lock.write("filled")
        return folder / name

    return make


@pytest.fixture(scope="session")
def whole(made_once) -> tuple[Path, str]:
    """An uninterrupted run of 40 steps, and its output with a line for each compilation."""
    from tests.runs import MANY_STEPS, command

    def run(folder):
        (folder / "output.txt").write_text(command(folder / "run", MANY_STEPS, JAX_LOG_COMPILES="1"))

    folder = made_once("whole", run)
    return folder / "run", (folder / "output.txt").read_text()


@pytest.fixture(scope="session")
def image_folder(made_once) -> Path:
    """Gray images: as many as two sets of those that are measured with the tiny config."""

    def fill(folder):
        for i in range(32):
            Image.new("L", (12, 12), 8 * i).save(folder / f"{i}.png")

    return made_once("images", fill)
