"""The shell scripts and the image: linters find nothing, and the image gets only what it needs."""

import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.environment import ROOT, environment

SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
CONTAINERFILE = ROOT / "launch" / "Containerfile"
TOOLS = Path(sysconfig.get_path("scripts"))


def complaints(tool, file):
    done = subprocess.run([TOOLS / tool, file], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert (done.returncode == 0) == (not done.stdout), done.stdout
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    assert complaints("shellcheck", script) == ""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_can_be_executed(script):
    assert script.stat().st_mode & 0o111


def test_hadolint_finds_nothing():
    assert complaints("hadolint", CONTAINERFILE) == ""


def test_linters_find_mistakes(tmp_path):
    script = tmp_path / "script.sh"
    script.write_text("#!/bin/bash\nrm -rf $1\n")
    assert "SC2086" in complaints("shellcheck", script)
    container = tmp_path / "Containerfile"
    container.write_text("FROM python:3.12-slim\nRUN pip install jax\n")
    assert "DL3013" in complaints("hadolint", container)


def test_image_runs_as_a_user_and_keeps_its_cache():
    lines = CONTAINERFILE.read_text().splitlines()
    assert "USER 1000" in lines
    assert "--uid 1000" in CONTAINERFILE.read_text()
    assert 'ENTRYPOINT ["python", "-m", "diffae_jax.main"]' in lines
    assert "ENV XDG_CACHE_HOME=/cache" in lines  # where enable_compilation_cache puts its folder
    assert "VOLUME /cache" in lines
    assert re.search(r"^ARG JAX=jax\[cuda12\]$", CONTAINERFILE.read_text(), re.MULTILINE)


def test_image_gets_the_files_of_the_wheel_and_no_others(tmp_path):
    first, *names = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert first == "*"
    assert names.pop() == "**/__pycache__"
    (tmp_path / "project").mkdir()
    for name in (name.removeprefix("!") for name in names):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / "project" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path / "project")
    sizes = [path.stat().st_size for path in (tmp_path / "project").rglob("*") if path.is_file()]
    assert sum(sizes) < 20e6  # of them 15 MB are the models of diffae_jax.pretrained
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "wheel", "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "--wheel-dir", tmp_path, tmp_path / "project"]
    subprocess.run(command, check=True, env=environment())
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        modules = {name for name in archive.namelist() if name.endswith(".py")}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "diffae_jax").rglob("*.py")}
    assert modules == sources | {f"diffae_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
