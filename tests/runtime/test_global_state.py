"""The package inside another program: global state that import and training must not change."""

import subprocess
import sys

import pytest

import diffae_jax
from tests.environment import ROOT, environment

STATE = '''
import locale, logging, os, signal, sys, threading, warnings
import flax.nnx, jax, numpy as np

def signals():
    return {number: signal.getsignal(number) for number in signal.valid_signals()}

def state():
    """What belongs to the whole process."""
    return {
        "handlers of the root logger": list(logging.root.handlers),
        "level of the root logger": (logging.root.level, logging.root.disabled, logging.root.manager.disable),
        "handlers of the library": (logging.getLogger("diffae_jax").handlers, logging.getLogger("diffae_jax").level),
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "signals": signals(),
        "settings of jax": dict(jax.config.values),
        "numpy": (np.geterr(), np.get_printoptions()),
        "path": list(sys.path),
        "folder": os.getcwd(),
        "locale": locale.setlocale(locale.LC_ALL),
        "hooks": (sys.excepthook, threading.excepthook, sys.stdout, sys.stderr),
        "threads": threading.active_count(),
    }

def changed(before):
    after = state()
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}
'''


def run_program(program, *arguments, **settings):
    """Runs a program in a fresh process and returns what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", STATE + program, *map(str, arguments)],
        env=environment(JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT), **settings),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_every_module_changes_nothing(tmp_path):
    program = """
import importlib, pkgutil
from pathlib import Path
before = state()
import diffae_jax
names = [module.name for module in pkgutil.walk_packages(diffae_jax.__path__, "diffae_jax.")]
for name in names:
    importlib.import_module(name)
    assert not changed(before), (name, changed(before))
print(len(names))
heavy = {"matplotlib.pyplot", "tensorflow", "orbax.checkpoint"} & set(sys.modules)
assert not heavy, heavy
import matplotlib
assert matplotlib.rcParams._get_backend_or_none() is None, "a notebook chooses how its plots are drawn"
from diffae_jax.evaluation.curves import save_curves
save_curves(Path(sys.argv[1]), {"y": {"a": [(1.0, 2.0)]}}, "x")
diffae_jax.to_pil(np.zeros((1, 8, 8, 1), np.float32)), diffae_jax.image_grid(np.zeros((1, 8, 8, 1), np.float32))
from diffae_jax.data.pictures import save_rows
save_rows(Path(sys.argv[1]), {"zero": np.zeros((2, 8, 8, 1), np.float32)})
assert matplotlib.rcParams._get_backend_or_none() is None
assert "matplotlib.pyplot" not in sys.modules
"""
    files = [path for path in (ROOT / "diffae_jax").rglob("*.py") if path.parent.name != "diffae_jax"]
    assert int(run_program(program, tmp_path / "rows.png")) >= len(files)


HEAVY = ("sklearn", "scipy", "orbax", "matplotlib.pyplot", "grain", "tensorflow", "pandas", "pyarrow", "clu")


@pytest.mark.alone
def test_importing_the_model_is_quick_and_brings_no_heavy_library():
    program = f"""
import time
with_jax = time.process_time()
from diffae_jax import DiffAE
both = time.process_time()
loaded = [name for name in {HEAVY} if name in sys.modules]
assert not loaded, loaded
assert both <= max(1.5, 1.7 * with_jax), f"{{both:.2f}} s of processor time, {{with_jax:.2f}} of them for jax and flax"
"""
    run_program(program)


def test_editors_are_offered_what_the_package_has():
    pictures = {"difference_map", "film", "image_grid", "image_rows", "to_pil"}
    offered = {"DiffAE", "import_official", "to_uint8", *pictures}
    assert set(diffae_jax.__all__) == offered
    assert offered | {"__version__"} <= set(dir(diffae_jax))
    for name in offered:
        assert getattr(diffae_jax, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'decode'"):
        _ = diffae_jax.decode


def test_runs_follow_each_other_in_one_process_and_leave_it_as_it_was(tmp_path):
    """The command, then again in a running event loop, as in a notebook, and a run in a thread."""
    program = """
import asyncio
from pathlib import Path
from diffae_jax import main
from diffae_jax.stages.chain import run_stages
from diffae_jax.training.metrics import read_metrics
from tests.tiny import get_config

folder, other = map(Path, sys.argv[1:])
before = state()
for name in ("path", "environment", "settings of jax", "threads", "warnings"):
    del before[name]  # what a command sets up once, and what other libraries do when they are imported
steps = lambda folder: [row["step"] for row in read_metrics(folder) if "loss" in row]

def command():
    main.run(["--config=tests/tiny.py", "--config.train.num_images=64", "--stages=autoencoder", f"--workdir={folder}"])

async def in_a_loop():
    of_the_loop = signals()
    command()
    assert signals() == of_the_loop

def in_a_thread():
    try:
        config = get_config()
        config.train.num_images = 4 * config.train.batch_size
        run_stages(config, str(other), ["autoencoder"])
    except BaseException as error:
        errors.append(error)

command()
assert not changed(before), changed(before)
assert steps(folder)[-1] == 4
rows = read_metrics(folder)
asyncio.run(in_a_loop())
assert not changed(before), changed(before)
assert read_metrics(folder) == rows, "the second command finds all done"
errors = []
thread = threading.Thread(target=in_a_thread)
thread.start()
thread.join()
assert not errors, errors
assert steps(other)[-1] == 4
assert not changed(before), changed(before)
"""
    run_program(program, tmp_path / "a", tmp_path / "b")
