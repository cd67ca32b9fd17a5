"""What the commands print, to pipes that end early and to terminals without Unicode."""

import subprocess
import sys

import pytest
from PIL import Image

from diffae_jax.runtime.process import PIPE_CLOSED
from tests.environment import ROOT, environment


@pytest.fixture
def photos(tmp_path):
    for i in range(3):
        Image.effect_noise((40, 40), 50 + i).save(tmp_path / f"caf\u00e9{i}.png")
    (tmp_path / "caf\u00e9 3.png").write_bytes(b"junk")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "first"),
    [
        (["diffae_jax.cli", "data", "PHOTOS"], "Shape: no --image-shape was given"),
        (["diffae_jax.main", "--help"], ""),
        (["diffae_jax.main", "--config=tests/tiny.py", "--workdir=RUN", "--stages=autoencoder"], "Stage autoencoder"),
    ],
    ids=["data", "help of training", "training"],
)
def test_reader_of_the_output_may_end_first(command, first, photos, tmp_path):
    command = [word.replace("PHOTOS", str(photos)).replace("RUN", f"{tmp_path}/run") for word in command]
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert not first or process.stdout.readline().startswith(first)
    process.stdout.close()  # as head does, for help before it is printed
    assert process.stderr.read() == ""
    assert process.wait() == PIPE_CLOSED


def test_names_are_escaped_if_the_terminal_cannot_show_them(photos):
    command = [sys.executable, "-m", "diffae_jax.cli", "data", str(photos), "--image-shape", "16", "16", "1"]
    settings = dict(cwd=ROOT, env=environment(PYTHONIOENCODING="ascii"), text=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings) as process:
        lines = [process.stdout.readline() for _ in range(3)]
        process.stdout.close()
        assert process.stderr.read() == ""
    assert r"caf\xe9 3.png cannot be read as an image" in lines[2]
    done = subprocess.run([*command, "--labels", "\u00e9.csv"], capture_output=True, **settings)
    assert (done.returncode, done.stderr) == (2, "Error: \\xe9.csv is missing. Check the path.\n")
