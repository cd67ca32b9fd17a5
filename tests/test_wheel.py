"""The installed package: contents of its wheel, and training from an empty folder."""

import json
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

from tests.environment import ROOT, environment
from tests.pages import TRAINING

SOURCES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CITATION.cff")
SOURCES += ("diffae_jax", "configs", "tests")
BUILD_SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
WRITE_METADATA = BUILD_SDIST.replace("build_sdist", "prepare_metadata_for_build_wheel")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
OFFLINE = ("--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir")
TINY = (*TRAINING, "--config.report.log_every=16")


def run(*command, cwd):
    """Returns what a process prints that knows nothing of this checkout."""
    settings = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=settings, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what a build reads, for a build leaves folders where it runs."""
    folder = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """The wheel that pip builds from the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-c", BUILD_SDIST, folder, cwd=source)
    (sdist,) = folder.glob("*.tar.gz")
    run(*PIP, "wheel", *OFFLINE, "--wheel-dir", folder, sdist, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def environment_with(folder, *installed):
    """Creates an environment with our dependencies and only the wheel of the project."""
    venv.create(folder, symlinks=True)
    site_packages = next(folder.glob("lib/python*/site-packages"))
    # a path in a .pth is searched, but the .pth files in it, such as that of an editable install,
    # are not read
    site_packages.joinpath("dependencies.pth").write_text("\n".join({*map(sysconfig.get_path, ("purelib", "platlib"))}))
    run(*PIP, "--python", folder / "bin" / "python", "install", *OFFLINE, *installed, cwd=folder)
    return folder / "bin"


def test_wheel_holds_the_package_and_its_configs_and_no_tests(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in names} == {"diffae_jax", f"{wheel.name.split('-py3')[0]}.dist-info"}
    package = [path for path in (ROOT / "diffae_jax").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {f"diffae_jax/{path.relative_to(ROOT / 'diffae_jax')}" for path in package}
    assert "diffae_jax/evaluation/report/report.html.jinja" in expected
    assert "diffae_jax/pretrained/digits/weights.safetensors" in expected
    expected |= {f"diffae_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert {name for name in names if name.startswith("diffae_jax/")} == expected


def test_package_page_has_the_license_and_links(source, wheel, tmp_path):
    """Links of the README are absolute if CITATION.cff names a repository."""
    (name,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA"))
    page = zipfile.ZipFile(wheel).read(name).decode()
    assert "License-Expression: Apache-2.0\n" in page
    assert "Project-URL: Paper, https://arxiv.org/abs/2111.15640\n" in page
    copy = shutil.copytree(source, tmp_path / "source")
    with (copy / "CITATION.cff").open("a") as file:
        file.write('repository-code: "https://example.org/x/y"\n')
    run(sys.executable, "-c", WRITE_METADATA, tmp_path, cwd=copy)
    page = next(tmp_path.glob("*.dist-info/METADATA")).read_text()
    assert "Project-URL: Source, https://example.org/x/y\n" in page
    assert "](https://example.org/x/y/blob/v0.1.0/docs/install.md)" in page
    assert "](https://example.org/x/y/raw/v0.1.0/docs/quickstart.png)" in page
    assert "](docs/" not in page


def test_wheel_trains_in_an_empty_environment_from_an_empty_folder(wheel, tmp_path):
    bin_, here = environment_with(tmp_path / "venv", wheel), tmp_path / "empty"
    here.mkdir()
    assert "10 classes" in run(bin_ / "diffae", "info", "digits", cwd=here)
    where = run(bin_ / "python", "-c", "import diffae_jax; print(diffae_jax.__file__)", cwd=here)
    assert where.startswith(str(tmp_path / "venv"))
    _, *command = shlex.split(run(bin_ / "diffae", "data", "digits", cwd=here).splitlines()[-1])
    assert command == ["-m", "diffae_jax.main", "--config=configs/digits.py"]
    output = run(bin_ / "python", *command, *TINY, cwd=here)
    assert "1,437 to train on, 360 held out" in output
    rows = [json.loads(line) for line in (here / "runs" / "digits" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    output = run(bin_ / "diffae", "train", "--config", "digits", *TINY, cwd=here)
    assert "autoencoder: finished, 32 images seen" in output
    assert [path.name for path in here.iterdir()] == ["runs"]


def test_editable_install_finds_the_configs_from_any_folder(source, tmp_path):
    bin_ = environment_with(tmp_path / "venv", "--editable", source)
    program = "import diffae_jax.configs.digits as d; from diffae_jax.config import from_file; print(d.__file__); "
    program += "assert from_file('digits') == from_file('configs/digits.py') == d.get_config()"
    assert run(bin_ / "python", "-c", program, cwd=tmp_path).strip() == str(source / "configs" / "digits.py")
