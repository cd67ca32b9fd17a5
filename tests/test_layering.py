"""The rooms of the package: what may import what, and what importing must not do."""

import ast
import os
import subprocess
import sys

import pytest

from tests.environment import ROOT

PACKAGE = ROOT / "diffae_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# The rooms from the top: a file imports what stands below its own line, or in its own room.
LAYERS = (
    ("main",),
    ("cli",),
    ("demo",),
    ("plan",),
    ("stages",),
    ("diffae_jax",),  # the package itself: what `from diffae_jax import ...` offers
    ("evaluation", "convert"),
    ("inference",),
    ("training", "probes", "data"),  # which know nothing of each other
    ("torch_files", "config"),
    ("diffusion", "models"),
    ("pretrained",),
    ("runtime",),
)
DEPTH = {room: depth for depth, rooms in enumerate(LAYERS) for room in rooms}

# These know nothing of the rest, not even its configs and errors, so that they can be taken alone.
INDEPENDENT = ("models", "diffusion")
THEIR_LIBRARIES = {"jax", "flax", "numpy", "jaxtyping", *sys.stdlib_module_names}


def imported_modules(tree, room):
    """Yields the dotted name of each module that a syntax tree imports, also within functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {room}"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def room_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "diffae_jax" if parts == ("__init__",) else parts[0]


def room_of_module(name):
    """The package of `diffae_jax.x.y`, or diffae_jax itself if x is one of its public names."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in DEPTH else "diffae_jax"


def violations(source, room):
    """Returns what a file of that room imports and must not."""
    found = []
    for name in imported_modules(ast.parse(source), room):
        if name == "diffae_jax.__version__":
            allowed = room not in INDEPENDENT  # a constant, which brings nothing
        elif name.split(".")[0] == "diffae_jax":
            other = room_of_module(name)
            allowed = other == room or (DEPTH[other] > DEPTH[room] and room not in INDEPENDENT)
        else:
            allowed = room not in INDEPENDENT or name.split(".")[0] in THEIR_LIBRARIES
        if not allowed:
            found.append(name)
    return found


def test_the_root_holds_two_files_and_rooms_that_say_what_they_are():
    assert sorted(path.name for path in PACKAGE.glob("*.py")) == ["__init__.py", "main.py"]
    folders = {path.parent for path in FILES}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]
    for folder in folders:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), f"{folder} does not say what it is"


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_file_imports_only_what_stands_below_it(path):
    assert room_of(path) in DEPTH, "a new room needs its place among the layers"
    assert violations(path.read_text(), room_of(path)) == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("models", "from diffae_jax.diffusion import loss"),
        ("models", "from diffae_jax.runtime.errors import UserError"),
        ("models", "def f():\n    import optax"),
        ("diffusion", "import diffae_jax.models.unet as unet"),
        ("diffusion", "from diffae_jax.config import default"),
        ("data", "from diffae_jax import training"),
        ("training", "from diffae_jax.data.batches import on_devices"),
        ("evaluation", "from diffae_jax.convert import import_official"),
        ("inference", "from diffae_jax import DiffAE"),
        ("demo", "from diffae_jax.cli import main"),
        ("runtime", "import diffae_jax.config"),
    ],
)
def test_a_wrong_import_is_found(room, source):
    assert len(violations(source, room)) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("models", "import math, jax.numpy as jnp\nfrom flax import nnx\nfrom diffae_jax.models import blocks"),
        ("training", "import optax\nfrom diffae_jax.runtime.sharding import spread"),
        ("stages", "from diffae_jax import DiffAE, inference\nfrom diffae_jax.diffusion.loss import diffusion_loss"),
        ("cli", "from diffae_jax import DiffAE, __version__"),
    ],
)
def test_a_right_import_is_let_through(room, source):
    assert violations(source, room) == []


def test_importing_loads_no_tensorflow_and_starts_no_backend():
    # The number of CPU devices can be set only as long as no backend was started.
    program = """
import sys
import diffae_jax
assert not {"jax", "diffae_jax.pretrained"} & set(sys.modules)
import jax
jax.config.update("jax_num_cpu_devices", 2)
import diffae_jax.stages.chain
jax.config.update("jax_num_cpu_devices", 3)
assert "tensorflow" not in sys.modules
assert jax.device_count() == 3, jax.devices()
"""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_package_imports_nothing_that_only_unix_has():
    of_unix = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog"}
    for path in FILES:
        names = {name.split(".")[0] for name in imported_modules(ast.parse(path.read_text()), path)}
        assert not names & of_unix, path


def test_package_unpickles_nothing_and_hides_nothing():
    assert [path.name for path in FILES if path.stem in ("utils", "util", "helpers", "common", "misc")] == []
    for path in FILES:
        modules = list(imported_modules(ast.parse(path.read_text()), path))
        picklers = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
        assert not {name.split(".")[0] for name in modules if name != "joblib.cpu_count"} & picklers, path
        assert not [name for name in modules if name.endswith(".*")], path
